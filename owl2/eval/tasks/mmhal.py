"""MMHal-Bench: 96 questions that invite hallucination, answers rated 0 to 6 by GPT-4 (Table 13).

Score is the mean rating; an answer rated below 3 is a hallucination. Ratings by type use `question_type`,
not the order of the file as the official script does. The authors published no prompt; the question alone is
asked. The paper's rows are GPT-4's of late 2023 (the official judge is gpt-4-0314); 2.17 is 209/96 cut off.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import as_records, folder_images, read_json
from owl2.eval.scoring.averages import mean, mean_by_group
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import bare_question

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
        "owl2-paper": Template("not published; the question alone", bare_question, answer_prefix=" "),
        "llava15": Template("LLaVA-RLHF: the question alone", bare_question),
    }
    decoding = Decoding(max_new_tokens=512, min_new_tokens=1)
    expected = (96,)
    judge = "mmhal"

    def items(self, data: Path) -> list[Item]:
        file = self.find(data)["MMHal-Bench/response_template.json"]
        records = as_records(read_json(file), file)
        names = [PurePosixPath(record.text("image_src")).name for record in records]
        images = folder_images(self.name, data, "MMHal-Bench/images", names)
        items = [
            Item(
                # One image may be asked about twice, so the place in the file belongs to the id.
                id=f"{number}/{record['image_id']}",
                question=record.text("question"),
                images=(images[name],),
                references=(record.text("gt_answer"),),
                category={"type": record.one_of("question_type", TYPES), "topic": record["question_topic"]},
                cluster=record["image_id"],
                extra={"image_content": tuple(record["image_content"])},
            )
            for number, (record, name) in enumerate(zip(records, names, strict=True))
        ]
        return checked(self.name, items)

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
