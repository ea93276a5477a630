"""The main example: what it counts, what it refuses, and the whole of it as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.code_census import Census, count, fold, python_files, show

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "code_census.py"

SOURCE = """
async def f(x):
    for y in x.items:
        if y and x:
            return [z if z else y for z in x]
    try:
        g = lambda: x
    except ValueError:
        pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files, three that are no Python source, and some that are not to be counted."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "good.py").write_text(SOURCE)
    (tmp_path / "inner" / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'ä'\n".encode("latin-1"))
    (tmp_path / "inner" / "undecodable.py").write_bytes(b"name = '\xff'\n")
    (tmp_path / "null.py").write_bytes(b"a = 1\0\n")
    (tmp_path / "wrong.py").write_text("print 'old'\n")
    (tmp_path / "text.txt").write_text("x = 1")
    (tmp_path / "folder.py").mkdir()
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "other.py").write_text("x = 1")
    return tmp_path


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    # The checkout's own package, installed or not.
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_count(folder: Path) -> None:
    census = count(folder / "good.py")
    assert census.totals == {"files": 1, "lines": 9, "functions": 2, "branches": 4}
    assert census.names == {"x": 5, "y": 3, "z": 3, "items": 1, "g": 1, "ValueError": 1}
    assert census.skipped == []


def test_a_declared_encoding_is_respected(folder: Path) -> None:
    assert count(folder / "inner" / "latin.py").names == {"name": 1}


@pytest.mark.parametrize("name", ["inner/undecodable.py", "null.py", "wrong.py", "missing.py"])
def test_what_is_no_source_is_skipped_and_named(folder: Path, name: str) -> None:
    census = count(folder / name)
    assert not census.totals
    assert len(census.skipped) == 1
    assert census.skipped[0].startswith(f"{folder / name}: ")


def test_python_files_are_those_of_the_folder_itself(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in python_files(folder)]
    assert found == ["good.py", "inner/latin.py", "inner/undecodable.py", "null.py", "wrong.py"]
    assert len(python_files(folder / "site-packages")) == 1


def test_fold_leaves_its_parts_alone_and_is_associative(folder: Path) -> None:
    parts = [count(path) for path in python_files(folder)]
    whole = fold(parts)
    assert parts == [count(path) for path in python_files(folder)]
    assert fold([fold(parts[:2]), fold(parts[2:])]) == whole
    assert whole.totals["files"] == 2
    assert len(whole.skipped) == 3


def test_fold_of_nothing() -> None:
    assert fold([]) == Census()


def test_show_lists_the_most_frequent_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(count(folder / "good.py"), 3)
    ranking = capsys.readouterr().out.split("most frequent names\n")[1]
    assert ranking.split() == ["x", "5", "y", "3", "z", "3"]  # equal counts in the order of the alphabet


def test_the_whole_job(folder: Path) -> None:
    done = run(folder, "--workers", 2, "--top", 2)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b5/5\b", done.stderr)  # the progress bar, with or without tqdm
    assert re.search(r"^files +2$", done.stdout, re.MULTILINE)
    assert re.search(r"^skipped files +3$", done.stdout, re.MULTILINE)
    assert f"skipped {folder / 'wrong.py'}: SyntaxError" in done.stdout
    assert re.search(r"^parallel: +[0-9.]+ s with 2 workers$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("the results are equal\n")


def test_without_the_serial_run(folder: Path) -> None:
    done = run(folder, "--workers", 1, "--no-serial")
    assert done.returncode == 0, done.stderr
    assert "serial:" not in done.stdout


def test_bad_input_is_named_and_starts_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()
    for args, complaint in [
        ((folder / "missing",), "not a folder: "),
        ((folder / "good.py",), "not a folder: "),
        ((folder / "empty",), "no Python files in "),
        ((folder, "--workers", 0), "at least 1"),
        ((folder, "--top", -1), "at least 1"),
        ((folder, "--workers", "many"), "invalid int value"),
    ]:
        done = run(*args)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
