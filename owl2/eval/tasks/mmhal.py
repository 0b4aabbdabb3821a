"""MMHal-Bench: 96 questions that invite hallucination, answers rated 0 to 6 by GPT-4 (Table 13).

The score is the mean rating; an answer rated below 3 is a hallucination. Ratings by type use `question_type`,
not the order of the file as the official script does. The authors published no prompt; the question alone is
asked. The paper's judge is GPT-4 of late 2023 (the official one is gpt-4-0314); 2.17 is 209/96, truncated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, read_records, usable
from owl2.eval.metrics.averages import mean, mean_by_group
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import BLANK, bare_question

TYPES = {
    "attribute": "13/156",
    "adversarial": "13/157",
    "comparison": "13/158",
    "counting": "13/159",
    "relation": "13/160",
    "environment": "13/161",
    "holistic": "13/162",
    "other": "13/163",
}
HALLUCINATION_BELOW = 3
SOURCE = "https://huggingface.co/datasets/Shengcao1006/MMHal-Bench"


@task
class MMHal(Task):
    name = "mmhal"
    title = "MMHal-Bench"
    files = (
        DataFile("MMHal-Bench/response_template.json", SOURCE, "Apache-2.0"),
        DataFile("MMHal-Bench/images", f"{SOURCE} (or each `image_src`)", "Apache-2.0"),
    )
    templates: ClassVar[dict[str, Template]] = {
        "owl2-2023": Template("not published; the question alone", bare_question),
        "owl2-2024": Template("not published; the question alone", bare_question, BLANK),
        "llava15": Template("LLaVA-RLHF: the question alone", bare_question),
    }
    decoding = Decoding(max_new_tokens=512, min_new_tokens=1)
    expected = (96,)
    judge = "mmhal"

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        file = self.find(data)["MMHal-Bench/response_template.json"]
        images = MediaFolder(self.name, data, "MMHal-Bench/images")

        def make(record: Record) -> Item:
            name = PurePosixPath(record.text("image_src")).name
            return Item(
                # Several questions may be about one image, so the place in the file is part of the id.
                id=f"{record.number}/{record.id('image_id')}",
                question=record.text("question"),
                images=(images.image(record, name),),
                references=(record.text("gt_answer"),),
                category={
                    "type": record.one_of("question_type", TYPES),
                    "topic": record.text("question_topic"),
                },
                cluster=record.id("image_id"),
                extra={"image_content": record.texts("image_content") if record["image_content"] else ()},
            )

        yield from usable(read_records(file), make)

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        graded = [(answer, answer.grade["rating"]) for answer in answers if answer.grade is not None]
        if not graded:
            return []
        rated, ratings = [answer for answer, _ in graded], [rating for _, rating in graded]
        hallucinated = [float(rating < HALLUCINATION_BELOW) for rating in ratings]
        return [
            mean("judge's rating", rated, ratings, scale=1.0, is_share=False, paper_id="13/154"),
            mean("hallucination rate", rated, hallucinated, scale=1.0, paper_id="13/155"),
            *mean_by_group(
                "type", "judge's rating", rated, ratings, scale=1.0, is_share=False, paper_ids=TYPES
            ),
        ]
