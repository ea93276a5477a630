"""Workers that somebody else starts: by the command ``--worker``, or by a call of `start_worker`."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.errors import ClusterError
from hybriddist.runtime.options import WorkerOptions
from hybriddist.runtime.start import check_cookie, start_worker
from tests.helpers.polling import poll_for

from .conftest import CommandLine

ANNOUNCEMENT = re.compile(r"hybriddist_worker:(\d+)#127\.0\.0\.1\n")
TOO_LATE = "Master process (id 1) could not connect within 0.1 seconds.\nexiting.\n"
SOON = {"HYBRIDDIST_WORKER_TIMEOUT": "0.1"}
COOKIE = "a cookie of many letters"
VISIBLE = "hybriddist: warning: every user of this machine can see a cookie that is given as --worker=COOKIE\n"


# ---- nobody comes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text", "errors"),
    [
        (["--worker"], COOKIE + "\n", ""),
        (["--worker"], COOKIE + "\r\n", ""),
        (["--worker"], COOKIE, ""),
        ([f"--worker={COOKIE}"], "", VISIBLE),
        (["--worker", "--bind-to", "127.0.0.1"], COOKIE + "\n", ""),
    ],
    ids=["a line", "a line of windows", "no end of line", "on the command line", "bound"],
)
def test_a_worker_announces_itself_and_leaves_when_nobody_comes(
    words: list[str], text: str, errors: str, command_line: CommandLine
) -> None:
    done = command_line(*words, input=text, **SOON)
    assert done.returncode == 1
    announcement = ANNOUNCEMENT.match(done.stdout)
    assert announcement is not None, done
    assert done.stdout[announcement.end() :] == TOO_LATE  # stderr is stdout
    assert done.stderr == errors


def test_the_leash_ends_it_while_it_waits(command_line: CommandLine) -> None:
    with command_line.start("--worker") as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(COOKIE.encode() + b"\n")
        assert ANNOUNCEMENT.fullmatch(worker.stdout.readline().decode())
        worker.stdin.close()
        assert worker.wait(10) == 1
        assert worker.stdout.read() == b""


def test_options_come_as_the_second_line(command_line: CommandLine) -> None:
    options = WorkerOptions(worker_timeout_seconds=0.1, stderr_to_stdout=False)
    done = command_line("--worker", "--options", input=f"{COOKIE}\n{options.to_json()}\n")
    assert done.returncode == 1
    assert ANNOUNCEMENT.fullmatch(done.stdout)
    assert done.stderr == TOO_LATE


def test_options_come_first_if_the_cookie_is_on_the_command_line(command_line: CommandLine) -> None:
    options = WorkerOptions(worker_timeout_seconds=0.1)
    done = command_line(f"--worker={COOKIE}", "--options", input=options.to_json() + "\n")
    assert ANNOUNCEMENT.fullmatch(done.stdout)
    assert done.stderr == VISIBLE + TOO_LATE


def test_a_worker_without_any_stdin(command_line: CommandLine) -> None:
    """As some batch systems start programs. The first descriptor that is opened must not become its stdin."""
    command = f'exec {sys.executable} -m hybriddist "--worker={COOKIE}" <&-'
    done = subprocess.run(
        ["sh", "-c", command], env=command_line.environment(SOON), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert TOO_LATE in done.stdout


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        (["--worker"], "", "stdin ended before the cookie came"),
        (["--worker"], "\n", "the cookie must be 1 to 256 printable ASCII characters"),
        (["--worker="], "", "the cookie must be 1 to 256 printable ASCII characters"),
        (["--worker"], "x" * 257 + "\n", "the cookie on stdin is longer than 256 bytes"),
        (["--worker"], "k\u00e4se\n", "the cookie on stdin is not ASCII"),
        (["--worker=k\u00e4se"], "", "the cookie must be 1 to 256 printable ASCII characters"),
        (["--worker", "--options"], "c\n", "stdin ended before the line of options came"),
        (["--worker", "--options"], "c\n[]\n", "worker options must be a JSON object, not list"),
        (["--worker", "--options"], 'c\n{"frob": 1}\n', "unknown worker options: frob"),
        (["--worker", "--options"], "c\n{\n", "Expecting property name"),
        (["--worker", "--options"], 'c\n{"cwd": "/nowhere/at/all"}\n', "'/nowhere/at/all'"),
        (["--worker", "--bind-to", "127.0.0.1:http"], "c\n", "a port is a number from 1 to 65535"),
        (["--worker", "--bind-to", "127.0.0.1:0"], "c\n", "a port is a number from 1 to 65535"),
    ],
)
def test_a_worker_that_cannot_be_says_why(words: list[str], text: str, reason: str, command_line: CommandLine) -> None:
    done = command_line(*words, input=text)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hybriddist: no worker was started: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_of_no_interface(command_line: CommandLine) -> None:
    done = command_line("--worker", "--bind-to", "192.0.2.1:9000", input=COOKIE + "\n")
    assert done.returncode == 1
    assert "192.0.2.1:9000" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# ---- the call -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cookie", ["", "x" * 257, "two\nlines", "k\u00e4se"])
def test_what_is_no_cookie_is_refused_and_not_shown(cookie: str) -> None:
    with pytest.raises(ValueError, match="1 to 256 printable ASCII") as caught:
        start_worker(cookie=cookie)
    assert not cookie or cookie not in str(caught.value)


def test_a_cookie_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes"):
        start_worker(cookie=b"cookie")  # type: ignore[arg-type]


@pytest.mark.parametrize("cookie", ["x", "y" * 256, " a~"])
def test_cookies_of_1_to_256_characters(cookie: str) -> None:
    assert check_cookie(cookie) == cookie


def test_it_needs_the_main_thread() -> None:
    caught: list[BaseException] = []

    def call() -> None:
        try:
            start_worker(cookie=COOKIE)
        except ClusterError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert [str(error) for error in caught] == ["a worker needs the main thread of its process"]


# ---- with a driver --------------------------------------------------------------------------------------------------


class ByCommand(hd.ClusterManager):
    """Starts one worker by a command of the test's."""

    def __init__(self, command: list[str], environment: dict[str, str], text: Callable[[], str], stderr: Path) -> None:
        self.command = command
        self.environment = environment
        self.text = text
        self.stderr = stderr
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, params: Mapping[str, Any], launched: list[hd.WorkerConfig], notify: Callable[[], None]) -> None:
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
        self.stdin.write(self.text().encode())
        config = hd.WorkerConfig()
        config.io = self.process.stdout
        launched.append(config)
        notify()

    def manage(self, pid: int, config: hd.WorkerConfig, op: str) -> None:
        if op == "finalize" and self.process is not None:
            self.stdin.close()
            self.process.wait(10)

    @property
    def stdin(self) -> Any:
        assert self.process is not None
        return self.process.stdin


