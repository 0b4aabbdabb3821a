"""XSum: one-sentence summaries of news (Figure 3), by ROUGE.

As OpenCompass: the first 1000 lines of dev, a full-width colon in the prompt, the first line of the output.
Fields are OpenCompass's (`dialogue`, `summary`) or the dataset's own (`document`). The paper gives one figure
without saying of which ROUGE; the first that OpenCompass lists is taken to be it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import Record, read_jsonl
from owl2.eval.metrics.rouge import METRICS, rouge
from owl2.eval.scoring.averages import mean
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import turn
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
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, Xsum_gen_31397e.py; the paper names it", brief_summary)
    }
    # The limit of OpenCompass's model configurations; the dataset's sets none.
    decoding = Decoding(max_new_tokens=100)
    expected = (FIRST,)

    def items(self, data: Path) -> list[Item]:
        records = read_jsonl(self.find(data)[FILE])[:FIRST]
        return checked(self.name, [_item(number, record) for number, record in enumerate(records, start=1)])

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip().split("\n")[0].strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        values = [rouge(answer.parsed or "", answer.item.references) for answer in answers]
        return [
            mean(metric, answers, [value[metric] for value in values], paper_id="fig3/40" if first else "")
            for metric, first in ((metric, metric == METRICS[0]) for metric in METRICS)
        ]


def _item(number: int, record: Record) -> Item:
    document = record.text("dialogue" if "dialogue" in record.fields else "document")
    return Item(id=str(number), question=document, references=(record.text("summary"),))
