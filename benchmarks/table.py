"""The rows as a Markdown table and as JSON. Knows nothing of what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.rounds import Row

HEAD = ["what", "hybriddist", "p99", "against", "median", "p99", "ratio", "bar"]


def quantity(value: float, unit: str) -> str:
    """Three digits that a reader can compare: 12.3 µs, 45.6 ms, 1.23 s, 17.0 MB."""
    if math.isnan(value):
        return "–"
    if unit == "s":
        value, unit = next(
            (value * factor, name) for factor, name in [(1e6, "µs"), (1e3, "ms"), (1, "s")]
            if value * factor < 1000 or name == "s"
        )  # fmt: skip
    digits = max(0, 2 - int(math.log10(value))) if value >= 1 else 3
    return f"{value:.{digits}f} {unit}"


def cells(row: Row) -> list[str]:
    bar = "–" if row.bar is None else f"≤ {row.bar:.3g}"
    ours, theirs = quantity(row.ours, row.unit), quantity(row.theirs, row.unit)
    p99s = quantity(row.ours_p99, row.unit), quantity(row.theirs_p99, row.unit)
    ratio = f"{row.ratio:.2f}" + (" **missed**" if row.bar is not None and row.ratio > row.bar else "")
    return [row.benchmark, ours, p99s[0], row.rival, theirs, p99s[1], ratio, bar]


def markdown(facts: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The machine, then the table, its columns aligned."""
    table = [HEAD, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([", ".join(f"{name}: {fact}" for name, fact in facts.items()), "", *lines])


def as_json(facts: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The same with all digits; a missing p99 is null."""
    plain = [{k: None if v != v else v for k, v in {**asdict(row), "ratio": row.ratio}.items()} for row in rows]
    return json.dumps({**facts, "rows": plain}, indent=1)
