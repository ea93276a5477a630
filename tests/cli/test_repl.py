"""A REPL on a terminal, Python's own and that of the command line: what is typed runs on workers, Ctrl-C included."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.polling import poll_for
from tests.helpers.terminal import Terminal

from .conftest import CommandLine

Start = Callable[[str], Terminal]


@pytest.fixture
def start(command_line: CommandLine, tmp_path: Path) -> Iterator[Start]:
    """``start(kind)``: a REPL with one worker, ended with the test."""
    terminals: list[Terminal] = []

    def start(kind: str) -> Terminal:
        # TERM=dumb: nothing between the characters that are shown, from Python 3.13 on as before.
        variables = {"TERM": "dumb", "HOME": str(tmp_path), "PYTHON_COLORS": "0"}
        words = ["-q"] if kind == "python" else ["-m", "hybriddist", "-p", "1"]
        terminal = Terminal([sys.executable, *words], command_line.environment(variables), tmp_path)
        terminals.append(terminal)
        terminal.wait_for(">>> ")
        if kind == "python":
            terminal.type("import hybriddist as hd; hd.addprocs(1)\n")
            terminal.wait_for(r"\n\[2\]\n>>> ")
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.mark.parametrize("kind", ["python", "hybriddist"])
def test_what_is_typed_runs_on_workers(kind: str, start: Start) -> None:
    """No main guard, no file: functions, what they use, and their newest version."""
    terminal = start(kind)
    terminal.type("def f(x): return x + k\n\nk = 41\nhd.remotecall_fetch(f, 2, 1)\n")
    terminal.wait_for(r"\n42\n>>> ")
    terminal.type("k = 50\nhd.remotecall_fetch(f, 2, 1)\n")
    terminal.wait_for(r"\n51\n>>> ")
    terminal.type("def f(x): return -x\n\nhd.pmap(f, range(3))\n")
    terminal.wait_for(r"\n\[0, -1, -2\]\n>>> ")
    terminal.type("hd.remotecall_fetch(print, 2, 'said')\n")
    terminal.wait_for(r"From worker 2:\tsaid\n")
    terminal.type("1 / 0\n")
    terminal.wait_for(r"ZeroDivisionError: division by zero\n>>> ")
    terminal.type("exit(5)\n")
    assert terminal.wait() == 5


@pytest.mark.parametrize("kind", ["python", "hybriddist"])
@pytest.mark.parametrize(
    "work",
    ["hd.remotecall_fetch(time.sleep, 2, 60)", "hd.pmap(time.sleep, [60] * 4)", "hd.remotecall(g, 2).fetch()"],
    ids=["fetch", "pmap", "future"],
)
def test_ctrl_c_comes_back_to_the_prompt(kind: str, work: str, start: Start, tmp_path: Path) -> None:
    terminal = start(kind)
    terminal.type("import os, time\ndef g(): time.sleep(60)\n\nhd.remotecall_fetch(os.getpid, 2)\n")
    worker = psutil.Process(int(terminal.wait_for(r"\n(\d+)\n>>> ")[1]))
    terminal.type(f"print('now', flush=True) or {work}\n")
    terminal.wait_for(r"\nnow\n")
    poll_for(lambda: "nanosleep" in Path(f"/proc/{worker.pid}/wchan").read_text(), what="the worker sleeps")
    terminal.press_ctrl_c()
    terminal.wait_for(r"\nKeyboardInterrupt\n>>> ")
    terminal.type("hd.remotecall_fetch(os.getpid, 2)\n")
    assert terminal.wait_for(r"\n(\d+)\n>>> ")[1] == str(worker.pid)
    terminal.type("\x04")  # the end of its input
    assert terminal.wait() == 0
    poll_for(lambda: not worker.is_running(), what="the worker's end")
    assert not os.path.exists(f"/proc/{worker.pid}")
