"""Base tasks: open questions on images, captions, open questions on clips.

A benchmark of one of these kinds adds its files and its reader. The base has the prompts and decoding of the
authors' scripts, the reading of the answer (the words as they are, as in all of the authors' scripts) and the
figures.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import ClassVar

from owl2.eval.metrics.averages import mean, mean_by_group
from owl2.eval.metrics.cider import cider_d
from owl2.eval.metrics.exact import ExactVariant, exact_match
from owl2.eval.metrics.vqa import Variant, vqa_accuracy
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template
from owl2.eval.tasks.prompts import (
    CAPTIONS,
    QUESTION_ALONE,
    SHORT_ANSWER,
    VQA,
    by_analogy,
    caption,
    short_answer_below,
)

OTHER_SHORT_ANSWER = {
    "question": QUESTION_ALONE,
    "llava15": Template("LLaVA-1.5, also MMMU-Benchmark/MMMU issue 1 by the authors", short_answer_below),
    "lmms-eval": Template("lmms-eval 0.7.2", short_answer_below),
}
UNPUBLISHED_VQA = {**by_analogy(VQA, "by analogy with evaluate_vqa.py"), **OTHER_SHORT_ANSWER}


def qwen_file(path: str, instead_of: str, licence: str) -> DataFile:
    """Qwen's conversion of an official file to JSON lines, which the authors used."""
    source = "https://github.com/QwenLM/Qwen-VL/blob/master/eval_mm/EVALUATION.md"
    return DataFile(path, source, licence, is_required=False, instead_of=instead_of)


def video_chatgpt_files(instead_of: str, licence: str) -> tuple[DataFile, DataFile]:
    """Video-ChatGPT's conversion of an official file, in the same folder: questions and answers."""
    folder, source = PurePosixPath(instead_of).parent, "https://github.com/mbzuai-oryx/Video-ChatGPT"
    return (
        DataFile(f"{folder}/test_q.json", source, licence, is_required=False, instead_of=instead_of),
        DataFile(f"{folder}/test_a.json", f"{source} (with test_q.json)", licence, is_required=False),
    )


class WordsTask(Task):
    """A benchmark whose answer is all the model wrote."""

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip() or None


class VqaTask(WordsTask):
    """Open questions with ten people's answers."""

    templates: ClassVar[Mapping[str, Template]] = {**VQA, **OTHER_SHORT_ANSWER}
    decoding = SHORT_ANSWER
    variants: ClassVar[tuple[Variant, ...]] = ("lavis", "official", "evalai")
    """The first is compared with the paper's figure; the authors' script has LAVIS's variant."""
    paper_id: ClassVar[str] = ""

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """VQA accuracy by variant, then by category; nothing where the split keeps its answers secret."""
        known = [answer for answer in answers if answer.item.references]
        if not known:
            return []
        scores, values = [], {}
        for number, variant in enumerate(self.variants):
            values[variant] = [
                0.0 if answer.parsed is None else vqa_accuracy(answer.parsed, answer.item.references, variant)
                for answer in known
            ]
            paper_id = "" if number else self.paper_id
            scores.append(mean(f"VQA accuracy ({variant})", known, values[variant], paper_id=paper_id))
        first = self.variants[0]
        for kind in _kinds(known):
            scores += mean_by_group(kind, f"VQA accuracy ({first})", known, values[first])
        return scores


class CaptionTask(WordsTask):
    """One sentence an image, compared with several by people."""

    templates: ClassVar[Mapping[str, Template]] = {
        **CAPTIONS,
        "lmms-eval": Template("lmms-eval 0.7.2", caption),
    }
    decoding = Decoding(max_new_tokens=60, min_new_tokens=8)
    paper_id: ClassVar[str] = ""

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """CIDEr-D x 100; its word weights come from the references of these answers, so a subset differs."""
        candidates = [answer.parsed or "" for answer in answers]
        values = cider_d(candidates, [answer.item.references for answer in answers])
        return [mean("CIDEr", answers, values, is_share=False, paper_id=self.paper_id)]


class VideoQaTask(WordsTask):
    """Open questions on clips with one right word.

    The authors published neither the prompt nor the number of frames nor how a match is decided. Their
    mPLUG-2 compared with the right word, in lower case. `GPT` figures need a judge's grades.
    """

    templates: ClassVar[Mapping[str, Template]] = {
        **by_analogy(VQA, "by analogy with evaluate_vqa.py"),
        "owl2-newline": Template("the authors' advice for short answers (MMMU issue 1)", short_answer_below),
    }
    decoding = SHORT_ANSWER
    judge = "video_chatgpt"
    paper_ids: ClassVar[tuple[str, str, str]] = ("", "", "")
    """Rows of exact match, the judge's accuracy and the judge's score."""

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Exact match by variant, then the judge's figures over the graded answers, then by category."""
        scores = []
        values: dict[ExactVariant, list[float]] = {}
        variants: dict[ExactVariant, str] = {"lower": self.paper_ids[0], "raw": "", "evalai": ""}
        for variant, paper_id in variants.items():
            values[variant] = [_matches(answer, variant) for answer in answers]
            scores.append(mean(f"exact match ({variant})", answers, values[variant], paper_id=paper_id))
        graded = [(answer, answer.grade) for answer in answers if answer.grade is not None]
        if graded:
            judged = [answer for answer, _ in graded]
            right = [grade["is_right"] for _, grade in graded]
            relevance = [grade["score"] for _, grade in graded]
            scores.append(mean("GPT accuracy", judged, right, paper_id=self.paper_ids[1]))
            scores.append(mean("GPT score", judged, relevance, scale=1.0, paper_id=self.paper_ids[2]))
        for kind in _kinds(answers):
            scores += mean_by_group(kind, "exact match (lower)", answers, values["lower"])
        return scores


def _matches(answer: Answer, variant: ExactVariant) -> float:
    if answer.parsed is None:
        return 0.0
    said = answer.output if variant == "raw" else answer.parsed
    return float(exact_match(said, answer.item.references, variant))


def _kinds(answers: Sequence[Answer]) -> list[str]:
    """Kinds of category that tell answers apart."""
    groups: dict[str, set[str]] = {}
    for answer in answers:
        for kind, group in answer.item.category.items():
            groups.setdefault(kind, set()).add(group)
    return [kind for kind, names in groups.items() if len(names) > 1]