Starter = Callable[..., tuple[int, ByCommand]]


@pytest.fixture
def start(command_line: CommandLine, tmp_path: Path) -> Iterator[Starter]:
    """``start(command, text)``: a worker by this command, its pid and its manager."""

    def start(*words: str, text: Callable[[], str] = lambda: hd.cluster_cookie() + "\n") -> tuple[int, ByCommand]:
        environment = command_line.environment(None)
        manager = ByCommand([sys.executable, *words], environment, text, tmp_path / "stderr")
        (pid,) = hd.addprocs(manager)
        return pid, manager

    try:
        yield start
    finally:
        hd.shutdown()


def look() -> dict[str, Any]:
    """What a call on the worker sees of its streams."""
    modes = [os.fstat(fd) for fd in (0, 1, 2)]
    null = os.stat(os.devnull)
    return {
        "stdin is null": (modes[0].st_dev, modes[0].st_ino) == (null.st_dev, null.st_ino),
        "stdin is a pipe": stat.S_ISFIFO(modes[0].st_mode),
        "stderr is stdout": (modes[1].st_dev, modes[1].st_ino) == (modes[2].st_dev, modes[2].st_ino),
        "one object": sys.stderr is sys.stdout,
    }


def read_stdin() -> str:
    return sys.stdin.readline()


