"""The processor: released ids, marks that must have their images, labels, batches, the checkpoint folder."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import torch
from PIL import Image

from owl2.model.config import Owl2Config, preset
from owl2.processor import (
    ContextError,
    ImageCountError,
    ImageError,
    ImageTransform,
    JsonTokenizer,
    Processor,
    SentencePieceTokenizer,
    TemplateError,
    Tokenizer,
    TokenizerError,
)
from owl2.processor.processor import PaddingSide
from tests.processor.small import make_processor, random_text

IMAGE = Image.new("RGB", (20, 10), (200, 30, 40))
OTHER = Image.new("RGB", (10, 20), (30, 200, 40))
VISUAL = [-200] * 3


def image_part(image: object = IMAGE) -> dict[str, object]:
    return {"type": "image", "image": image}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def prompt_ids(processor: Processor, prompt: str) -> list[int]:
    images = [[IMAGE] * prompt.count("<|image|>")]
    return processor(text=[prompt], images=images)["input_ids"][0].tolist()


def test_each_piece_around_an_image_is_tokenised_alone_and_bos_comes_once(
    sentencepiece_tokenizer: SentencePieceTokenizer,
) -> None:
    processor, encode = make_processor(sentencepiece_tokenizer), sentencepiece_tokenizer.encode
    assert prompt_ids(processor, "USER: <|image|>an owl<|image|> ASSISTANT:") == [
        1,
        *encode("USER: "),
        *VISUAL,
        *encode("an owl"),
        *VISUAL,
        *encode(" ASSISTANT:"),
    ]
    assert processor.tokenizer.decode(encode("USER: ")[-1:]) == ""  # a lone space stands before the image


def test_a_prompt_that_starts_with_an_image_keeps_the_bos_of_every_later_piece(
    sentencepiece_tokenizer: SentencePieceTokenizer,
) -> None:
    processor, encode = make_processor(sentencepiece_tokenizer), sentencepiece_tokenizer.encode
    assert prompt_ids(processor, "<|image|>an owl<|image|>two") == [
        *VISUAL,
        1,
        *encode("an owl"),
        *VISUAL,
        1,
        *encode("two"),
    ]
    assert prompt_ids(processor, "<|image|>") == VISUAL
    assert prompt_ids(processor, "an owl<|image|><|image|>") == [1, *encode("an owl"), *VISUAL, *VISUAL]


def test_the_end_mark_is_the_end_token_and_text_behind_it_starts_anew(
    sentencepiece_tokenizer: SentencePieceTokenizer,
) -> None:
    processor, encode = make_processor(sentencepiece_tokenizer), sentencepiece_tokenizer.encode
    assert prompt_ids(processor, "an owl</s>USER: two</s>") == [
        1,
        *encode("an owl"),
        2,
        *encode("USER: two"),
        2,
    ]


def test_without_bos_none_is_added(byte_level_tokenizer: JsonTokenizer) -> None:
    processor = make_processor(byte_level_tokenizer)
    assert prompt_ids(processor, "<|image|>an owl") == [*VISUAL, *byte_level_tokenizer.encode("an owl")]


def random_conversation(rng: random.Random) -> tuple[list[dict[str, object]], str]:
    """A conversation and the raw prompt that the release would write for it."""
    messages: list[dict[str, object]] = []
    prompt = ""
    for turn in range(rng.randrange(1, 4)):
        if turn:
            answer = random_text(rng, 5).replace("</s>", "").replace("<|image|>", "")
            messages.append(assistant(answer))
            prompt += f" {answer}</s>"
        parts = [rng.choice([image_part(), text_part(rng.choice(["What is this? ", "an owl", "你好"]))])]
        parts += [rng.choice([image_part(), text_part("two red apples")]) for _ in range(rng.randrange(3))]
        messages.append(user(*parts))
        prompt += "USER: " + "".join(str(part.get("text", "<|image|>")) for part in parts) + " ASSISTANT:"
    return messages, prompt


def test_chat_gives_the_ids_of_the_raw_prompt_of_the_same_conversation(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    rng = random.Random(1)
    for _ in range(200):
        messages, prompt = random_conversation(rng)
        chat = processor.chat([messages])
        raw = processor(text=[prompt], images=[[IMAGE] * prompt.count("<|image|>")])
        assert chat["input_ids"].tolist() == raw["input_ids"].tolist(), prompt
        torch.testing.assert_close(chat["pixel_values"], raw["pixel_values"])


def test_an_answer_tokenised_alone_is_the_answer_tokenised_in_its_prompt(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    question = "USER: what is in the image? ASSISTANT:"
    for answer in ["", " ", "  two", "\nowl", "42", *(random_text(rng) for _ in range(300))]:
        alone = tokenizer.encode(question) + tokenizer.encode(answer, space=True)
        assert alone == tokenizer.encode(f"{question} {answer}")


def test_no_sentencepiece_merges_across_the_start_of_a_word(sentencepiece_model: bytes) -> None:
    """Why an answer can be tokenised alone: every piece has its spaces in front."""
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(sentencepiece_model)
    assert not [p for p in map(pieces.id_to_piece, range(len(pieces))) if "▁" in p.lstrip("▁")]


def test_an_answer_prefix_gives_the_ids_of_the_raw_prompt_that_ends_in_it(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    messages = [user(image_part(), text_part("What is this?"))]
    ids = processor.chat([messages], answer_prefix=" ")["input_ids"][0].tolist()
    assert ids == prompt_ids(processor, "USER: <|image|>What is this? ASSISTANT: ")
    assert ids != processor.chat([messages])["input_ids"][0].tolist()


def test_marks_typed_by_a_user_are_text_in_chat(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    question = "say <|image|> and </s> and <|im_end|>"
    ids = processor.chat([[user(question)]])["input_ids"][0].tolist()
    assert -200 not in ids
    assert tokenizer.eos_token_id not in ids
    assert processor.decode(ids) == f"USER: {question} ASSISTANT:"


def test_targets_are_the_answers_and_their_end_tokens(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    answers = ["An owl.", "two red apples"]
    encoding = processor.encode(
        [user(image_part(), text_part("What?")), assistant(answers[0]), user("More?"), assistant(answers[1])]
    )
    assert len(encoding.ids) == len(encoding.is_target)
    targets = [token_id for token_id, learnt in zip(encoding.ids, encoding.is_target, strict=True) if learnt]
    end = tokenizer.eos_token_id
    first, second = (tokenizer.encode(answer, space=True) for answer in answers)
    assert targets == [*first, end, *second, end]
    assert encoding.is_target[-len(second) - 1 :] == [True] * (len(second) + 1)


def test_the_training_template_asks_as_the_release_trains(
    sentencepiece_tokenizer: SentencePieceTokenizer,
) -> None:
    processor = make_processor(sentencepiece_tokenizer, template="vicuna_v1")
    encode = sentencepiece_tokenizer.encode
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    encoding = processor.encode([user(text_part("What? "), image_part()), assistant("An owl.")])
    assert encoding.ids == [
        1,
        *encode(f"{system}USER: "),
        *VISUAL,
        *encode("\nWhat? ASSISTANT:"),
        *encode("An owl."),
        2,
    ]


def test_an_encoding_carries_its_images_in_order_from_paths_and_objects(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "owl.png"
    OTHER.save(path)
    encoding = make_processor(tokenizer).encode([user(image_part(IMAGE), text_part("or"), image_part(path))])
    assert [image.getpixel((0, 0)) for image in encoding.images] == [(200, 30, 40), (30, 200, 40)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_and_masked_and_images_come_flat_in_order(
    tokenizer: Tokenizer, side: PaddingSide
) -> None:
    processor = make_processor(tokenizer)
    prompts = ["USER: <|image|>what<|image|> ASSISTANT:", "USER: no image", "<|image|>"]
    images = [[IMAGE, OTHER], [], [OTHER]]
    batch = processor(text=prompts, images=images, padding_side=side)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].shape == batch["input_ids"].shape
    for row, prompt in enumerate(prompts):
        alone = processor(text=[prompt], images=[images[row]])["input_ids"][0]
        mask = batch["attention_mask"][row]
        assert batch["input_ids"][row][mask].tolist() == alone.tolist()
        assert (batch["input_ids"][row][~mask] == tokenizer.pad_token_id).all()
        assert mask[0 if side == "right" else -1]
    expected = torch.stack([processor.image_transform(image) for image in (IMAGE, OTHER, OTHER)])
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_a_batch_without_images_has_no_pixels(tokenizer: Tokenizer) -> None:
    batch = make_processor(tokenizer)(text=["an owl", "two"])
    assert batch["pixel_values"].shape == (0, 3, 28, 28)
    assert batch["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize(
    ("prompt", "images", "complaint"),
    [
        ("USER: <|image|>a", 0, r"row 1 has 1 <\|image\|> marks but 0 images"),
        ("USER: a", 1, r"row 1 has 0 <\|image\|> marks but 1 images"),
        ("<|image|><|image|>", 3, r"row 1 has 2 <\|image\|> marks but 3 images"),
    ],
)
def test_more_or_fewer_images_than_marks_is_an_error_with_the_row_and_both_counts(
    tokenizer: Tokenizer, prompt: str, images: int, complaint: str
) -> None:
    with pytest.raises(ImageCountError, match=complaint):
        make_processor(tokenizer)(text=["fine", prompt], images=[[], [IMAGE] * images])


def test_calls_of_the_wrong_shape_are_errors_that_say_what_is_expected(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    with pytest.raises(ImageCountError, match="2 prompts but 1 lists of images"):
        processor(text=["a", "b"], images=[[]])
    with pytest.raises(TypeError, match="expected a list with one prompt a row"):
        processor(text="an owl")
    with pytest.raises(TypeError, match="images of row 0 are one image"):
        processor(text=["<|image|>"], images=[IMAGE])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="row 0 is empty"):
        processor(text=[""])
    with pytest.raises(ValueError, match="at least one row"):
        processor(text=[])
    with pytest.raises(ValueError, match="padding_side is 'up'"):
        processor(text=["a"], padding_side="up")  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="unknown template 'owl'"):
        make_processor(tokenizer, template="owl")


def test_a_prompt_longer_than_the_context_is_an_error_with_the_counts(
    sentencepiece_tokenizer: SentencePieceTokenizer,
) -> None:
    fits = make_processor(sentencepiece_tokenizer, max_tokens=6)
    assert len(prompt_ids(fits, "<|image|><|image|>")) == 6
    with pytest.raises(ContextError, match=r"row 1 has 9 tokens \(3 images are 9 of them\).*context is 6"):
        fits(text=["a", "<|image|>" * 3], images=[[], [IMAGE] * 3])
    with pytest.raises(ContextError, match=r"the conversation has .*shorten the text"):
        fits.encode([user("what is in the image")])


def test_a_broken_image_in_a_conversation_is_an_error_that_names_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "owl.png"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"owl\.png: not an image"):
        make_processor(tokenizer).encode([user(image_part(path))])


def test_decoding_leaves_out_image_and_special_tokens(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = [pad, *VISUAL, end, *tokenizer.encode("an owl"), end, *VISUAL]
    assert processor.decode(ids) == "an owl"


def test_a_processor_with_a_part_replaced_keeps_what_was_not_given(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer, max_tokens=99, template="vicuna_v1")

    def parts(changed: Processor) -> tuple[object, ...]:
        transform = changed.image_transform
        return (changed.template, transform.size, transform.resize, changed.max_tokens)

    assert parts(processor.replace()) == ("vicuna_v1", 28, "square", 99)
    assert parts(processor.replace(image_size=56)) == ("vicuna_v1", 56, "square", 99)
    assert parts(processor.replace(template="mplug_owl2", resize="pad")) == ("mplug_owl2", 28, "pad", 99)
    assert parts(processor.replace(max_tokens=7)) == ("vicuna_v1", 28, "square", 7)
    assert parts(processor.replace(max_tokens=7).without_limit()) == ("vicuna_v1", 28, "square", None)
    assert parts(processor) == ("vicuna_v1", 28, "square", 99)
    with pytest.raises(TemplateError, match="unknown template 'owl'"):
        processor.replace(template="owl")
    with pytest.raises(ImageError, match="size is 0 px"):
        processor.replace(image_size=0)


def test_a_processor_without_limit_encodes_what_was_too_long(tokenizer: Tokenizer) -> None:
    processor = make_processor(tokenizer, max_tokens=2)
    with pytest.raises(ContextError):
        processor.encode([user("what is in the image")])
    assert len(processor.without_limit().encode([user("what is in the image")]).ids) > 2


def tiny_config(vocab_size: int = 512) -> Owl2Config:
    config = preset("tiny")
    return config.replace(decoder=dataclasses.replace(config.decoder, vocab_size=vocab_size))


def test_saved_and_loaded_from_a_folder_is_the_same_processor(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = tiny_config()
    saved = Processor(
        tokenizer,
        ImageTransform(56, "pad"),
        image_token_id=config.image_token_id,
        tokens_per_image=config.tokens_per_image,
        template="vicuna_v1",
    )
    folder = tmp_path / "new" / "checkpoint"
    saved.save(folder)
    loaded = Processor.from_folder(folder, config)
    assert loaded.max_tokens == config.decoder.max_position_embeddings
    assert (loaded.template, loaded.image_transform) == ("vicuna_v1", saved.image_transform)
    messages = [user(image_part(), text_part("What?")), assistant("An owl.")]
    assert loaded.encode(messages).ids == saved.encode(messages).ids
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]


def test_a_folder_that_does_not_fit_the_model_is_an_error_that_says_why(
    sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    sentencepiece_tokenizer.save(tmp_path)
    with pytest.raises(ImageError, match=r"preprocessor_config\.json is missing"):
        Processor.from_folder(tmp_path, tiny_config())
    make_processor(sentencepiece_tokenizer).save(tmp_path)
    with pytest.raises(TokenizerError, match="the tokenizer has 460 tokens, but the model embeds only 128"):
        Processor.from_folder(tmp_path, tiny_config(128))
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config |= {"size": 30, "crop_size": 30}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ImageError, match="30 px cannot be cut into patches of 14 px"):
        Processor.from_folder(tmp_path, tiny_config())
