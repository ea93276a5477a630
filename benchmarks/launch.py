"""From nothing to the first result of every worker: `addprocs` against a spawning `Pool`.

Each turn is a fresh interpreter that runs one of the two ``cold_*`` scripts, so that every launch is a first one: no
warm template process, no cached imports. The script's own clock starts when its library is imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.rounds import Plan, Round, Row, compare

ROOT = Path(__file__).resolve().parents[1]


def cold(script: str, workers: int) -> Round:
    """Turns of running ``benchmarks.<script>``, which prints its seconds."""

    def turn() -> list[float]:
        command = [sys.executable, "-m", f"benchmarks.{script}", str(workers)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
        return [float(done.stdout)]

    return turn


def two(plan: Plan) -> list[Row]:
    """2 workers."""
    rivals = {"Pool(2), spawn": cold("cold_pool", 2)}
    return compare("addprocs(2), first results", cold("cold_addprocs", 2), rivals, plan, bar=1.0)


def sixteen(plan: Plan) -> list[Row]:
    """16 workers."""
    rivals = {"Pool(16), spawn": cold("cold_pool", 16)}
    return compare("addprocs(16), first results", cold("cold_addprocs", 16), rivals, plan, bar=0.5)
