"""The paper's own numbers: Tables 1 to 4 and 9 to 13 and Figure 3 of arXiv 2311.04257, row by row.

`paper.json` was copied from the paper and checked against its text; ids are `table/row`. The ablations of
Tables 5 to 8 are not in it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("paper.json")
MAIN_TABLES = ("1", "2", "3", "4", "fig3", "9", "13")
"""Tables with a benchmark's own figure; 10 to 12 divide those of Table 2."""


@dataclass(frozen=True)
class PaperRow:
    """One figure of the paper."""

    table: str
    benchmark: str
    split: str
    metric: str
    value: float
    mam: bool = True
    """False in the rows of Figure 3 that are trained without MAM."""
    std: float | None = None

    @property
    def place(self) -> str:
        return "Figure 3" if self.table == "fig3" else f"Table {self.table}"


@cache
def paper_rows() -> dict[str, PaperRow]:
    """All rows by id."""
    return {key: PaperRow(**row) for key, row in json.loads(FILE.read_text(encoding="utf-8")).items()}


def missing_rows(shown: set[str]) -> dict[str, PaperRow]:
    """Rows of the main tables, with MAM, that are not among these ids.

    Figure 3 repeats what Table 3 has; of those, Table 3's row counts.
    """
    rows = paper_rows()
    in_table_3 = {row.benchmark for row in rows.values() if row.table == "3"}
    return {
        key: row
        for key, row in rows.items()
        if key not in shown
        and row.table in MAIN_TABLES
        and row.mam
        and not (row.table == "fig3" and row.benchmark in in_table_3)
    }