@pytest.mark.parametrize("stderr_to_stdout", [True, False])
@pytest.mark.parametrize("close_stdin", [True, False])
def test_stdin_and_stderr_in_all_four_ways(close_stdin: bool, stderr_to_stdout: bool, start: Starter) -> None:
    code = (
        "from hybriddist.runtime.start import start_worker; "
        f"start_worker(close_stdin={close_stdin}, stderr_to_stdout={stderr_to_stdout})"
    )
    pid, manager = start("-c", code)
    assert hd.remotecall_fetch(look, pid) == {
        "stdin is null": close_stdin,
        "stdin is a pipe": not close_stdin,
        "stderr is stdout": stderr_to_stdout,
        "one object": stderr_to_stdout,
    }
    manager.stdin.write(b"for a call\n")
    assert hd.remotecall_fetch(read_stdin, pid) == ("" if close_stdin else "for a call\n")


@pytest.mark.parametrize("by", ["stdin", "argument"])
def test_a_worker_started_by_hand_joins(by: str, start: Starter) -> None:
    if by == "stdin":
        pid, _ = start("-m", "hybriddist", "--worker")
    else:
        pid, _ = start("-m", "hybriddist", f"--worker={hd.cluster_cookie()}", text=str)
    assert hd.remotecall_fetch(hd.myid, pid) == pid
    assert hd.remotecall_fetch(look, pid)["stdin is null"]


def test_main_of_a_command_is_empty_and_that_of_a_call_stays(start: Starter) -> None:
    names = "sorted(name for name in vars(__import__('__main__')) if name[:2] != '__')"
    pid, _ = start("-m", "hybriddist", "--worker")
    assert hd.remotecall_fetch(eval, pid, names) == []
    assert hd.remotecall_fetch(eval, pid, "__import__('sys').argv") == [""]
    hd.rmprocs(pid)
    pid, _ = start("-c", "from hybriddist.runtime.start import start_worker; own = 1; start_worker()")
    assert hd.remotecall_fetch(eval, pid, names) == ["own", "start_worker"]


def test_what_is_announced_may_go_elsewhere(tmp_path: Path, command_line: CommandLine) -> None:
    code = f"""
from hybriddist.runtime.start import start_worker
with open("announcement", "w") as out:
    start_worker(out, cookie={COOKIE!r}, stderr_to_stdout=False)
"""
    done = command_line.python("-c", code, env=SOON)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", TOO_LATE)
    assert ANNOUNCEMENT.fullmatch((tmp_path / "announcement").read_text())


def test_a_member_of_a_cluster_does_not_become_a_worker(start: Starter) -> None:
    pid, _ = start("-m", "hybriddist", "--worker")
    with pytest.raises(hd.RemoteException, match="this process is a member of a cluster already"):
        hd.remotecall_fetch(start_worker, pid)
    with pytest.raises(ClusterError, match="this process is a member of a cluster already"):
        start_worker(cookie=COOKIE)


def test_the_port_that_bind_to_names(start: Starter) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pid, _ = start("-m", "hybriddist", "--worker", "--bind-to", f"127.0.0.1:{port}")
    addresses = "__import__('hybriddist.runtime.current', fromlist=['x']).current().addresses"
    assert hd.remotecall_fetch(eval, pid, addresses) == [f"tcp:127.0.0.1:{port}"]


def say(until: str) -> None:
    print("on stdout")
    print("on stderr", file=sys.stderr)
    while not os.path.exists(until):
        time.sleep(0.005)


@pytest.mark.parametrize("by", ["hand", "exename"])
def test_lines_arrive_while_the_call_still_runs(
    by: str, start: Starter, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it all lines would arrive
    pid = start("-m", "hybriddist", "--worker")[0] if by == "hand" else hd.addprocs(1, exename=sys.executable)[0]
    running = hd.remotecall(say, pid, str(tmp_path / "seen"))
    shown = {"stdout": "", "stderr": ""}

    def look_again() -> bool:
        out, err = capsys.readouterr()
        shown["stdout"] += out
        shown["stderr"] += err
        return "on stdout" in shown["stdout"] and "on stderr" in "".join(shown.values())

    try:
        poll_for(look_again)
    finally:
        (tmp_path / "seen").touch()
    running.wait(10)
    lines = [f"      From worker {pid}:\ton stdout", f"      From worker {pid}:\ton stderr"]
    assert (shown["stdout"] + shown["stderr"]).splitlines() == lines
    assert bool(shown["stderr"]) == (by == "exename")
