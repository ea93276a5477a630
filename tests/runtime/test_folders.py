"""The private folder of a driver's workers: who makes it, who removes it, and when."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybriddist.errors import TransportError
from hybriddist.runtime import folders
from hybriddist.runtime.folders import Folder, Seat

WORKER = """
import sys, signal, socket
from hybriddist.runtime.folders import Seat
seat = Seat(sys.argv[1])
seat.take()
socket.socket(socket.AF_UNIX).bind(sys.argv[1])
print(flush=True)
signal.pause()
"""

Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))


@pytest.fixture
def worker() -> Iterator[Start]:
    """``worker(path)``: a process that has its seat with a socket of that path, until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def seat_in(folder: Folder, name: str = "socket") -> Seat:
    """A taken seat, with its socket."""
    seat = Seat(os.path.join(folder.path, name))
    seat.take()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(seat.socket_path)
    return seat


def test_a_name_alone_leaves_nothing() -> None:
    """A driver that is killed before it has a worker."""
    folder = Folder()
    assert os.listdir(os.environ["TMPDIR"]) == []
    folder.remove()


def test_it_is_private_and_goes_with_all_that_is_in_it() -> None:
    folder = Folder()
    seat = seat_in(folder)
    path = Path(folder.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    folder.remove()
    assert not path.exists()
    folder.remove()
    seat.leave()


def test_the_last_one_to_leave_removes_it() -> None:
    folder = Folder()
    seats = [seat_in(folder, name) for name in ("one", "two", "three")]
    for seat in seats[:2]:
        seat.leave()
        assert os.path.isdir(folder.path)
    seats[2].leave()
    assert not os.path.exists(folder.path)
    seats[2].leave()
    again = seat_in(folder, "four")
    assert os.listdir(folder.path) == ["four"]
    again.leave()
    assert not os.path.exists(folder.path)


def test_what_the_dead_have_left_goes_with_the_last_one(worker: Start) -> None:
    folder = Folder()
    killed = worker(Path(folder.path, "killed"))
    seat = seat_in(folder)
    kill(killed)
    seat.leave()
    assert not os.path.exists(folder.path)


def test_who_was_killed_is_cleaned_up_after(worker: Start) -> None:
    folder = Folder()
    sockets = [Path(folder.path, name) for name in ("one", "two")]
    one, two = map(worker, sockets)
    kill(one)
    folders.clean_up(str(sockets[0]))
    assert os.listdir(folder.path) == ["two"]
    folders.leave_folder(folder.path)
    assert os.listdir(folder.path) == ["two"]
    kill(two)
    folders.leave_folder(folder.path)
    assert not os.path.exists(folder.path)
    folders.clean_up(str(sockets[1]))


def test_coming_and_going_at_the_same_time() -> None:
    """Nobody's folder is removed under him, and the last one leaves nothing."""
    folder = Folder()
    failures: list[str] = []

    def come_and_go(name: str) -> None:
        for _ in range(200):
            seat = seat_in(folder, name)
            if not os.path.exists(seat.socket_path):
                failures.append(name)
            seat.leave()

    threads = [threading.Thread(target=come_and_go, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not os.path.exists(folder.path)


def test_a_seat_that_was_left_is_not_taken_any_more() -> None:
    """The leash may end before the worker has come so far as to take its seat."""
    folder = Folder()
    seat = Seat(os.path.join(folder.path, "socket"))
    seat.leave()
    seat.take()
    assert not os.path.exists(folder.path)


@pytest.mark.parametrize("kind", ["open to others", "a file", "a link"])
def test_a_folder_of_somebody_else_is_refused(kind: str, tmp_path: Path) -> None:
    folder = Folder()
    if kind == "open to others":
        os.mkdir(folder.path)
        os.chmod(folder.path, 0o755)
    elif kind == "a file":
        Path(folder.path).touch()
    else:
        os.symlink(tmp_path, folder.path)
    with pytest.raises((TransportError, OSError)):
        Seat(os.path.join(folder.path, "socket")).take()
    assert os.listdir(tmp_path) == []


def test_folders_of_the_living_are_not_swept(worker: Start) -> None:
    other, mine = Folder(), Folder()
    living = worker(Path(other.path, "socket"))
    assert mine.sweep() == []
    kill(living)
    assert mine.sweep() == [other.path]
    assert not os.path.exists(other.path)


def test_a_forked_copy_does_not_hold_it_for_the_dead() -> None:
    """The lock belongs to all copies of the descriptor: each but the worker's own has to be closed."""
    folder = Folder()
    seat = seat_in(folder)
    here, there = socket.socketpair()
    ospid = os.fork()
    if ospid == 0:
        here.close()
        there.sendall(b"1")  # it has let go by now
        there.recv(1)  # until the parent is done
        os._exit(0)
    there.close()
    here.recv(1)
    os.close(seat._fd)  # as if the worker had been killed
    seat._fd = -1
    folders.leave_folder(folder.path)
    assert not os.path.exists(folder.path)
    here.close()
    assert os.waitpid(ospid, 0)[1] == 0


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    root = Path(os.environ["TMPDIR"])
    (root / "hybriddist-1-00000000").touch()
    (root / "hybriddist-2-00000000").symlink_to(tmp_path)
    (root / "hybriddist-3-00000000").mkdir()
    (root / "hybriddist-3-00000000" / "letter").touch()
    for name in ("other", "hybriddist-mine", "hybriddist-ci.abcdef", "hybriddist-4-00000000x"):
        (root / name).mkdir()
    before = {path.name for path in root.iterdir()}
    assert Folder().sweep() == []
    for name in before:
        folders.leave_folder(str(root / name))
    assert {path.name for path in root.iterdir()} == before
    assert (root / "hybriddist-3-00000000" / "letter").exists()
    assert tmp_path.exists()


def test_a_long_temporary_directory_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path of a socket has little room."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert len(Folder().path) < 80
