"""The warm start: images must score the words of their captions, without the decoder."""

import pytest
import torch

from owl2.data.loader import Batch
from owl2.model import Owl2Model, build, packed_layout, targets_of
from owl2.train.objectives import bag_of_words

CAPTIONS = ((5, 9, 2), (7, 2))


def captioned(model: Owl2Model, captions: tuple[tuple[int, ...], ...], num_images: int) -> Batch:
    """Samples of an image and a caption, all of whose words are labelled."""
    image = [model.config.image_token_id] * model.config.tokens_per_image
    ids = torch.tensor([i for caption in captions for i in (*image, *caption)])
    layout = packed_layout(ids, [len(image) + len(c) for c in captions], model.config.image_token_id)
    labels = ids.masked_fill(ids == model.config.image_token_id, -100)
    size = model.config.vision.image_size
    pixels = torch.rand(num_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    keys = tuple(f"captions:{i}" for i in range(len(captions)))
    return Batch(
        input_ids=ids,
        layout=layout,
        targets=targets_of(labels, layout),
        pixel_values=pixels,
        keys=keys,
        num_samples=len(captions),
    )


def test_the_words_of_a_caption_are_shared_among_its_own_images_tokens_in_no_order() -> None:
    model = build("tiny")
    batch = captioned(model, CAPTIONS, 2)
    tokens = model.model.norm(model.encode_images(batch.pixel_values))
    words = (tokens @ model.head_weight.T).softmax(-1).mean(1)
    expected = sum(-words[i, list(caption)].log().sum() for i, caption in enumerate(CAPTIONS))
    torch.testing.assert_close(bag_of_words(model, batch).sum(), expected)
    shuffled = captioned(model, ((9, 2, 5), (2, 7)), 2)
    torch.testing.assert_close(bag_of_words(model, shuffled).sum(), expected)


def test_the_decoder_does_not_run() -> None:
    model = build("tiny")
    bag_of_words(model, captioned(model, CAPTIONS, 2)).sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("model.layers."))
    assert model.model.visual_abstractor.visual_fc.weight.grad is not None


def test_a_sample_without_its_one_image_is_an_error_with_the_counts() -> None:
    model = build("tiny")
    with pytest.raises(ValueError, match="has 1 for 2 samples"):
        bag_of_words(model, captioned(model, CAPTIONS, 1))
