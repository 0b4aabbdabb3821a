"""How the demo's decoder is drawn: with the heads that a pretrained language model always has.

Before a language model can answer about what it was told, or shown, it has to look things up: from a word in
the question to the same word before it, and to what stood beside it. Such induction heads (Olsson et al.,
2022) form by themselves somewhere within the first billion tokens. LLaMA-2 has them; this stand-in has a
million tokens, so its projections are drawn with them in place, as positions and mimetic initialisation
(Trockman and Kolter, 2023) put other structure there. Every weight then learns as usual.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Linear

from owl2.model.config import DecoderConfig
from owl2.model.decoder import Attention, DecoderLayer, rotary_frequencies
from owl2.model.mam import TEXT, Multiway
from owl2.model.owl2 import Owl2Model

CONSTANT = 0.35
"""Size of the channel that all words share, against a word's own; heads that go by position read it."""
FAST = 0.05
"""Radians a position: dimensions that turn faster tell positions apart, slower ones compare words."""
STEP_BACK, LOOK_BACK = 6.0, 12.0
"""Sharpness of the first and of the last layer's heads, as the logit of the position that they mean."""
MATCH = 2.5
"""Sharpness of the heads between them, as the gain of queries times keys."""
NEAR, FAR, FETCHED, SAID = 1.0, 0.2, 3.0, 3.0
"""Gains of the outputs: the word before, the one before that, what was fetched, what is said."""
NOISE = 0.1


@torch.no_grad()
def draw_decoder(model: Owl2Model, seed: int = 0) -> None:
    """Draw embeddings and attention of the text ways, and copy them to the visual ways.

    Words live in the lower half of the channels, what is found out about a word in the upper half.
    1. The first layer writes the word before into the upper half, and faintly the one before that.
    2. In the layers between, half of the heads go from a word to the same word earlier and fetch what was
       found out about it ("cat" fetches "red"); the other half go to the word that stood behind the same
       word and fetch that ("red" fetches "cat").
    3. The last layer looks three and four tokens back, where a question ends, and says what was fetched.
    MLPs begin by adding nothing. Raises ValueError where heads do not fill the width in two equal halves, or
    where there are fewer than three layers.
    """
    config = model.config.decoder
    layers = cast(Sequence[DecoderLayer], model.model.layers)
    heads, width = config.num_attention_heads, config.hidden_size
    if heads % 2 or heads * config.head_dim != width or config.num_key_value_heads != heads:
        raise ValueError(
            f"an even number of heads whose widths sum up to {width} is needed, not {heads} of "
            f"{config.head_dim} with {config.num_key_value_heads} for keys"
        )
    if len(layers) < 3:
        raise ValueError(f"three layers are needed to look something up, not {len(layers)}")
    pen = _Pen(config, seed)
    pen.embeddings(model)
    for depth, layer in enumerate(layers):
        attention = layer.self_attn
        if depth == 0:
            pen.positional(attention, distances=(1, 2), sharpness=STEP_BACK)
            pen.carry(attention, (pen.words, pen.found, NEAR), (pen.words, pen.found, FAR))
        elif depth < len(layers) - 1:
            pen.matching(attention)
            pen.carry(attention, (pen.found, pen.found, FETCHED), (pen.words, pen.found, FETCHED))
        else:
            pen.positional(attention, distances=(3, 4), sharpness=LOOK_BACK)
            pen.carry(attention, (pen.found, pen.words, SAID), (pen.found, pen.words, SAID))
        layer.mlp.down_proj.weight.zero_()
    model.copy_text_to_vision()


class _Pen:
    """Writes heads into projections; the first and the second half of a layer's heads do one thing each."""

    def __init__(self, config: DecoderConfig, seed: int):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.half = config.hidden_size // 2
        self.words, self.found = 0, self.half  # first channel of each half
        self.rates = rotary_frequencies(config)

    def embeddings(self, model: Owl2Model) -> None:
        """Unit words in the lower half, and the constant; logits of about 1 behind the final norm."""
        weight = model.model.embed_tokens.weight
        weight.zero_()
        weight[:, : self.half] = 2**0.5 * self._normal(len(weight), self.half)
        weight[:, self.half] = CONSTANT * self.config.hidden_size**0.5
        model.model.norm.weight.fill_(self.config.hidden_size**-0.5)

    def positional(self, attention: Attention, distances: tuple[int, int], sharpness: float) -> None:
        """Heads that attend to the token so many positions back."""
        q, k = attention.q_proj.weight, _text(attention.k_proj)
        constant = CONSTANT**2 * self.config.hidden_size / (1 + CONSTANT**2)  # its square behind the norm
        gain = (sharpness * self.config.head_dim**0.5 / constant) ** 0.5
        for head, rows, first in self._heads():
            q[rows], k[rows] = self._noise(), self._noise()
            for pair in (self.rates > FAST).nonzero().flatten().tolist():
                angle = self.rates[pair] * distances[0 if first else 1]
                turned = head * self.config.head_dim + pair
                q[turned, self.half] += gain
                k[turned, self.half] += gain * angle.cos()
                k[turned + len(self.rates), self.half] += gain * angle.sin()

    def matching(self, attention: Attention) -> None:
        """Heads that attend from a word to the same word, and to the word behind the same word."""
        q, k = attention.q_proj.weight, _text(attention.k_proj)
        slow = (self.rates <= FAST).repeat(2).nonzero().flatten()
        for head, rows, first in self._heads():
            q[rows], k[rows] = self._noise(), self._noise()
            basis = MATCH**0.5 * self._rotation()[: len(slow)]
            at = head * self.config.head_dim + slow
            side = self.words if first else self.found
            q[at, self.words : self.words + self.half] += basis
            k[at, side : side + self.half] += basis

    def carry(
        self, attention: Attention, first: tuple[int, int, float], second: tuple[int, int, float]
    ) -> None:
        """What heads fetch and where they put it: (half that is read, half that is written, gain)."""
        v, o = _text(attention.v_proj), attention.o_proj.weight
        basis = self._rotation()
        size = self.config.head_dim
        o.zero_()
        for head, rows, is_first in self._heads():
            source, target, gain = first if is_first else second
            part = basis[head * size % self.half :][:size].clone()
            if source == self.found:
                part[:, 0] = 0  # the constant stays where it is
            v[rows] = self._noise()
            v[rows, source : source + self.half] += part
            o[target : target + self.half, rows] = gain * part.T
        o[self.half] = 0

    def _heads(self) -> list[tuple[int, slice, bool]]:
        heads, size = self.config.num_attention_heads, self.config.head_dim
        return [(head, slice(head * size, head * size + size), head < heads // 2) for head in range(heads)]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _rotation(self) -> Tensor:
        rotation: Tensor = torch.linalg.qr(self._normal(self.half, self.half))[0]
        return rotation

    def _noise(self) -> Tensor:
        width = self.config.hidden_size
        return NOISE * width**-0.5 * self._normal(self.config.head_dim, width)


def _text(projection: object) -> Tensor:
    chosen = projection.multiway[TEXT] if isinstance(projection, Multiway) else projection
    assert isinstance(chosen, Linear)
    return chosen.weight
