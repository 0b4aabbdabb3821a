"""Initialisation of the demo's decoder with induction heads, which every pretrained language model has.

To answer about what it was told, or shown, a language model looks things up: it goes from a word in the
question to the same word earlier in the text, and reads what is next to it. Such induction heads (Olsson et
al., 2022) form within the first billion tokens of training. LLaMA-2 has them; the demo's decoder sees a
million tokens, so its attention is initialised with them, as mimetic initialisation (Trockman and Kolter,
2023) does with other structures. All weights are then trained as usual.

The channels are split in two halves: `words` holds the word itself, `found` what was read about it.
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
"""Size of a channel with the same value for all words, relative to a word's own; positional heads read it."""
FAST = 0.05
"""Radians per position: faster rotary dimensions tell positions apart, slower ones compare words."""
FIRST_SHARPNESS, LAST_SHARPNESS = 6.0, 12.0
"""Of the positional heads in the first and the last layer: the logit of the position they attend to."""
MATCH_SHARPNESS = 2.5
"""Of the matching heads in the layers between: the gain of queries times keys."""
PREVIOUS, SECOND_PREVIOUS, FETCHED, ANSWERED = 1.0, 0.2, 3.0, 3.0
"""Gains of the heads' outputs: the previous word, the one before it, what was fetched, the answer."""
NOISE = 0.1


@torch.no_grad()
def initialise_decoder(model: Owl2Model, seed: int = 0) -> None:
    """Initialise embeddings and attention of the text weights, and copy them to the visual weights.

    1. The first layer writes the previous word into `found`, and weakly the one before it.
    2. In the layers between, half of the heads go from a word to the same word earlier and fetch what was
       found about it ("cat" fetches "red"); the other half go to the word after the same word and fetch that
       ("red" fetches "cat").
    3. The last layer looks three and four tokens back, where a question ends, and answers what was fetched.
    MLPs start by adding nothing.

    Raises:
        ValueError: the heads do not fill the width in two equal halves, or there are fewer than three layers.
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
    writer = _HeadWriter(config, seed)
    writer.embeddings(model)
    for depth, layer in enumerate(layers):
        attention = layer.self_attn
        if depth == 0:
            writer.positional(attention, distances=(1, 2), sharpness=FIRST_SHARPNESS)
            gains = (PREVIOUS, SECOND_PREVIOUS)
            writer.copy(attention, *((writer.words, writer.found, gain) for gain in gains))
        elif depth < len(layers) - 1:
            writer.matching(attention)
            sources = (writer.found, writer.words)
            writer.copy(attention, *((source, writer.found, FETCHED) for source in sources))
        else:
            writer.positional(attention, distances=(3, 4), sharpness=LAST_SHARPNESS)
            answer = (writer.found, writer.words, ANSWERED)
            writer.copy(attention, answer, answer)
        layer.mlp.down_proj.weight.zero_()
    model.copy_text_to_vision()


class _HeadWriter:
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
        """Heads that attend to the token at a distance, one distance for each half of the heads.

        Query and key are the same for all words, and the key is the query rotated by the distance, so that
        with the rotary embedding their product is largest at that distance.
        """
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
        """Heads that attend from a word to the same word, and to the word after the same word.

        Query and key compare words in one random basis, in the dimensions that hardly depend on position.
        """
        q, k = attention.q_proj.weight, _text(attention.k_proj)
        slow = (self.rates <= FAST).repeat(2).nonzero().flatten()
        for head, rows, first in self._heads():
            q[rows], k[rows] = self._noise(), self._noise()
            basis = MATCH_SHARPNESS**0.5 * self._rotation()[: len(slow)]
            at = head * self.config.head_dim + slow
            side = self.words if first else self.found
            q[at, self.words : self.words + self.half] += basis
            k[at, side : side + self.half] += basis

    def copy(
        self, attention: Attention, first: tuple[int, int, float], second: tuple[int, int, float]
    ) -> None:
        """What heads copy from the token they attend to: (half that is read, half that is written, gain)."""
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
