"""Shared arrays live as long as anybody has them, and leave nothing, however processes end.

Memory that is unmapped too early kills the process that touches it, so some failures here are crashes.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers import leaks
from tests.helpers.mappings import mapped_sizes
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ROOT, ScriptRunner

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module")
def _driver() -> Iterator[None]:
    try:
        yield
    finally:
        hd.shutdown()


@pytest.fixture
def three(_driver: None) -> Iterator[list[int]]:
    """Three workers for one test, which may kill some."""
    pids = hd.addprocs(3)
    yield pids
    hd.rmprocs([pid for pid in pids if pid in hd.procs()])


kept: dict[Any, Any] = {}
"""On each worker: what tests left with it."""


def keep(name: Any, array: Any) -> None:
    kept[name] = array


def kept_sum(name: Any) -> float:
    return float(kept[name].sum())


def pass_on(name: Any, pid: int) -> float:
    return hd.remotecall_fetch(total, pid, kept[name])


def total(array: Any) -> float:
    return float(array.sum())


def make(length: int) -> hd.SharedArray:
    return hd.share(np.ones(length))


def kill(pid: int) -> None:
    os.kill(hd.remotecall_fetch(os.getpid, pid), signal.SIGKILL)
    poll_for(lambda: pid not in hd.procs())


def footprint() -> tuple[int, int]:
    """Descriptors, and mappings of deleted shared memory."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(mapped_sizes())


def settled_footprint(pid: int) -> tuple[int, int]:
    """When nothing more goes away."""
    last = [hd.remotecall_fetch(footprint, pid)]

    def is_still() -> bool:
        last.append(hd.remotecall_fetch(footprint, pid))
        return len(last) > 20 and len(set(last[-20:])) == 1

    poll_for(is_still)
    return last[-1]


def test_the_maker_is_killed(three: list[int]) -> None:
    a, b, c = three
    s = hd.remotecall_fetch(make, a, 10_000)
    hd.remotecall_fetch(keep, b, "s", s)
    view = s[:5]
    kill(a)
    assert s.sum() == 10_000
    assert hd.remotecall_fetch(pass_on, b, "s", c) == 10_000
    assert hd.remotecall_fetch(total, c, s) == 10_000
    s[0] = 2
    del s
    kill(b)
    assert view.tolist() == [2, 1, 1, 1, 1]


def test_the_maker_is_killed_while_it_is_on_its_way(three: list[int]) -> None:
    """The receiver maps it when it unpickles; then it is there, or there is an error, and never a hang or a crash."""
    a, b, _ = three
    calls = [hd.remotecall(lambda n: hd.remotecall_fetch(total, b, make(n)), a, 1000) for _ in range(50)]
    os.kill(hd.remotecall_fetch(os.getpid, a), signal.SIGKILL)
    for call in calls:
        try:
            assert call.fetch(timeout=30) == 1000
        except (hd.ProcessExitedException, hd.RemoteException):
            continue
    assert hd.remotecall_fetch(total, b, make(10)) == 10


def test_receivers_are_killed_at_any_moment(three: list[int]) -> None:
    before = settled_footprint(1)
    s = make(1000)
    for pid in three[:2]:
        calls = [hd.remotecall(total, pid, s) for _ in range(20)]
        os.kill(hd.remotecall_fetch(os.getpid, pid), signal.SIGKILL)
        for call in calls:
            try:
                assert call.fetch(timeout=30) == 1000
            except hd.ProcessExitedException:
                continue
    assert hd.remotecall_fetch(total, three[2], s) == 1000
    del s, call, calls
    poll_for(lambda: footprint()[1] <= before[1])


def test_a_fork_in_user_code(three: list[int]) -> None:
    """The copy lets go of the memory, and takes nothing from its parent by it."""

    def fork(array: Any) -> int:
        ospid = os.fork()
        if not ospid:
            array[1] = 5  # the same memory
            del array
            gc.collect()
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(ospid, 0)[1])

    s = make(100)
    for pid in (three[0], 1):
        assert hd.remotecall_fetch(fork, pid, s) == 7
        assert hd.remotecall_fetch(total, pid, s) == 104
    assert hd.remotecall_fetch(total, three[1], s) == 104


