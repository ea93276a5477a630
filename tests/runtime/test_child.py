"""Handles of processes: exit status, waiting, signals, the end of a group."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybriddist.deadline import Deadline
from hybriddist.runtime.child import ExitStatus, PopenChild
from tests.helpers.polling import poll_for

Start = Callable[[str], PopenChild]


@pytest.fixture
def start() -> Iterator[Start]:
    children = []

    def start(code: str) -> PopenChild:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        child = PopenChild(process)
        children.append((process, child))
        assert process.stdout is not None
        process.stdout.readline()
        return child

    yield start
    for process, child in children:
        child.kill()
        child.release()
        child.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(exitcode=3), "exit code 3"),
        (ExitStatus(signal=9), "signal SIGKILL"),
        (ExitStatus(signal=44), "signal 44"),
        (ExitStatus(), "connection lost"),
    ],
)
def test_exit_status_in_words(status: ExitStatus, text: str) -> None:
    assert str(status) == text


def test_exit_status_from_a_wait() -> None:
    assert ExitStatus.from_wait(3 << 8) == ExitStatus(exitcode=3)
    assert ExitStatus.from_wait(signal.SIGSEGV) == ExitStatus(signal=signal.SIGSEGV)


def test_exit_code_and_callbacks(start: Start) -> None:
    child = start("print(flush=True); import sys; sys.stdin.read(); sys.exit(3)")
    heard: list[ExitStatus] = []
    child.on_exit(heard.append)
    assert child.poll() is None
    assert child.wait(Deadline(0)) is None
    child.release()
    child.release()
    assert child.wait(Deadline(10)) == ExitStatus(exitcode=3) == child.poll() == child.exit_status
    assert poll_for(lambda: heard) == [ExitStatus(exitcode=3)]
    child.on_exit(heard.append)
    assert len(heard) == 2


def test_signals(start: Start) -> None:
    child = start(
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('termed', flush=True))\n"
        "print(flush=True)\nwhile True: signal.pause()"
    )
    assert child.terminate()
    assert child.poll() is None
    assert child.kill()
    assert child.wait(Deadline(10)) == ExitStatus(signal=signal.SIGKILL)
    assert not child.send_signal(signal.SIGTERM)
    assert not child.kill()


@pytest.mark.parametrize("by", ["kill", "terminate"])
def test_the_end_takes_the_group_along(by: str) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60; :"],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        start_new_session=True,
    )
    child = PopenChild(process)
    os.close(writing)
    poll_for(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), what="its child")
    assert getattr(child, by)()
    with open(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 10)[0]  # ends only when the grandchild is gone as well
        assert pipe.read() == b""
    child.wait()
    child.release()
