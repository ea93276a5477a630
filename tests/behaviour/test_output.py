"""What workers print comes out at the driver, line by line, with the worker's number."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hybriddist as hd
from tests.helpers.printed import Printed
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module


def test_each_line_has_the_number_of_its_worker(cluster: list[int]) -> None:
    with Printed() as printed:
        for pid in cluster:
            hd.remotecall_fetch(print, pid, f"I am {pid}\nand this is a second line")
        for pid in cluster:
            printed.wait_for(f"From worker {pid}:\tand this is a second line\n")
        lines = sorted(printed.out.splitlines())
        told = [
            f"From worker {pid}:\t{text}" for pid in cluster for text in (f"I am {pid}", "and this is a second line")
        ]
        assert [line.strip() for line in lines] == sorted(told)
        assert printed.err == ""


def test_stderr_stays_stderr(cluster: list[int]) -> None:
    with Printed() as printed:

        def complain() -> None:
            import sys

            print("to stderr", file=sys.stderr)
            print("to stdout")

        hd.remotecall_fetch(complain, cluster[0])
        printed.wait_for("to stdout\n")
        printed.wait_for(f"From worker {cluster[0]}:\tto stderr\n", "err")
        assert "stderr" not in printed.out


def test_lines_of_programs_that_calls_start(cluster: list[int]) -> None:
    with Printed() as printed:
        hd.remotecall_fetch(os.system, cluster[0], "echo from a shell; echo and an error >&2")
        printed.wait_for(f"From worker {cluster[0]}:\tfrom a shell\n")
        printed.wait_for(f"From worker {cluster[0]}:\tand an error\n", "err")


def test_an_unfinished_line_is_not_mixed_with_another(cluster: list[int]) -> None:
    with Printed() as printed:
        one, two, _ = cluster

        def begin(text: str, end: str) -> None:
            print(text, end=end, flush=True)

        hd.remotecall_fetch(begin, one, "begun by one, ", "")
        hd.remotecall_fetch(begin, two, "whole line of two", "\n")
        printed.wait_for("whole line of two\n")
        hd.remotecall_fetch(begin, one, "ended by one", "\n")
        printed.wait_for(f"From worker {one}:\tbegun by one, ended by one\n")


def test_a_relayed_line_keeps_its_first_label(cluster: list[int]) -> None:
    with Printed() as printed:
        hd.remotecall_fetch(print, cluster[0], "      From worker 99:\tpassed on")
        printed.wait_for("From worker 99:\tpassed on\n")
        assert f"From worker {cluster[0]}" not in printed.out


def test_bytes_that_are_no_text(cluster: list[int]) -> None:
    with Printed() as printed:
        hd.remotecall_fetch(os.write, cluster[0], 1, b"caf\xe9 \xe2\x82\xac\n")
        printed.wait_for(f"From worker {cluster[0]}:\tcaf")
        assert "€" in printed.out


def test_a_failed_remote_do_is_shown_at_the_worker(cluster: list[int]) -> None:
    with Printed() as printed:
        hd.remote_do(int, cluster[0], "no number")
        printed.wait_for("invalid literal for int() with base 10: 'no number'", "err")
        assert f"From worker {cluster[0]}:\t" in printed.err
        assert printed.out == ""


def test_a_flood_loses_nothing(cluster: list[int]) -> None:
    with Printed() as printed:

        def flood() -> None:
            for number in range(20_000):
                print(number)

        hd.remotecall_fetch(flood, cluster[0])
        printed.wait_for("\t19999\n")
        assert [int(n) for n in re.findall(rf"From worker {cluster[0]}:\t(\d+)\n", printed.out)] == list(range(20_000))


def test_a_driver_that_does_not_read_does_not_block_its_workers(run_python: ScriptRunner) -> None:
    """Its stdout is a full pipe: calls go on all the same, and so does the end, also that of one that prints."""
    code = """
    import os, sys
    import hybriddist as hd

    saved, (reading, writing) = os.dup(1), os.pipe()
    os.dup2(writing, 1)
    def flood():
        while True:
            print("x" * 1000)

    one, two = pids = hd.addprocs(2)
    call = hd.remotecall(print, one, "x" * (10 << 20))
    endless = [hd.remotecall(flood, pid) for pid in pids]
    other = hd.remotecall_fetch(abs, one, -7)
    os.write(saved, f"{other}, {call.fetch(timeout=20)}\\n".encode())
    hd.rmprocs(pids, waitfor=20)
    os.write(saved, f"{hd.workers()}\\n".encode())
    os.close(reading)
    os._exit(0)
    """
    done = run_python(code, timeout=40)
    assert (done.returncode, done.stdout) == (0, "7, None\n[1]\n")


@pytest.mark.parametrize("how", ["stdout closed", "stderr closed", "both closed"])
def test_a_driver_without_output(run_python: ScriptRunner, how: str) -> None:
    code = f"""
    import os, sys
    import hybriddist as hd
    how = {how!r}
    result = os.dup(1)
    for stream, fd in (("stdout", 1), ("stderr", 2)):
        if stream in how or "both" in how:
            os.close(fd)
            setattr(sys, stream, None)
    (pid,) = hd.addprocs(1)
    hd.remotecall_fetch(print, pid, "lost")
    hd.remote_do(int, pid, "no number")
    os.write(result, b"<%d>" % hd.remotecall_fetch(abs, pid, -7))
    """
    done = run_python(code)
    assert done.returncode == 0
    assert "<7>" in done.stdout  # the relayed line may come before it or after


# ---- the startup ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chatty(tmp_path: Path) -> Callable[[str], list[str]]:
    """An interpreter that says something before it begins, and then does or does not begin."""

    def chatty(rest: str) -> list[str]:
        script = tmp_path / "chatty.sh"
        script.write_text(f"echo Welcome to this machine; echo be careful >&2; {rest}")
        return ["/bin/sh", str(script)]

    return chatty


def test_a_banner_is_tolerated_and_shown(cluster: list[int], chatty: Callable[[str], list[str]]) -> None:
    with Printed() as printed:
        (pid,) = hd.addprocs(1, exename=chatty(f'exec {sys.executable} "$@"'))
        assert hd.remotecall_fetch(abs, pid, -7) == 7
        printed.wait_for("\tFrom worker startup:\tWelcome to this machine\n")
        printed.wait_for("be careful\n", "err")
        hd.remotecall_fetch(print, pid, "at work")
        printed.wait_for(f"From worker {pid}:\tat work\n")
        hd.rmprocs(pid)


def test_a_banner_is_shown_also_when_the_launch_fails(cluster: list[int], chatty: Callable[[str], list[str]]) -> None:
    with Printed() as printed:
        with pytest.raises(hd.CompositeException):
            hd.addprocs(1, exename=chatty("exit 1"))
        printed.wait_for("\tFrom worker startup:\tWelcome to this machine\n")
