"""The example of arrays in a pmap: what it computes, and the whole of it as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "singular_values.py"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the example sets variables that only count in a process of its own."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_the_largest_singular_value() -> None:
    from examples.singular_values import largest_singular_value

    assert largest_singular_value(np.diag([3.0, -7.0, 2.0])) == pytest.approx(7)


def test_matrices_are_reproducible_and_of_many_sizes() -> None:
    from examples.singular_values import random_matrices

    matrices = random_matrices(9, 21, 5)
    assert all(map(np.array_equal, matrices, random_matrices(9, 21, 5)))
    assert sorted(len(matrix) for matrix in matrices) == [11, 12, 13, 14, 16, 17, 18, 19, 21]
    assert all(matrix.shape[0] == matrix.shape[1] for matrix in matrices)
    assert [matrix.shape for matrix in random_matrices(1, 1, 0)] == [(1, 1)]


def test_the_whole_job() -> None:
    done = run("--matrices", 7, "--size", 20, "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^\d+ x \d+ +\d+\.\d{4} +\d+\.\d{4}$", done.stdout, re.MULTILINE)) == 5
    assert "... 7 in all, 0.0 MB" in done.stdout
    assert re.search(r"^parallel: +[0-9.]+ s with 2 workers$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("the results are equal\n")


def test_without_the_serial_run() -> None:
    done = run("--matrices", 1, "--size", 1, "--workers", 1, "--no-serial")
    assert done.returncode == 0, done.stderr
    assert "serial:" not in done.stdout


@pytest.mark.parametrize("args", [("--matrices", 0), ("--size", 0), ("--workers", 0), ("--seed", -1)])
def test_bad_input_is_told(args: tuple[object, ...]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
