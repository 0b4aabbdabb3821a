"""GQA: compositional questions on scenes, made from scene graphs, with one right word (Hudson, Manning 2019).

Table 16 says test-balanced; its answers are secret, and public practice, which the paper's figure fits, is
testdev_balanced (12,578 questions). Official layout is an object of questions by id; Qwen's lines are taken,
too. The authors published neither prompt nor matching: the prompt is that of their VQA script, matching is
LLaVA's (lower case, no period at the end); the very string and Qwen's reading stand below it.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from owl2.eval.formats.annotations import Question, checked, read_rows, text_of
from owl2.eval.formats.records import Record, folder_images, official
from owl2.eval.metrics.gqa import GqaVariant, gqa_match
from owl2.eval.scoring.averages import mean, mean_by_group
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, task
from owl2.eval.tasks.base import SHORT_ANSWER, UNPUBLISHED_SHORT_ANSWER_TEMPLATES, WordsTask

SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
LICENCE = "CC BY 4.0"


@task
class Gqa(WordsTask):
    """Balanced questions of testdev."""

    name = "gqa"
    title = "GQA testdev-balanced"
    files = (
        DataFile("gqa/testdev_balanced_questions.json", SOURCE, LICENCE),
        DataFile(
            "gqa/testdev_balanced.jsonl",
            "https://github.com/QwenLM/Qwen-VL/blob/master/eval_mm/EVALUATION.md",
            LICENCE,
            is_required=False,
            instead_of="gqa/testdev_balanced_questions.json",
        ),
        DataFile("gqa/images", SOURCE, LICENCE),
    )
    templates = UNPUBLISHED_SHORT_ANSWER_TEMPLATES
    decoding = SHORT_ANSWER
    expected = (12_578,)

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        questions = _read(official(found, self.files, "gqa/testdev_balanced_questions.json")[0])
        images = folder_images(self.name, data, "gqa/images", [question.file for question in questions])
        items = [
            Item(
                id=question.id,
                question=question.text,
                images=(images[question.file],),
                references=(question.source.text("answer"),),
                category=_types(question.source),
                cluster=question.file,
            )
            for question in questions
        ]
        return checked(self.name, items)

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


def _read(file: Path) -> list[Question]:
    content = read_rows(file)
    if isinstance(content, list):
        return [
            Question(
                text_of(row, "question_id"), row.text("question"), PurePosixPath(row.text("image")).name, row
            )
            for row in content
        ]
    questions = []
    for key, fields in content.items():
        if not isinstance(fields, dict):
            raise EvalDataError(f"{file}: {key} is {fields!r:.60}, expected a question by its id")
        row = Record(f"{file}: question {key}", fields)
        questions.append(Question(key, row.text("question"), f"{row.text('imageId')}.jpg", row))
    return questions


def _types(row: Record) -> dict[str, str]:
    types = row.get("types", {})
    return {kind: str(types[kind]) for kind in ("structural", "semantic") if kind in types}


def _matches(answer: Answer, variant: GqaVariant) -> float:
    said = answer.output if variant == "exact" else answer.parsed
    return float(said is not None and gqa_match(said, answer.item.references[0], variant))
