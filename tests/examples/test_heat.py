"""The example of a shared array: what it computes, and the whole of it as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "heat.py"


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_one_cell_by_hand() -> None:
    from examples.heat import serial

    assert serial(1, 3)[1, 1] == 0.0  # half of one is none
    assert serial(2, 1)[1:-1, 1:-1].tolist() == pytest.approx(np.array([[0.4, 0.2], [0.4, 0.2]]))


def test_heat_is_lost_at_the_edge_only() -> None:
    from examples.heat import first_layer, serial

    before, after = first_layer(40), serial(40, 5)
    assert 0 < after.sum() < before.sum()
    assert after[20, 15:26].sum() == pytest.approx(before[20, 15:26].sum())
    assert not after[0].any()


def test_bands_cover_all_rows() -> None:
    from examples.heat import bands

    assert bands(7, 3) == [range(1, 3), range(3, 5), range(5, 8)]
    assert bands(2, 5) == [range(1, 2), range(2, 3)]


def test_the_whole_job(tmp_path: Path) -> None:
    """Three workers, so that one has neighbours on both sides; the plate is compared bit by bit."""
    image = tmp_path / "plate.png"
    done = run("--size", 31, "--steps", 41, "--workers", 3, "--image", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^parallel: +[0-9.]+ s with 3 workers$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("the results are equal\n")
    data = image.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (33, 33)
    begin = data.index(b"IDAT") + 4
    size = int.from_bytes(data[begin - 8 : begin - 4], "big")
    assert len(zlib.decompress(data[begin : begin + size])) == 33 * (1 + 3 * 33)


def test_more_workers_than_rows_and_no_serial_run() -> None:
    done = run("--size", 1, "--steps", 2, "--workers", 2, "--no-serial")
    assert done.returncode == 0, done.stderr
    assert "serial:" not in done.stdout


@pytest.mark.parametrize("args", [("--size", 0), ("--steps", 0), ("--workers", 0)])
def test_bad_input_is_told(args: tuple[object, ...]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
