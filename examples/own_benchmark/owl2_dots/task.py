"""The benchmark: 12 questions, exact match."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, read_records, usable
from owl2.eval.metrics.averages import is_right, mean
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import bare_question, short_answer


@task
class Dots(Task):
    """How many dots?"""

    name = "dots"
    title = "Dots"
    files = (
        DataFile("dots/test.json", "python -m owl2_dots.draw", "CC0"),
        DataFile("dots/images", "python -m owl2_dots.draw", "CC0"),
    )
    templates: ClassVar[dict[str, Template]] = {
        "short": Template("ours", short_answer),
        "bare": Template("ours", bare_question),
    }
    decoding = Decoding(max_new_tokens=5)
    expected = (12,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        images = MediaFolder(self.name, data, "dots/images")

        def item(record: Record) -> Item:
            return Item(
                id=record.id("id"),
                question=record.text("question"),
                images=(images.image(record, record.text("image")),),
                references=(record.text("answer"),),
                cluster=record.text("image"),
            )

        yield from usable(read_records(found["dots/test.json"]), item)  # a bad record costs itself

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip().rstrip(".") or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [mean("accuracy", answers, [float(is_right(answer)) for answer in answers])]
