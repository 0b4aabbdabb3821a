"""owl2 as a model of EleutherAI's lm-evaluation-harness (0.4.13): text tasks.

`python -m owl2.eval.adapters.lm_eval run --model owl2 --model_args pretrained=CHECKPOINT --tasks ...` is the
harness's own command with this model added; `lm_eval.simple_evaluate(model=OwlLM(CHECKPOINT), ...)` does the
same in Python. The harness decides where a context ends and its continuation begins, that a prompt that is
too long loses its front, and the windows of a rolling likelihood, so numbers compare with its other models.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from owl2.api import Owl2
from owl2.eval.adapters.answering import (
    answer_all,
    load_once,
    read_batch_size,
    read_settings,
    score_continuations,
)
from owl2.eval.engines.local import OwlEngine
from owl2.generate import GenerationConfig, GenerationError
from owl2.processor import Encoding
from owl2.processor.template import END_MARK, render

try:
    from lm_eval.api.model import TemplateLM
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    TemplateLM = object

log = logging.getLogger(__name__)

ANSWER_MARK = "ASSISTANT:"


class OwlLM(TemplateLM):
    """A checkpoint as a model of the harness. One process; no images."""

    def __init__(
        self,
        pretrained: str | Path | Owl2,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int | str = 8,
    ):
        """Load a checkpoint (folder or hub id), or take a loaded model.

        Raises:
            ModuleNotFoundError: the harness is not installed.
            ValueError: a batch size that is no number.
            Owl2Error: see `owl2.load`.
        """
        if TemplateLM is object:
            raise ModuleNotFoundError("OwlLM needs the harness: pip install 'owl2[lm-eval]'", name="lm_eval")
        super().__init__()
        self.batch_size = read_batch_size(batch_size)
        self.owl = load_once(pretrained, device, dtype)
        self._engine = OwlEngine(self.owl)
        self._device = self.owl.model.device
        self._defaults = GenerationConfig(
            max_new_tokens=256, eos_token_id=self.owl.generation_config.eos_token_id
        )

    @property
    def eot_token_id(self) -> int:
        return self.owl.processor.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without context."""
        bos = self.owl.processor.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.owl.model.config.decoder.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        """Part of the harness's key for cached prompts."""
        return f"owl2-{self.owl.processor.template}-{self.owl.processor.tokenizer.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a prompt after BOS; `</s>`, which the chat template writes, is the end token."""
        tokenizer = self.owl.processor.tokenizer
        has_bos = tokenizer.add_bos and add_special_tokens is not False
        ids = [self.prefix_token_id] if has_bos else []
        first, *others = string.split(END_MARK)
        ids += tokenizer.encode(first)
        for piece in others:
            ids += [tokenizer.eos_token_id, *tokenizer.encode(piece)]
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Name the template, for the harness's records."""
        return self.owl.processor.template

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as text, as the model was trained to read it.

        It ends in a space: the harness puts nothing between a chat prompt and a choice, and moves the space
        to the choice, as training has it.

        Raises:
            TemplateError: turns that do not alternate.
        """
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        asked = chat_history if add_generation_prompt else chat_history[:-1]
        chunks = render(asked, self.owl.processor.template, generation_prompt=True, answer_prefix=f" {begun}")
        written = {"bos": "", "eos": END_MARK}
        return "".join(
            written.get(chunk.kind, f"{' ' if chunk.space else ''}{chunk.text}") for chunk in chunks
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(*request[1:]) for request in requests]
        cut_off = sum(len(pair[0]) < len(row[1]) for pair, row in zip(pairs, requests, strict=True))
        self._warn(cut_off, len(requests))
        scores = score_continuations(self._engine, pairs, self.batch_size)
        for request, score in zip(requests, scores, strict=True):
            if request[0] is not None:  # windows of a rolling likelihood have no text
                self.cache_hook.add_partial("loglikelihood", request[0], score)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length, 1
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(score for score, _ in self._loglikelihood_tokens(parts))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer each prompt up to its first stop string.

        Raises:
            GenerationError: generation arguments that cannot be met; names the task.
        """
        rows: list[tuple[Encoding, GenerationConfig]] = []
        cut_off = 0
        for request in requests:
            prompt, asked = request.args
            settings = read_settings(asked, self._defaults, request.task_name)
            # An answer writes its own space; that of the chat template is for choices.
            ids = self.tok_encode(prompt[:-1] if prompt.endswith(f"{ANSWER_MARK} ") else prompt)
            room = self.max_length - settings.max_new_tokens
            if room < 1:
                raise GenerationError(
                    f"task {request.task_name} asks for {settings.max_new_tokens:,} new tokens, but the "
                    f"context has {self.max_length:,}: set a smaller max_gen_toks with --gen_kwargs"
                )
            cut_off += len(ids) > room
            rows.append((Encoding(ids[-room:], [False] * min(len(ids), room)), settings))
        self._warn(cut_off, len(requests))
        answers = answer_all(self._engine, rows, self.batch_size)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Cut the front off a context that is too long; the last token is predicted and not read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise GenerationError(
                f"a continuation of {len(continuation):,} tokens exceeds the context of {self.max_length:,}"
            )
        return context[-room:], continuation

    def _warn(self, cut_off: int, total: int) -> None:
        if cut_off:
            log.warning("%d of %d prompts exceed the context and lose their front", cut_off, total)


if TemplateLM is not object:
    from lm_eval.api.registry import register_model

    register_model("owl2")(OwlLM)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
