"""Hostile text in every field of a page: whatever a page shows stays text."""

import dataclasses
from collections.abc import Callable
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest
from markupsafe import Markup

from owl2.pages.page import render

HOSTILE = """'"></style></pre><script>alert("owl")</script><img src=x onerror=alert(1)> """


def poisoned(value: Any) -> Any:
    """The same data with hostile text before every text; the keys of a mapping are our own."""
    if isinstance(value, str):
        return value if isinstance(value, Markup) or not value else HOSTILE + value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: poisoned(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        )
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([poisoned(item) for item in value])
    return value


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, tuple[str, ...]]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, tuple(sorted(name for name, _ in attrs))))


def elements(html: str) -> set[tuple[str, tuple[str, ...]]]:
    """(tag, names of its attributes) of all elements of a page."""
    parser = _Elements()
    parser.feed(html)
    return parser.found


def check_that_text_stays_text(
    module: ModuleType, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Render the page that `make` writes through `module.render` again with hostile text in all its data."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def remember(template: str, **data: Any) -> str:
        seen.append((template, data))
        return render(template, **data)

    monkeypatch.setattr(module, "render", remember)
    make()
    [(template, data)] = seen
    page, hostile = render(template, **data), render(template, **poisoned(data))
    assert hostile.count("alert(") > page.count("alert(") + 10
    assert "<script" not in hostile
    assert elements(hostile) <= elements(page)
