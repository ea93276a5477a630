"""Measuring in turns, and the rows of the table. Knows nothing of what is measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Round = Callable[[], Sequence[float]]
"""One contender's turn: its samples, in seconds (or another unit, the same for all contenders)."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: turns of each contender.
        scale: by how much sizes and counts are reduced; 1 for a result that counts.
    """

    rounds: int = 7
    scale: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against one rival. ``p99`` is nan where there are too few samples for it."""

    benchmark: str
    ours: float
    ours_p99: float
    rival: str
    theirs: float
    theirs_p99: float
    unit: str
    bar: float | None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def take_turns(contenders: Mapping[str, Round], rounds: int) -> dict[str, list[Sequence[float]]]:
    """Let each contender have its turn, ``rounds`` times."""
    samples: dict[str, list[Sequence[float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, turn in contenders.items():
            samples[name].append(turn())
    return samples


def median(turns: Sequence[Sequence[float]]) -> float:
    """The median over the turns of each turn's median."""
    return statistics.median(statistics.median(turn) for turn in turns)


def p99(turns: Sequence[Sequence[float]]) -> float:
    """The 99th percentile of all samples; nan for fewer than a hundred."""
    samples = sorted(sample for turn in turns for sample in turn)
    return samples[math.ceil(0.99 * len(samples)) - 1] if len(samples) >= 100 else math.nan


def compare(
    benchmark: str,
    ours: Round,
    rivals: Mapping[str, Round],
    plan: Plan,
    *,
    bar: float | Mapping[str, float] | None = None,
    unit: str = "s",
) -> list[Row]:
    """Measure ours and the rivals in turns: one row a rival.

    Args:
        bar: the ratio to the first rival that is aimed at, or those to several, by name; below is better.
    """
    bars = bar if isinstance(bar, Mapping) else {name: bar for name in list(rivals)[:1]}
    samples = take_turns({"hybriddist": ours, **rivals}, plan.rounds)
    mine = samples.pop("hybriddist")
    return [
        Row(benchmark, median(mine), p99(mine), name, median(turns), p99(turns), unit, bars.get(name))
        for name, turns in samples.items()
    ]
