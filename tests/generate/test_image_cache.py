"""An image that is asked about again costs no encoder pass, and answers do not depend on the cache."""

import pytest
import torch
from PIL import Image

from owl2.api import Owl2
from owl2.eval.engines.engine import Prompt
from owl2.eval.engines.local import OwlEngine
from owl2.eval.task import Decoding
from owl2.generate import ImageCache
from owl2.model import Owl2Model
from owl2.processor import Processor
from tests.generate.test_session import ask, image


@pytest.fixture
def owl(model: Owl2Model, processor: Processor) -> Owl2:
    return Owl2(model, processor)


def passes(model: Owl2Model) -> list[int]:
    """How many images each pass of the vision encoder from now on reads."""
    read: list[int] = []
    model.model.vision_model.register_forward_hook(lambda _, args, __: read.append(len(args[0])))
    return read


def test_the_same_image_is_encoded_once_whatever_asks_about_it(owl: Owl2) -> None:
    read = passes(owl.model)
    red, blue = image("red"), image("blue")
    first = owl.chat("what is this?", images=[red], max_new_tokens=5)
    assert read == [1]
    assert owl.chat("what is this?", images=[red.copy()], max_new_tokens=5) == first
    list(owl.session().say(ask("and this?", red), max_new_tokens=5))
    owl.complete("what?", images=[red], max_new_tokens=5)
    owl.score("what?", ["yes"], images=[red])
    batch = owl.processor.chat([[{"role": "user", "content": ask("which?", red, blue, red)}]])
    owl.generate(**batch, max_new_tokens=5)
    assert read == [1, 1], "of the batch only blue is new"
    engine = OwlEngine(owl)
    prompts = [
        Prompt(text, [{"role": "user", "content": ask(text, red, blue)}], "", Decoding(max_new_tokens=5))
        for text in ("one?", "two?")
    ]
    assert not any(reply.error for reply in engine.answer(engine.prepare(prompts)))
    assert read == [1, 1]


def test_answers_do_not_depend_on_the_cache(owl: Owl2) -> None:
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    batch = owl.processor.chat([[{"role": "user", "content": ask("which?", image("red"), noise)}]])
    pixels = batch["pixel_values"]
    plain = owl.model.encode_images(pixels)
    for _ in range(2):
        torch.testing.assert_close(owl.image_cache.encode(owl.model, pixels), plain, rtol=1e-5, atol=1e-5)
    alone = owl.image_cache.encode(owl.model, pixels[1:])
    torch.testing.assert_close(alone[0], plain[1], rtol=1e-5, atol=1e-5)


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_longest(owl: Owl2) -> None:
    pixels = owl.processor.pixels([image(colour) for colour in ("red", "blue", "green")])
    one = owl.model.encode_images(pixels[:1]).nbytes
    cache, read = ImageCache(max_bytes=2 * one), passes(owl.model)
    cache.encode(owl.model, pixels[:2])
    cache.encode(owl.model, pixels[:1])  # red is used again
    cache.encode(owl.model, pixels[2:])
    assert (len(cache), cache.num_bytes) == (2, 2 * one)
    cache.encode(owl.model, pixels[[0, 2]])
    assert read == [2, 1]
    cache.encode(owl.model, pixels)
    assert read == [2, 1, 1], "blue was forgotten"
    assert cache.num_bytes <= 2 * one
    off = ImageCache(max_bytes=0)
    assert torch.equal(off.encode(owl.model, pixels), off.encode(owl.model, pixels))
    assert (len(off), off.num_bytes) == (0, 0)


@pytest.mark.parametrize("part", ["vision_model", "visual_abstractor"])
def test_changed_weights_are_noticed(owl: Owl2, part: str) -> None:
    pixels = owl.processor.pixels([image("red")])
    before = owl.image_cache.encode(owl.model, pixels)
    parameter = next(p for p in getattr(owl.model.model, part).parameters() if p.ndim > 1)
    with torch.no_grad():
        parameter.mul_(1.5)
    after = owl.image_cache.encode(owl.model, pixels)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, owl.model.encode_images(pixels))
    parameter.data = parameter.data / 1.5
    torch.testing.assert_close(owl.image_cache.encode(owl.model, pixels), before, rtol=1e-4, atol=1e-5)
