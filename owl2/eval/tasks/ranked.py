"""Ranking: multiple choice by the likelihood of each choice's text instead of by what the model writes.

Such a task is registered next to the generating one as `<name>_ppl`, after OpenCompass. The engine answers
with the letter whose text has the highest mean log-likelihood per token behind `ASSISTANT:`. OpenCompass
divides the likelihood of prompt and option together by their length: the same order where all options have as
many tokens (MMLU, BoolQ, AGIEval), perhaps another where they are sentences (ARC, HellaSwag).
"""

from typing import ClassVar, Literal

from owl2.eval.task import Decoding, Item, Task


class Ranked(Task):
    """Mix-in of tasks that compare likelihoods; comes before the generating task among the bases."""

    mode: ClassVar[Literal["generate", "rank"]] = "rank"
    decoding = Decoding(max_new_tokens=1)

    def parse(self, item: Item, output: str) -> str | None:
        return output if output in item.choices else None
