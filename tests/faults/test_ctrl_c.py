"""Ctrl-C on a terminal at random moments, whatever is under way: an exception each time, and the cluster goes on."""

from __future__ import annotations

import os
import random
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.scripts import ROOT, ScriptRunner
from tests.helpers.terminal import Terminal

TURNS = 20

SCRIPT = """
    import os, sys, time
    import hybriddist as hd
    from tests.helpers.patterns import pattern, seed_of

    kind, transport, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
    SIZE = 1 << 20

    def make(seed): return pattern(seed, SIZE)
    def nap(x): time.sleep(0.001); return x
    async def nap_there(x): return await hd.remotecall(nap, pids[x % 2], x)

    def work():
        if kind == "fetch":
            assert hd.remotecall_fetch(abs, pids[0], -7) == 7
        elif kind == "futures":
            futures = [hd.remotecall(abs, pid, -pid) for pid in pids * 50]
            assert [future.fetch() for future in futures] == pids * 50
        elif kind == "arrays":
            assert hd.remotecall_fetch(seed_of, pids[0], make(3), SIZE) == 3
            assert seed_of(hd.remotecall_fetch(make, pids[1], 4), SIZE) == 4
        elif kind == "pmap":
            assert hd.pmap(nap, range(20)) == list(range(20))
        elif kind == "distributed":
            assert hd.distributed(nap, range(20), reduce=lambda a, b: a + b) == 190
        elif kind == "asyncmap":
            assert hd.asyncmap(lambda x: hd.remotecall_fetch(nap, pids[x % 2], x), range(20)) == list(range(20))
        elif kind == "asyncmap of coroutines":
            assert hd.asyncmap(nap_there, range(20)) == list(range(20))
        elif kind == "addprocs":
            hd.rmprocs(hd.addprocs(1, transport=transport))

    def check(turn):
        assert [hd.remotecall_fetch(abs, pid, -pid) for pid in pids] == pids
        assert hd.remotecall_fetch(seed_of, pids[0], make(turn), SIZE) == turn
        assert seed_of(hd.remotecall_fetch(make, pids[1], turn), SIZE) == turn
        assert hd.pmap(abs, range(10)) == list(range(10))
        assert hd.remotecall_fetch(hd.remotecall_fetch, pids[0], hd.myid, pids[1]) == pids[1]
        hd.rmprocs(set(hd.workers()) - set(pids))  # one that was added, with the strike before it was removed
        end = time.monotonic() + 10
        while hd.workers() != pids:  # what a strike in the midst of adding or removing has set going
            assert time.monotonic() < end, hd.workers()
            time.sleep(0.005)

    pids = hd.addprocs(2, transport=transport)
    check(0)
    for turn in range(turns):
        try:
            print("now", flush=True)
            while True:
                work()
        except KeyboardInterrupt:
            pass
        check(turn)
        print("well", flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """``start(*arguments)``: the script on a terminal."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    terminals: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        terminals.append(Terminal([sys.executable, str(path), *arguments], environment, tmp_path))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    "kind",
    ["fetch", "futures", "arrays", "pmap", "distributed", "asyncmap", "asyncmap of coroutines", "addprocs"],
)
def test_at_random_moments(kind: str, transport: str, start: Callable[..., Terminal]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")
    terminal = start(kind, transport, str(TURNS))
    for _ in range(TURNS):
        terminal.wait_for("now\n")
        time.sleep(moments.uniform(0, 0.1 if kind == "addprocs" else 0.02))  # the moment of the fault
        terminal.press_ctrl_c()
        terminal.wait_for("well\n")
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.text


FINALISERS = {
    "of an element of a weak set": """
        from weakref import WeakSet
        class Thing: pass
        class Elements(set):
            def discard(self, element): strike(); super().discard(element)
        threads = WeakSet()  # as the one of `threading`
        threads.data = Elements()
        thing = Thing()
        threads.add(thing)
    """,
    "of an array": """
        from hybriddist.core.lease import Lessor
        thing = Lessor().lease(bytearray(8), 0, 8, strike)
    """,
    "of a reference": """
        from hybriddist.runtime.current import current
        book = current().references._book
        thing = hd.remotecall_wait(abs, pid, -1)
        book._notify = lambda wake=book._notify: (strike(), wake())
    """,
}


@pytest.mark.parametrize("finaliser", FINALISERS)
def test_in_the_middle_of_a_finaliser(run_python: ScriptRunner, finaliser: str) -> None:
    """Python shows and forgets what a finaliser raises: the Ctrl-C would be lost, and with it what was to be done."""
    code = """
        import signal, time
        import hybriddist as hd
        struck = []
        def strike():
            signal.raise_signal(signal.SIGINT)
            struck.append("to its end")
        (pid,) = hd.addprocs(1)
        THING
        try:
            del thing
            time.sleep(20)
        except KeyboardInterrupt:
            print(*struck)
        end = time.monotonic() + 10
        while hd.live_references(pid):
            assert time.monotonic() < end
    """
    done = run_python(textwrap.dedent(code).replace("THING", textwrap.dedent(FINALISERS[finaliser])))
    assert (done.returncode, done.stdout, done.stderr) == (0, "to its end\n", "")
