"""XSum: one-sentence summaries of news (Figure 3), by ROUGE.

As OpenCompass: the first 1000 lines of dev, a full-width colon in the prompt, the first line of the output.
Fields are OpenCompass's (`dialogue`, `summary`) or the dataset's own (`document`). The paper gives one figure
without saying which ROUGE; the first that OpenCompass lists is assumed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, read_records, usable
from owl2.eval.metrics.averages import mean
from owl2.eval.metrics.rouge import METRICS, rouge
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import opencompass, turn
from owl2.processor.template import Message

FILE = "Xsum/dev.jsonl"
FIRST = 1000


def brief_summary(item: Item) -> list[Message]:
    """Xsum_gen_31397e."""
    return turn(
        item, f"Document：{item.question}\nBased on the previous text, provide a brief single summary:"
    )


@task
class XSum(Task):
    name = "xsum"
    title = "XSum (first 1000 of dev)"
    files = (
        DataFile(
            FILE,
            "https://github.com/open-compass/opencompass, OpenCompassData; huggingface EdinburghNLP/xsum",
        ),
    )
    templates: ClassVar[dict[str, Template]] = opencompass("Xsum_gen_31397e", brief_summary)
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    # The limit of OpenCompass's model configurations; the dataset's sets none.
    decoding = Decoding(max_new_tokens=100)
    expected = (FIRST,)
    defects = ("OpenCompass's file has rows whose dialogue is NaN, line 220 for one: skipped, as there",)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        yield from usable(read_records(self.find(data)[FILE])[:FIRST], _item)

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip().split("\n")[0].strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        values = [rouge(answer.parsed or "", answer.item.references) for answer in answers]
        return [
            mean(metric, answers, [value[metric] for value in values], paper_id="fig3/40" if first else "")
            for metric, first in ((metric, metric == METRICS[0]) for metric in METRICS)
        ]


def _item(record: Record) -> Item:
    document = record.text("dialogue" if "dialogue" in record.fields else "document")
    return Item(id=str(record.number + 1), question=document, references=(record.text("summary"),))