def test_nothing_grows(three: list[int]) -> None:
    a, b, _ = three
    hd.remotecall_fetch(total, a, make(10))
    hd.remotecall_fetch(lambda n: total(hd.remotecall_fetch(make, b, n)), a, 10)
    before = {pid: settled_footprint(pid) for pid in (1, a, b)}
    for _ in range(50):
        s = make(1000)
        assert hd.remotecall_fetch(total, a, s) == hd.remotecall_fetch(total, a, s) == 1000
        assert hd.remotecall_fetch(lambda n: total(hd.remotecall_fetch(make, b, n)), a, 1000) == 1000
    del s
    for pid, was in before.items():
        poll_for(lambda pid=pid, was=was: hd.remotecall_fetch(footprint, pid)[1] <= was[1])
        assert hd.remotecall_fetch(footprint, pid)[0] <= was[0]


def test_a_worker_that_shares_no_memory(three: list[int], tmp_path: Path) -> None:
    """A worker with a /dev/shm of its own is another node: it gets a copy, by TCP."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here: only root may make them, and not in every container")
    python = tmp_path / "python.sh"
    python.write_text(
        "#!/bin/sh\n"
        "exec unshare -m --propagation private sh -c '"
        f'mount -t tmpfs tmpfs /dev/shm && exec "$@"\' sh {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    (far,) = hd.addprocs(1, exename=str(python))
    try:
        assert hd.nodes() == [[1, *three], [far]]
        s = make(100_000)
        assert far not in s.pids

        def use(s: hd.SharedArray, rows: range) -> tuple[bool, float]:
            s.refresh()
            s[rows.start : rows.stop] += 1
            s.publish(rows)
            return s.is_copy, float(s.sum())

        assert hd.remotecall_fetch(use, far, s, range(5)) == (True, 100_005)
        assert hd.remotecall_fetch(use, three[0], s, range(3, 6)) == (False, 100_008)
        assert hd.remotecall_fetch(use, far, s, range(0)) == (True, 100_008)
        assert s[:7].tolist() == [2, 2, 2, 3, 3, 2, 1]
        with pytest.raises(hd.SerializeError, match=f"process {far} is on another node"):
            hd.remotecall_fetch(total, far, hd.SharedArray(3, node_local=False))
        back = hd.remotecall_fetch(make, far, 10)
        assert (back.is_copy, back.sum(), hd.remotecall_fetch(total, three[0], back)) == (True, 10, 10)
        hd.remotecall_fetch(keep, far, "far", s)
    finally:
        hd.rmprocs(far)
    assert (back.sum(), hd.remotecall_fetch(total, three[1], back)) == (10, 10)


def test_a_new_cluster_goes_on_with_it(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import numpy as np
        import hybriddist as hd
        s = hd.SharedArray(3)
        assert s.pids == [1] and s.localindices() == range(3)
        hd.addprocs(1)
        assert hd.remotecall_fetch(np.sum, 2, s) == 0
        hd.shutdown()
        s += 1
        hd.addprocs(1)
        assert hd.remotecall_fetch(np.sum, hd.workers()[0], s) == 3
        print("right")
        """
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 2)", "os.kill(os.getpid(), 9)"])
def test_the_driver_ends(end: str, tmp_path: Path, run_id: str) -> None:
    """By returning, by Ctrl-C, by SIGKILL: no process and no name is left."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "import numpy as np\n"
        "import hybriddist as hd\n"
        "hd.addprocs(2)\n"
        "s = hd.share(np.ones(100_000))\n"
        "t = hd.remotecall_fetch(lambda: hd.share(np.ones(100_000)), 2)\n"
        "print(hd.remotecall_fetch(np.sum, 3, s), hd.remotecall_fetch(np.sum, 3, t),"
        " *hd.remotecall_all(os.getpid).values(), flush=True)\n"
        f"{end}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = leaks.orphans(run_id)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    words = done.stdout.split()
    assert words[:2] == ["100000.0", "100000.0"], done.stderr
    ospids = [int(word) for word in words[2:]]
    assert len(ospids) == 3
    poll_for(lambda: not leaks.segments_of(*ospids))
    assert leaks.settle_orphans(run_id, before, timeout=5.0) == []
