"""The private folder of a driver: who removes it, and when."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybriddist.runtime import folders
from hybriddist.runtime.folders import Folder

DRIVER = """
import sys, signal
from hybriddist.runtime.folders import Folder
folder = Folder()
print(folder.path, flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def _temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))


@pytest.fixture
def other_driver() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a folder of its own until it is killed."""
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().rstrip("\n"))
        process.kill()


def test_it_is_private_and_goes_with_all_that_is_in_it() -> None:
    folder = Folder()
    path = Path(folder.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "socket").touch()
    folder.remove()
    assert not path.exists()
    folder.remove()


def test_folders_of_the_living_are_not_swept(other_driver: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = other_driver
    mine = Folder()
    assert mine.sweep() == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path / "socket").touch()
    assert mine.sweep() == [str(path)]
    assert not path.exists()
    assert Path(mine.path).exists()
    mine.remove()


def test_a_worker_leaves_a_living_driver_its_folder(other_driver: tuple[subprocess.Popen[str], Path]) -> None:
    _, path = other_driver
    (path / "socket").touch()
    folders.leave(str(path / "socket"))
    assert list(path.iterdir()) == []


def test_the_last_worker_of_a_dead_driver_removes_the_folder(other_driver: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = other_driver
    for name in ("one", "two"):
        (path / name).touch()
    process.send_signal(signal.SIGKILL)
    process.wait()
    folders.leave(str(path / "one"))
    assert path.exists()
    folders.leave(str(path / "two"))
    assert not path.exists()
    folders.leave(str(path / "two"))
    folders.leave_folder(str(path))


def test_a_forked_copy_does_not_hold_it_for_the_dead() -> None:
    """The lock belongs to all copies of the descriptor: each but the driver's own has to be closed."""
    mine = Folder()
    ospid = os.fork()
    if ospid == 0:
        mine.let_go()
        os._exit(folders._remove_abandoned(mine.path))
    assert os.waitstatus_to_exitcode(os.waitpid(ospid, 0)[1]) == 0
    assert os.path.isdir(mine.path)
    mine.remove()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    root = Path(os.environ["TMPDIR"])
    (root / "hybriddist-file").touch()
    (root / "hybriddist-link").symlink_to(tmp_path)
    (root / "other").mkdir()
    mine = Folder()
    assert mine.sweep() == []
    mine.remove()
    folders.leave_folder(str(root / "other"))
    assert {path.name for path in root.iterdir()} == {"hybriddist-file", "hybriddist-link", "other"}
    assert tmp_path.exists()


def test_a_long_temporary_directory_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path of a socket has little room."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder = Folder()
    assert len(folder.path) < 80
    folder.remove()
