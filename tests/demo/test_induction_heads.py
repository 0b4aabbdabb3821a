"""The demo's decoder looks up what it was told as soon as it is initialised, before any training."""

from dataclasses import replace

import pytest
import torch

from owl2.demo.induction_heads import initialise_decoder
from owl2.demo.presets import DECODER
from owl2.model import Owl2Config, Owl2Model, build, preset
from owl2.model.layout import packed_layout

COMMA, STOP, ASKS, QUESTION_MARK, ANSWER, COLON = range(3, 9)
FIRST_WORD = 20


def initialised(**changes: int) -> Owl2Model:
    tiny: Owl2Config = preset("tiny")
    model = build(replace(tiny, decoder=replace(DECODER, **changes)))
    initialise_decoder(model)
    return model


def test_the_initialised_decoder_finds_what_is_before_a_word_and_after_it() -> None:
    """`c0 n0, c1 n1, c2 n2. asks n1? answer:` is to be followed by c1, and with c1 asked for, by n1."""
    model = initialised()
    generator = torch.Generator().manual_seed(0)
    for direction in ("before", "behind"):
        rows: list[list[int]] = []
        options: list[list[int]] = []
        for _ in range(200):
            words = (FIRST_WORD + torch.randperm(500, generator=generator)[:6]).tolist()
            colours, names = words[:3], words[3:]
            told = [id_ for pair in zip(colours, names, strict=True) for id_ in (*pair, COMMA)][:-1]
            asked = [names[1]] if direction == "before" else [colours[1], ASKS]
            rows.append([0, *told, STOP, ASKS, *asked, QUESTION_MARK, ANSWER, COLON])
            options.append(colours if direction == "before" else names)
        ids = torch.tensor([id_ for row in rows for id_ in row])
        layout = packed_layout(ids, [len(row) for row in rows], model.config.image_token_id)
        with torch.inference_mode():
            hidden = model.hidden(model.embed(ids, layout), layout)
            logits = model.logits(hidden[len(rows[0]) - 1 :: len(rows[0])])
        chosen = logits.gather(1, torch.tensor(options)).argmax(1)
        share = (chosen == 1).float().mean().item()
        assert share > 0.45, f"{direction}: {share:.2f} where chance is 0.33"


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2}, {"num_key_value_heads": 2}])
def test_a_decoder_without_room_for_the_heads_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needed"):
        initialised(**changes)
