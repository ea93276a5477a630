"""Reading where a worker listens, from commands that behave and commands that don't."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import LaunchError, LaunchTimeout
from hybriddist.limits import MAX_CHARACTERS_BEFORE_HEADER, MAX_LINE_BYTES, MAX_LINES_BEFORE_HEADER
from hybriddist.managers.announcement import (
    COMMAND_ENDED,
    MALFORMED,
    TIMED_OUT,
    TOO_MANY_LINES,
    parse_announcement,
    read_announcement,
)
from hybriddist.managers.base import WorkerConfig
from hybriddist.runtime.child import ExitStatus
from hybriddist.runtime.output import OutputRelay
from tests.helpers.polling import poll_for
from tests.managers.launcher import Launcher


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("hybriddist_worker:9009#127.0.0.1", ("127.0.0.1", 9009)),
        ("hybriddist_worker:1#fe80::1%eth0", ("fe80::1%eth0", 1)),
        ("hybriddist_worker:65535#host.example ", ("host.example", 65535)),
        ("hybriddist_worker:0#h", None),
        ("hybriddist_worker:65536#h", None),
        ("hybriddist_worker:99999999999999#h", None),
        ("hybriddist_worker:9009#", None),
        ("hybriddist_worker:#h", None),
        (" hybriddist_worker:9009#h", None),
        ("julia_worker:9009#h", None),
        ("hybriddist_worker:٣#h", None),
    ],
)
def test_parse_announcement(line: str, address: tuple[str, int] | None) -> None:
    assert parse_announcement(line) == address


def test_configs_of_other_managers(capsys: pytest.CaptureFixture[str]) -> None:
    relay = OutputRelay()
    config = WorkerConfig()
    with subprocess.Popen(["echo", "hybriddist_worker:80#there"], stdout=subprocess.PIPE) as process:
        config.io = process.stdout
        assert read_announcement(config, Deadline(10), relay) == ("there", 80)
    config.io, config.host = io.BytesIO(b"nothing\n"), "the-host"
    with pytest.raises(LaunchError) as caught:
        read_announcement(config, Deadline(10), relay)
    assert (caught.value.message, caught.value.host) == (COMMAND_ENDED, "the-host")
    relay.close(5)


def test_worker_that_dies_before_it_announces(launcher: Launcher) -> None:
    (config,) = launcher.launch(env={"FAKE_WORKER": "import sys; print('reason', file=sys.stderr); sys.exit(3)"})
    with pytest.raises(LaunchError) as caught:
        launcher.announced(config, seconds=60)
    assert caught.value.message == f"{COMMAND_ENDED} (exit code 3)"
    assert (caught.value.host, caught.value.stage, caught.value.stderr_tail) == ("localhost", "announce", "reason")


def test_lines_before_the_announcement_are_replayed(
    launcher: Launcher, command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    exename = command("echo Hi; echo; echo ' hybriddist_worker:1#x'; echo 'hybriddist_worker:7#::1'; echo more; cat")
    (config,) = launcher.launch(exename=exename)
    assert launcher.announced(config) == ("::1", 7)
    output = (config.environ or {})["output"]
    poll_for(lambda: launcher.relay.drain(output, 10) and len(output.tail) == 6)  # cat echoes what it is told
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "\tFrom worker startup:\tHi",
        "\tFrom worker startup:\t",
        "\tFrom worker startup:\t hybriddist_worker:1#x",
        "\tFrom worker startup:\tmore",
    ]


def test_command_that_exits(launcher: Launcher, command: Callable[[str], list[str]]) -> None:
    (config,) = launcher.launch(exename=command("echo banner; echo sorry >&2; exit 3"))
    with pytest.raises(LaunchError) as caught:
        launcher.announced(config, seconds=60)
    assert not isinstance(caught.value, LaunchTimeout)
    assert caught.value.message == f"{COMMAND_ENDED} (exit code 3)"
    assert sorted(caught.value.stderr_tail.splitlines()) == ["banner", "sorry"]


def test_exit_is_noticed_although_another_process_holds_the_pipe(
    launcher: Launcher, command: Callable[[str], list[str]]
) -> None:
    (config,) = launcher.launch(exename=command("sleep 60 & kill -9 $$"))
    with pytest.raises(LaunchError, match="signal SIGKILL"):
        launcher.announced(config, seconds=60)
    os.killpg(config.ospid, signal.SIGKILL)  # type: ignore[arg-type] # the sleep


def test_command_that_says_too_much(
    launcher: Launcher, command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    exename = command(f"i=0; while [ $i -le {MAX_LINES_BEFORE_HEADER} ]; do echo $i; i=$((i+1)); done; sleep 60")
    (config,) = launcher.launch(exename=exename)
    with pytest.raises(LaunchError) as caught:
        launcher.announced(config, seconds=60)
    assert caught.value.message == TOO_MANY_LINES
    assert capsys.readouterr().out.count("\tFrom worker startup:\t") == MAX_LINES_BEFORE_HEADER + 1
    assert config.process.wait(Deadline(10)) == ExitStatus(signal=signal.SIGKILL)


def give_up(launcher: Launcher, exename: list[str]) -> None:
    """Launch what prints too much."""
    (config,) = launcher.launch(exename=exename)
    with pytest.raises(LaunchError) as caught:
        launcher.announced(config, seconds=60)
    assert caught.value.message == TOO_MANY_LINES


DROPPED = "\tFrom worker startup:\t... more lines dropped"


def test_command_that_never_stops(
    launcher: Launcher, command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What had been read when it was given up is shown; the terminal is not flooded with the rest."""
    give_up(launcher, command("exec yes"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["\tFrom worker startup:\ty"] * (MAX_LINES_BEFORE_HEADER + 1) + [DROPPED]


def test_command_that_never_ends_its_line(
    launcher: Launcher, command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    give_up(launcher, command("exec tr '\\0' y < /dev/zero"))
    pieces = [line for line in capsys.readouterr().out.splitlines() if line != DROPPED]
    assert len(pieces) == MAX_CHARACTERS_BEFORE_HEADER // MAX_LINE_BYTES + 1


@pytest.mark.parametrize("line", ["99999999#127.0.0.1", "abc#", "0#h", "9009#two words"])
def test_malformed_announcement(launcher: Launcher, command: Callable[[str], list[str]], line: str) -> None:
    (config,) = launcher.launch(exename=command(f"echo 'hybriddist_worker:{line}'; exec sleep 60"))
    with pytest.raises(LaunchError) as caught:
        launcher.announced(config, seconds=60)
    assert caught.value.message == MALFORMED.format(f"hybriddist_worker:{line}")
    assert config.process.wait(Deadline(10)) == ExitStatus(signal=signal.SIGKILL)


def test_as_many_lines_as_allowed(
    launcher: Launcher, command: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    count = MAX_LINES_BEFORE_HEADER
    loop = f"i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done"
    exename = command(f"{loop}; echo 'hybriddist_worker:1#h'; sleep 60")
    (config,) = launcher.launch(exename=exename)
    assert launcher.announced(config, seconds=60) == ("h", 1)
    assert launcher.relay.drain(config.environ["output"], 10)  # type: ignore[index]
    assert capsys.readouterr().out.count("\tFrom worker startup:\t") == count


def test_command_that_says_nothing(launcher: Launcher, command: Callable[[str], list[str]]) -> None:
    (config,) = launcher.launch(exename=command("exec sleep 60"))
    with pytest.raises(LaunchTimeout) as caught:
        launcher.announced(config, seconds=0.05)
    assert caught.value.message == TIMED_OUT
    assert config.process.wait(Deadline(10)) == ExitStatus(signal=signal.SIGKILL)


def test_deadline_spent_on_one_worker_does_not_cost_the_others(
    launcher: Launcher, command: Callable[[str], list[str]]
) -> None:
    silent, good = launcher.launch(exename=command("exec sleep 60")) + launcher.launch()
    poll_for(lambda: b"hybriddist_worker" in _peek(good))
    deadline = Deadline(0)
    with pytest.raises(LaunchTimeout):
        read_announcement(silent, deadline, launcher.relay)
    assert read_announcement(good, deadline, launcher.relay) == ("127.0.0.1", 9123)


def _peek(config: WorkerConfig) -> bytes:
    """What is in the worker's pipe, which is left there."""
    import fcntl
    import termios

    count = int.from_bytes(fcntl.ioctl(config.io, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
    return b"hybriddist_worker" if count else b""
