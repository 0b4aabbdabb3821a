"""Beam search with the semantics of `transformers`, whose ids it reproduces on a plain decoder.

A row has `num_beams` beams, its most probable unfinished texts, and keeps as many of the best ended ones.
In each step the continuations of all beams of a row compete. An ended text is kept only if it is among the
`num_beams` most probable continuations; its score is its log-probability / length ** `length_penalty`, where
the length counts new tokens with the end token.

Each prompt is read once, and its images are encoded once; then its row of the cache is copied for every beam.
(The released code repeats prompts but not images, so with several images a row they reach the wrong beams.)
The beams of a row share its prompt: when they are reordered, only the cache after the prompt moves.

Shapes: R rows, W beams of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from owl2.generate.config import GenerationConfig, GenerationError, end_tokens
from owl2.generate.repetition import Repetition
from owl2.model import KVCache, Owl2Model, decode_layout


@dataclass(frozen=True)
class Answer:
    """A text that has ended."""

    tokens: list[int]
    """New tokens, with the end token if there is one."""
    log_probability: float
    """Sum over its tokens."""
    score: float
    """What answers are compared by."""


Candidate = tuple[float, int, int]
"""Log-probability of the whole text, the beam that is continued, and the new token."""


@dataclass
class _Row:
    """The search for one row."""

    config: GenerationConfig
    ends: frozenset[int]
    beams: list[list[int]] = field(default_factory=lambda: [[]])
    """New tokens of the unfinished texts, the most probable first."""
    ended: list[Answer] = field(default_factory=list)
    """The best texts that have ended, the best first; at most `num_beams`."""
    is_done: bool = False

    def advance(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Take a step, given the row's best continuations in order; return those that go on."""
        config, width = self.config, self.config.num_beams
        length = len(self.beams[0]) + 1
        is_last = length == config.max_new_tokens
        running: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            log_probability, beam, token = candidate
            if not is_last and token not in self.ends:
                running.append(candidate)
            elif rank < width:
                score = log_probability / length**config.length_penalty
                self.ended.append(Answer([*self.beams[beam], token], log_probability, score))
        self.ended = sorted(self.ended, key=lambda answer: -answer.score)[:width]
        running = running[:width]
        self.is_done = is_last or (len(self.ended) == width and not self._can_improve(running[0][0], length))
        if self.is_done:
            return []
        self.beams = [[*self.beams[beam], token] for _, beam, token in running]
        return running

    def _can_improve(self, log_probability: float, length: int) -> bool:
        """Whether the best running beam may still beat an ended one, by the rule of `early_stopping`."""
        config = self.config
        if config.early_stopping is True:
            return False
        if config.early_stopping == "never" and config.length_penalty > 0:
            length = config.max_new_tokens
        return log_probability / length**config.length_penalty > self.ended[-1].score


@torch.inference_mode()
def beam_search(
    model: Owl2Model,
    cache: KVCache,
    logits: Tensor,
    config: GenerationConfig,
    prompts: Sequence[Sequence[int]] = (),
) -> list[Answer]:
    """Return the best answer of each row.

    Args:
        model: the model.
        cache: holds the prompts of R rows, and has room for `max_new_tokens - 1` more tokens; stays as it is.
        logits: (R, V) float32 after the prompts' last tokens.
        config: settings; `num_beams` is the number of beams.
        prompts: ids of each prompt, for the repetition penalty.

    Raises:
        GenerationError: more beams than tokens to continue them with.
    """
    ends = end_tokens(model, config)
    if config.num_beams > logits.shape[1] - len(ends):
        raise GenerationError(
            f"num_beams = {config.num_beams} is more than the {logits.shape[1] - len(ends)} tokens that can "
            f"continue an answer"
        )
    end_columns = torch.tensor(sorted(ends), device=logits.device)
    rows = active = [_Row(config, ends) for _ in cache.lengths]
    repetition = Repetition(config.repetition_penalty, prompts, logits.shape[1], logits.device)
    shared = min(cache.lengths)  # tokens that the beams of a row have in common
    totals = torch.zeros(len(rows), 1, device=logits.device)  # R W; a prompt is one beam
    for step in range(config.max_new_tokens):
        log_probabilities = repetition.apply(logits.log_softmax(-1))
        if step < config.min_new_tokens:
            log_probabilities.index_fill_(1, end_columns, float("-inf"))
        # Even if every beam could end with every end token, as many as there are beams would go on.
        found = _best(log_probabilities, totals, (1 + len(ends)) * config.num_beams)
        kept = [
            (number * totals.shape[1] + beam, log_probability, token)
            for number, row in enumerate(active)
            for log_probability, beam, token in row.advance(found[number])
        ]
        if not kept:
            break
        sources, sums, tokens = zip(*kept, strict=True)
        if step == 0 or any(row.is_done for row in active):
            cache = cache.copy_rows(sources)
            active = [row for row in active if not row.is_done]
        else:
            cache.move_rows(sources, begin=shared)
        totals = torch.tensor(sums, device=logits.device).unflatten(0, (len(active), -1))
        layout = decode_layout(cache.lengths, logits.device)
        new_tokens = torch.tensor(tokens, device=logits.device)
        repetition.take(sources)
        repetition.add(new_tokens)
        embeddings = model.embed(new_tokens, layout)
        logits = model.logits(model.hidden(embeddings, layout, cache))
    return [row.ended[0] for row in rows]


def _best(log_probabilities: Tensor, totals: Tensor, num_candidates: int) -> list[list[Candidate]]:
    """The most probable continuations of each row's beams, given (R * W, V) of the next token and (R, W)."""
    vocab_size = log_probabilities.shape[1]
    sums = (log_probabilities.view(*totals.shape, vocab_size) + totals[..., None]).flatten(1)  # R W*V
    values, places = sums.topk(min(num_candidates, sums.shape[1]))
    beams, tokens = places // vocab_size, places % vocab_size
    columns = zip(values.tolist(), beams.tolist(), tokens.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in columns]
