"""GQA: compositional questions on scenes, made from scene graphs, with one right word (Hudson, Manning 2019).

Table 16 says test-balanced; its answers are secret, and public practice, which the paper's figure fits, is
testdev_balanced (12,578 questions). The official layout is an object of questions by id; Qwen's lines are
read, too. The authors published neither prompt nor matching: the prompt is that of their VQA script, matching
is LLaVA's (lower case, no period at the end); figures by the exact string and by Qwen's reading follow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, Records, official, read_any, usable
from owl2.eval.metrics.averages import mean, mean_by_group
from owl2.eval.metrics.gqa import GqaVariant, gqa_match
from owl2.eval.task import Answer, DataFile, Item, Score, Skipped, task
from owl2.eval.tasks.base import UNPUBLISHED_VQA, WordsTask, qwen_file
from owl2.eval.tasks.prompts import SHORT_ANSWER

SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
LICENCE = "CC BY 4.0"


@task
class Gqa(WordsTask):
    """Balanced questions of testdev."""

    name = "gqa"
    title = "GQA testdev-balanced"
    files = (
        DataFile("gqa/testdev_balanced_questions.json", SOURCE, LICENCE),
        qwen_file("gqa/testdev_balanced.jsonl", "gqa/testdev_balanced_questions.json", LICENCE),
        DataFile("gqa/images", SOURCE, LICENCE),
    )
    templates = UNPUBLISHED_VQA
    decoding = SHORT_ANSWER
    expected = (12_578,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        images = MediaFolder(self.name, data, "gqa/images")

        def make(row: Record) -> Item:
            name = (
                PurePosixPath(row.text("image")).name
                if "image" in row.fields
                else f"{row.text('imageId')}.jpg"
            )
            return Item(
                id=row.id("question_id"),
                question=row.text("question"),
                images=(images.image(row, name),),
                references=(row.text("answer"),),
                category=_types(row),
                cluster=name,
            )

        yield from usable(_read(official(found, self.files, "gqa/testdev_balanced_questions.json")), make)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Exact match as LLaVA decides it, then as others do, then by structural and semantic type."""
        variants: tuple[GqaVariant, ...] = ("llava", "exact", "qwen", "lavis")
        values = {variant: [_matches(answer, variant) for answer in answers] for variant in variants}
        scores = [
            mean(f"accuracy ({variant})", answers, values[variant], paper_id="" if number else "1/4")
            for number, variant in enumerate(variants)
        ]
        for kind in ("structural", "semantic"):
            scores += mean_by_group(kind, "accuracy (llava)", answers, values["llava"])
        return scores


def _read(file: Path) -> Records:
    """Qwen's lines, or the official questions with their key as `question_id`."""
    content = read_any(file)
    if not isinstance(content, dict):
        return content
    if "question_id" in content:  # one line of Qwen's
        return [Record(f"{file}: line 1", content)]
    return [
        Record(f"{file}: question {key}", {**fields, "question_id": key}, number)
        if isinstance(fields, dict)
        else Skipped(f"{file}: question {key}", f"{type(fields).__name__}, expected an object")
        for number, (key, fields) in enumerate(content.items())
    ]


def _types(row: Record) -> dict[str, str]:
    types = row.inner("types", row.get("types", {})).fields
    return {kind: str(types[kind]) for kind in ("structural", "semantic") if kind in types}


def _matches(answer: Answer, variant: GqaVariant) -> float:
    said = answer.output if variant == "exact" else answer.parsed
    return float(said is not None and gqa_match(said, answer.item.references[0], variant))
