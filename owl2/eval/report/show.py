"""What a benchmark asks: some of its questions as a model gets them, in the terminal and as a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl2.eval.engines.engine import images_of, text_of
from owl2.eval.report.page import shortened, thumbnails
from owl2.eval.runner import RunError, check_template, choose_template, prompt_of
from owl2.eval.sampling import sample_items
from owl2.eval.task import DataMissing, Item, Task
from owl2.pages.page import render

CONVERSATION = "mplug_owl2"
"""The template of the released processor, laid around what is asked."""


class Shown:
    """Some questions of a task."""

    def __init__(self, task: Task, data: Path, template: str | None = None, count: int = 3):
        """Read the task's files.

        Raises:
            RunError: the task has no such template, or its files are not there.
            EvalDataError: they cannot be read.
        """
        check_template([task], template)
        self.task, self.template = task, choose_template(task, template)
        try:
            items = task.load(data).items
        except DataMissing as error:
            known = f"`owl2 eval data --data {data} --tasks {task.name}` says where to get them"
            raise RunError(f"{error} below {data}; {known}") from None
        self.num_items = len(items)
        of_clusters = list({item.cluster or item.id: item for item in reversed(items)}.values())[::-1]
        chosen = sample_items(task.name, of_clusters, count) if len(of_clusters) > count else items[:count]
        self.cards = [self._card(item) for item in chosen]

    @property
    def facts(self) -> dict[str, str]:
        """What holds for all of them."""
        decoding = ", ".join(f"{name} {value:g}" for name, value in self._decoding().items())
        others = ", ".join(name for name in self.task.templates if name != self.template)
        return {
            "questions": f"{self.num_items:,}",
            "template": self.template + (f" (others: {others})" if others else ""),
            "from": self.task.template(self.template).source,
            "decoding": "likeliest of the choices" if self.task.mode == "rank" else decoding,
        }

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{self.task.title} ({self.task.name})", *_lines(self.facts)]
        for card in self.cards:
            images = [card["error"]] if card["error"] else [name for name, _ in card["images"]]
            lines += ["", card["place"], *_lines({**card["facts"], "images": "\n".join(images)})]
        return "\n".join(lines)

    def page(self) -> str:
        """As an HTML document."""
        told = [f"{name}: {text}" for name, text in self.facts.items() if name not in ("from", "questions")]
        cards = [{**card, "facts": shortened(card["facts"])} for card in self.cards]
        return render(
            "questions.html",
            title=f"{self.task.title}: what is asked",
            source="; ".join([self.facts["from"], *told]),
            facts=[(self.facts["questions"], "questions"), (f"{len(cards)}", "shown")],
            cards=cards,
        )

    def _decoding(self) -> dict[str, float]:
        return self.task.decoding_of(self.template).to_dict()

    def _card(self, item: Item) -> dict[str, Any]:
        prompt = prompt_of(self.task, self.template, self.task.decoding_of(self.template), item)
        images, error = thumbnails(images_of(prompt))
        facts = {
            "prompt": text_of(prompt, CONVERSATION),
            "compared": "\n".join(prompt.choices.values()),
            "reference": "\n".join(dict.fromkeys(item.references)),
        }
        facts = {name: text for name, text in facts.items() if text}
        return {"place": f"question {item.id}", "images": images, "error": error, "facts": facts}


def _lines(facts: dict[str, str]) -> Sequence[str]:
    """A line for each fact; further lines of a text are indented below its first."""
    return [
        f"  {name:10} {text.replace(chr(10), chr(10) + 13 * ' ')}" for name, text in facts.items() if text
    ]
