"""The example of a reduction: the same number for any number of workers, and the whole of it as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.monte_carlo_pi import count_inside, show

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "monte_carlo_pi.py"


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_parts_are_reproducible_and_independent() -> None:
    counts = [count_inside(part, seed=3, points=10_000) for part in range(20)]
    assert counts == [count_inside(part, seed=3, points=10_000) for part in range(20)]
    assert len(set(counts)) > 10
    assert counts[0] != count_inside(0, seed=4, points=10_000)
    assert sum(counts) / 200_000 == pytest.approx(0.7854, abs=0.006)  # six standard errors


def test_show_says_how_far_off_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(785, 1000)
    shown = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["pi is about"] == "3.140000"
    assert shown["error"] == "0.001593"
    assert shown["standard error"] == "0.051965"


def test_the_whole_job_gives_the_same_for_any_number_of_workers() -> None:
    estimates = set()
    for workers in (1, 3):
        done = run("--points", 100_001, "--part", 10_000, "--workers", workers)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"^points +110,000$", done.stdout, re.MULTILINE)  # whole parts
        assert re.search(rf"^parallel: +[0-9.]+ s with {workers} workers$", done.stdout, re.MULTILINE)
        assert done.stdout.endswith("the results are equal\n")
        estimates.add(re.findall(r"^inside +([0-9,]+)$", done.stdout, re.MULTILINE)[0])
    assert len(estimates) == 1


def test_without_the_serial_run() -> None:
    done = run("--points", 1000, "--workers", 1, "--no-serial")
    assert done.returncode == 0, done.stderr
    assert "serial:" not in done.stdout


@pytest.mark.parametrize("args", [("--points", 0), ("--part", 0), ("--workers", 0), ("--seed", -1), ("--points", "x")])
def test_bad_input_is_told(args: tuple[object, ...]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
