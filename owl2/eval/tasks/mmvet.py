"""MM-Vet: open questions that need several abilities at once, graded 0 to 1 by GPT-4 (Tables 2 and 11).

The total is the mean grade in percent; an ability's figure is the mean over the questions that need it, so
one question counts in several. The authors' prompt is that of their VLMEvalKit wrapper, which ends in a
blank; `owl2-2023` is the same without it. The paper's 36.2 is the mean of five gradings.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, Records, read_object, usable
from owl2.eval.metrics.averages import mean
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import BLANK, bare_question, turn
from owl2.processor.template import Message

ABILITIES = {
    "rec": "11/139",
    "ocr": "11/140",
    "know": "11/141",
    "gen": "11/142",
    "spat": "11/143",
    "math": "11/144",
}
SOURCE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
STEP_BY_STEP = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)


def directly(item: Item) -> list[Message]:
    """The authors' VLMEvalKit wrapper, which also breaks the line before `ASSISTANT:`."""
    return turn(item, f"{item.question}\nAnswer the question directly. ")


def step_by_step(item: Item) -> list[Message]:
    """lmms-eval's default, which asks for a chain of thought."""
    return turn(item, f"{STEP_BY_STEP}{item.question}")


@task
class MMVet(Task):
    name = "mmvet"
    title = "MM-Vet"
    files = (
        DataFile("mm-vet/mm-vet.json", SOURCE),
        DataFile("mm-vet/images", SOURCE),
    )
    templates: ClassVar[dict[str, Template]] = {
        "owl2-2023": Template("not published; owl2-2024 with the ending of 2023", directly),
        "owl2-2024": Template("VLMEvalKit, vlm/mplug_owl2.py (by the authors)", directly, BLANK),
        "llava15": Template("LLaVA, llava-mm-vet.jsonl", bare_question),
        "lmms-eval": Template("lmms-eval 0.7.3, mmvet.yaml", step_by_step),
    }
    # The wrapper's length penalty, for those who ask for beams.
    decoding = Decoding(max_new_tokens=512, min_new_tokens=1, length_penalty=0.0)
    expected = (218,)
    judge = "mmvet"

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        file = self.find(data)["mm-vet/mm-vet.json"]
        images = MediaFolder(self.name, data, "mm-vet/images")
        rows: Records = [
            Record(f"{file}: {name}", {**row, "id": name})
            if isinstance(row, dict)
            else Skipped(f"{file}: {name}", f"{type(row).__name__}, expected an object")
            for name, row in read_object(file).items()
        ]

        def make(record: Record) -> Item:
            name, abilities = record.text("imagename"), record.texts("capability")
            return Item(
                id=record.text("id"),
                question=record.text("question"),
                images=(images.image(record, name),),
                references=(record.text("answer"),),
                category={"abilities": "+".join(sorted(abilities))},
                cluster=name,
                extra={"abilities": abilities},
            )

        yield from usable(rows, make)

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        graded = [(answer, answer.grade["score"]) for answer in answers if answer.grade is not None]
        if not graded:
            return []
        scores = [_mean(graded, "", "2/11")]
        for ability, paper_id in ABILITIES.items():
            chosen = [pair for pair in graded if ability in pair[0].item.extra["abilities"]]
            if chosen:
                scores.append(_mean(chosen, ability, paper_id))
        return scores


def _mean(graded: Sequence[tuple[Answer, float]], group: str, paper_id: str) -> Score:
    answers, grades = [answer for answer, _ in graded], [grade for _, grade in graded]
    return mean("judge's score", answers, grades, group=group, paper_id=paper_id)
