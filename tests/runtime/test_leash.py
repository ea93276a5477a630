"""The worker leaves when its stdin ends, whatever else it is doing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from hybriddist.runtime.leash import is_leash

ROOT = Path(__file__).resolve().parents[2]

IMPORTS = """
import os, sys, time, threading
from hybriddist.runtime.folders import Seat
from hybriddist.runtime.leash import Leash, take_stdin
"""


def start(code: str, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """A process that does ``code`` with a leash, and has said so."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS + textwrap.dedent(code)], stdin=stdin, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"armed\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    """Let go of the leash; the exit code."""
    with process:
        assert process.stdin is not None
        process.stdin.close()
        return process.wait(10)


@pytest.mark.parametrize("close_stdin", [True, False])
@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        "while True: pass",
        "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        "sys.stdout.close(); os.close(2); time.sleep(60)",
    ],
    ids=["sleeping", "computing", "locked", "speechless"],
)
def test_end_of_stdin_ends_the_process(work: str, close_stdin: bool) -> None:
    process = start(f"take_stdin(close_stdin={close_stdin}).arm()\nprint('armed', flush=True)\n{work}")
    assert end(process) == 1


def test_socket_file_is_removed_and_last_words_cannot_prevent_the_exit(tmp_path: Path) -> None:
    path, said = tmp_path / "worker.sock", tmp_path / "said"
    path.touch()
    code = f"""
    leash = take_stdin(close_stdin=True, seat=Seat({str(path)!r}))
    def last_words():
        open({str(said)!r}, "w").close()
        time.sleep(60)
    leash.on_end = last_words
    leash.arm()
    leash.arm()
    print('armed', flush=True)
    time.sleep(60)
    """
    process = start(code)
    assert path.exists()
    assert end(process) == 1
    assert not path.exists()
    assert said.exists()


def test_with_close_stdin_calls_see_the_null_device() -> None:
    code = """
    sys.stdin.readline()
    take_stdin(close_stdin=True).arm()
    print('armed', flush=True)
    print(repr(sys.stdin.read()), os.path.samestat(os.fstat(0), os.stat(os.devnull)), os.get_inheritable(0))
    os.system("cat")
    print("done", flush=True)
    time.sleep(60)
    """
    reading, writing = os.pipe()
    os.write(writing, b"cookie\n")
    process = start(code, stdin=reading)
    os.close(reading)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"'' True True\n"
        assert process.stdout.readline() == b"done\n"
        os.write(writing, b"bytes that nobody wants\n")
        os.close(writing)
        assert process.wait(10) == 1


def test_without_close_stdin_calls_can_read_it() -> None:
    process = start("take_stdin(close_stdin=False).arm(); print('armed', flush=True); print(input()); time.sleep(60)")
    assert process.stdin is not None
    process.stdin.write(b"for you\nunread\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == b"for you\n"
    assert end(process) == 1


def test_half_closed_socket_is_an_end() -> None:
    for close_stdin in (True, False):
        ours, theirs = socket.socketpair()
        code = f"take_stdin(close_stdin={close_stdin}).arm(); print('armed', flush=True); time.sleep(60)"
        with ours, theirs, start(code, stdin=theirs) as process:
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(10) == 1


def test_what_is_a_leash(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert is_leash(reading)
    os.close(writing)
    assert not is_leash(reading)  # ended already
    os.close(reading)
    with open(os.devnull) as null, open(tmp_path / "file", "w") as file:
        assert not is_leash(null.fileno())
        assert not is_leash(file.fileno())
    assert not is_leash(10_000)


def test_without_a_leash_the_process_stays() -> None:
    with start("assert take_stdin(close_stdin=True) is None; print('armed')", stdin=subprocess.DEVNULL) as process:
        assert process.wait(10) == 0
