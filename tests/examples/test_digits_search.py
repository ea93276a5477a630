"""The example of a search with a picture: what it draws, and the whole of it as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits_search.py"

pytestmark = pytest.mark.skipif(
    not (find_spec("sklearn") and find_spec("matplotlib")),
    reason='needs the extra "examples" (scikit-learn and matplotlib)',
)


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_the_whole_job(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    done = run("--steps", 2, "--folds", 2, "--digits", 200, "--workers", 2, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b4/4\b", done.stderr)  # the progress bar
    assert re.search(r"^grid +2 x 2, 2 folds of 200 digits$", done.stdout, re.MULTILINE)
    best = re.search(r"^best accuracy +([0-9.]+)%$", done.stdout, re.MULTILINE)
    assert best
    assert float(best[1]) > 80
    assert "at                C = 1e+03, gamma = 0.0001" in done.stdout
    assert re.search(r"^parallel: +[0-9.]+ s with 2 workers$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("the results are equal\n")
    header = picture.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (900, 660)


def test_bad_input_is_told_and_starts_nothing(tmp_path: Path) -> None:
    for args in [
        ("--steps", 1),
        ("--folds", 1),
        ("--folds", 10),
        ("--digits", 99),
        ("--digits", 1798),
        ("--workers", 0),
        ("--picture", tmp_path / "missing" / "picture.png"),
    ]:
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
