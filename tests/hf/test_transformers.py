"""`import owl2.hf`: the Auto classes of `transformers` read our folders, and answer as we do.

Equal tokens prove little, so logits are compared; ids of `generate` then follow for every way of generating.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import owl2
from owl2.api import Owl2
from owl2.checkpoint import save_checkpoint
from owl2.model import Owl2Config
from owl2.processor import ImageTransform, JsonTokenizer, Processor, SentencePieceTokenizer, Tokenizer
from tests.checkpoint.test_gguf import trained_byte_level
from tests.model.tiny import tiny_model
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("owl2.hf")

IMAGES = [Image.new("RGB", (50, 40), colour) for colour in ("orange", "navy", "green")]


def ask(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


CONVERSATIONS = [
    ask("What is this?", IMAGES[0]),
    ask("Hello, and a longer question?"),
    ask("Which?", *IMAGES[1:]),
]


@pytest.fixture(scope="module", params=["own head", "tied head", "byte level"])
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sentencepiece_tokenizer: SentencePieceTokenizer,  # noqa: F811
) -> Path:
    tokenizer: Tokenizer = sentencepiece_tokenizer
    if request.param == "byte level":
        names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
        tokenizer = JsonTokenizer(trained_byte_level().to_str(), names)
    model = tiny_model(
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=200,
        num_key_value_heads=2,
        tie_word_embeddings=request.param == "tied head",
    )
    processor = Processor(
        tokenizer,
        ImageTransform(size=56),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
    )
    path = tmp_path_factory.mktemp("hf") / "checkpoint"
    save_checkpoint(model, path, processor=processor)
    return path


@pytest.fixture(scope="module")
def owl(folder: Path) -> Owl2:
    return owl2.load(folder, progress=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    found, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    return found.eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder)


def inputs(processor: Any, side: str = "left") -> dict[str, Any]:
    return dict(processor.apply_chat_template(CONVERSATIONS, tokenize=True, padding_side=side))


def new_ids(out: torch.Tensor, length: int, ends: set[int]) -> list[list[int]]:
    """New tokens without the end token and what follows it."""
    rows = []
    for row in out[:, length:].tolist():
        rows.append(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_equal_to_the_bit(owl: Owl2, model: Any, processor: Any, side: str) -> None:
    ours = owl.processor.chat(CONVERSATIONS, side)
    batch = inputs(processor, side)
    vocabulary = owl.model.config.decoder.vocab_size
    assert batch["input_ids"].min() >= 0
    assert batch["input_ids"].max() == model.config.image_token_id == vocabulary
    with torch.inference_mode():
        logits = model(**batch).logits
        assert torch.equal(logits[..., :vocabulary], owl.model(**ours))
        assert torch.equal(model(**{**batch, "input_ids": ours["input_ids"]}).logits, logits), (
            "the old id works"
        )
    assert bool((logits[..., vocabulary] < -1e30).all()), "the image's id can never be chosen"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 1, "length_penalty": 2.0},
        {"repetition_penalty": 1.4},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_generated_ids_are_ours(owl: Owl2, model: Any, processor: Any, settings: dict[str, Any]) -> None:
    ends = {owl.processor.tokenizer.eos_token_id}
    known = {
        name: settings[name] for name in ("num_beams", "length_penalty", "min_new_tokens") if name in settings
    }
    penalty = {name: settings[name] for name in ("repetition_penalty",) if name in settings}
    for conversation in CONVERSATIONS:  # alone: the library's penalty counts padding
        batch = processor.apply_chat_template([conversation], tokenize=True)
        out = model.generate(**batch, max_new_tokens=9, do_sample=False, **settings)
        expected = owl.generate(**owl.processor.chat([conversation]), max_new_tokens=9, **known, **penalty)
        assert new_ids(out, batch["input_ids"].shape[1], ends) == expected
    if not penalty:
        batch = inputs(processor)
        out = model.generate(**batch, max_new_tokens=9, do_sample=False, **settings)
        expected = owl.generate(**owl.processor.chat(CONVERSATIONS), max_new_tokens=9, **known)
        assert new_ids(out, batch["input_ids"].shape[1], ends) == expected


def test_other_ways_of_generating_run(model: Any, processor: Any) -> None:
    batch = processor.apply_chat_template([CONVERSATIONS[2]], tokenize=True)
    length = batch["input_ids"].shape[1]
    greedy = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assisted = model.generate(**batch, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(assisted, greedy), "assisted decoding crops the cache"
    transformers.set_seed(0)
    several = model.generate(**batch, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert several.shape == (3, length + 5)
    pieces: list[int] = []

    class Streamer:
        def put(self, tokens: torch.Tensor) -> None:
            pieces.append(tokens.numel())

        def end(self) -> None:
            pieces.append(-1)

    model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, streamer=Streamer())
    assert pieces == [length, 1, 1, 1, 1, -1]

    def is_long(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([ids.shape[1] >= length + 2] * len(ids))

    stopped = model.generate(
        **batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, stopping_criteria=[is_long]
    )
    assert stopped.shape == (1, length + 2)
    out = model.generate(
        **batch, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, output_hidden_states=True
    )
    assert len(out.logits) == len(out.hidden_states) == out.sequences.shape[1] - length
    assert len(out.hidden_states[0]) == len(model.model.layers) + 1


def test_a_pipeline_takes_messages_and_raw_text(owl: Owl2, model: Any, processor: Any) -> None:
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    (answer,) = pipe(text=CONVERSATIONS[0], max_new_tokens=8, do_sample=False)
    said = answer["generated_text"][-1]["content"]
    assert said.strip() == owl.chat(CONVERSATIONS[0], max_new_tokens=8)
    prompt = "USER: <|image|>What is this? ASSISTANT:"
    (answer,) = pipe(text=prompt, images=IMAGES[0], max_new_tokens=8, do_sample=False)
    batch = owl.processor(text=[prompt], images=[[IMAGES[0]]])
    (ids,) = owl.generate(**batch, max_new_tokens=8)
    assert answer["generated_text"].removeprefix(prompt).strip() == owl.processor.decode(ids).strip()


def test_what_a_user_types_is_no_control_token(owl: Owl2, processor: Any) -> None:
    typed = ask("a <|image|> and </s> typed")
    batch = processor.apply_chat_template(typed, tokenize=True)
    assert batch["input_ids"][0].tolist() == owl.processor.encode(typed, generation_prompt=True).ids
    assert "pixel_values" not in batch
    text = processor.apply_chat_template(CONVERSATIONS[0])
    assert text == f"{processor.tokenizer.bos_token}USER: <|image|>What is this? ASSISTANT:"


def test_prompt_and_completion_encoded_apart_are_the_conversation(owl: Owl2, processor: Any) -> None:
    """As trainers do it: the text of the whole without that of the prompt, no special tokens added."""
    talk = [*CONVERSATIONS[0], {"role": "assistant", "content": "a red cat"}, *ask("And this?")]
    for prompt, answer in ((talk[:1], "a red cat"), (talk, "no")):
        whole = [*prompt, {"role": "assistant", "content": answer}]
        texts = [processor.apply_chat_template(messages) for messages in (prompt, whole)]
        assert texts[1].startswith(texts[0])
        parts = [
            processor(text=texts[0], images=[IMAGES[0]], add_special_tokens=False),
            processor(text=texts[1].removeprefix(texts[0]), add_special_tokens=False),
        ]
        ids = [token for part in parts for token in part["input_ids"][0].tolist()]
        assert ids == processor.apply_chat_template(whole, tokenize=True)["input_ids"][0].tolist()
        own = [owl.processor.image_token_id if i == processor.image_token_id else i for i in ids]
        assert own == owl.processor.encode(whole).ids


def test_a_model_saved_by_the_library_is_loaded_by_owl2(
    owl: Owl2, model: Any, processor: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = owl2.load(tmp_path / "saved", progress=False)
    assert again.model.config == owl.model.config
    batch = owl.processor.chat(CONVERSATIONS)
    with torch.inference_mode():
        assert torch.equal(again.model(**batch), owl.model(**batch))
    raw = json.loads((tmp_path / "saved/config.json").read_text())
    assert raw["image_token_id"] == owl.model.config.image_token_id
    assert raw["architectures"] == ["MPLUGOwl2LlamaForCausalLM"]


def test_the_loss_is_that_of_training_and_checkpointing_changes_no_gradient(
    owl: Owl2, folder: Path, processor: Any
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    talks = [[*talk, {"role": "assistant", "content": "a red cat"}] for talk in CONVERSATIONS]
    encodings = [owl.processor.encode(talk) for talk in talks]
    batch = inputs(processor, "right") | dict(
        processor.apply_chat_template(talks, tokenize=True, padding_side="right")
    )
    labels = torch.full_like(batch["input_ids"], -100)
    for row, encoding in enumerate(encodings):
        for place, is_target in enumerate(encoding.is_target):
            if is_target:
                labels[row, place] = encoding.ids[place]
    out = model(**batch, labels=labels)
    ours = owl.processor.collate(encodings)
    with torch.no_grad():
        logits = owl.model(**ours)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(plain) > 30
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-5, atol=1e-7)
    model.gradient_checkpointing_disable()
    whole = model(**batch, labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(whole, expected * int((labels[:, 1:] != -100).sum()) / 10)


def test_trainers_get_the_last_hidden_states(model: Any, processor: Any) -> None:
    batch = inputs(processor)
    with torch.inference_mode():
        hidden = model.base_model(**batch).last_hidden_state
        logits = model(**batch).logits[..., :-1]
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(model.lm_head(hidden)[real], logits[real], rtol=0, atol=0)


def test_peft_adds_adapters_to_both_branches_of_mam_and_reads_them_again(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    targets = r"model\.layers\..*(q_proj|[kv]_proj\.multiway\.\d)"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    batch = inputs(processor)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        adapted(**batch, labels=labels).loss.backward()
        optimizer.step()
    moved = [n for n, p in adapted.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert {".multiway.0." in name for name in moved if "multiway" in name} == {True, False}
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    with torch.inference_mode():
        expected = adapted.eval()(**batch).logits
        torch.testing.assert_close(again.eval()(**batch).logits, expected)
        merged = again.merge_and_unload()(**batch).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    out = adapted.generate(**batch, max_new_tokens=3)
    assert out.shape[1] == batch["input_ids"].shape[1] + 3


def test_an_input_that_the_model_lacks_is_an_error(model: Any, processor: Any) -> None:
    batch = inputs(processor)
    with pytest.raises(ValueError, match="neither output_attentions"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="neither inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 64))
    with pytest.raises(ValueError, match="2 images, but the prompts have 1"):
        processor(text="USER: <|image|>?", images=IMAGES[:2])


def test_a_released_folder_is_read_as_it_is(folder: Path, owl: Owl2, tmp_path: Path) -> None:
    """The release has no `mam`, no `image_token_id`, and no buffers of positions."""
    released = shutil.copytree(folder, tmp_path / "released")
    raw = json.loads((released / "config.json").read_text())
    if raw["tie_word_embeddings"]:
        pytest.skip("the release has a head of its own")
    for name in ("mam", "image_token_id"):
        del raw[name]
    (released / "config.json").write_text(json.dumps({**raw, "transformers_version": "4.31.0"}))
    model = transformers.AutoModelForCausalLM.from_pretrained(released, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(released)
    with torch.inference_mode():
        logits = model(**inputs(processor)).logits[..., :-1]
        assert torch.equal(logits, owl.model(**owl.processor.chat(CONVERSATIONS, "left")))


def test_half_precision_and_the_configuration_survive(folder: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    config = transformers.AutoConfig.from_pretrained(folder)
    own = Owl2Config.from_dict(json.loads((folder / "config.json").read_text()))
    assert config.own == own
    assert Owl2Config.from_dict(config.to_dict()) == own
    assert dataclasses.asdict(own.decoder)["hidden_size"] == config.hidden_size


def test_nothing_of_transformers_is_imported_unless_asked_for() -> None:
    code = "import owl2, sys; owl2.load; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
