"""The example of a manager with connections of its own: as a user runs it, and what the library promises of such."""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from examples.unix_socket_manager import UnixSocketManager
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed
from tests.helpers.scripts import ROOT

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "unix_socket_manager.py"

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module")
def pids() -> Iterator[list[int]]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield hd.addprocs(UnixSocketManager(3))
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        hd.shutdown()


def test_as_a_user_runs_it() -> None:
    folders = set(glob.glob(os.path.join(tempfile.gettempdir(), "unix-socket-manager-*")))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^unix: .*, by unix$", done.stdout, re.M)
    assert "the sum of all distances is 10000" in done.stdout
    assert set(glob.glob(os.path.join(tempfile.gettempdir(), "unix-socket-manager-*"))) <= folders


def test_between_all_processes_by_the_managers_own_connections(pids: list[int]) -> None:
    assert [hd.path_to(pid) for pid in pids] == ["unix"] * 3
    for pid in pids:
        assert hd.remotecall_fetch(lambda: [hd.path_to(other) for other in hd.procs()], pid) == [
            "self" if other == pid else "unix" for other in [1, *pids]
        ]
    assert hd.nodes() == [[1, *pids]]  # memory could be shared: proved by the probe, whatever the path


def test_calls_futures_errors_and_arrays(pids: list[int]) -> None:
    one, two, three = pids
    array = np.arange(300_000.0)
    assert np.array_equal(hd.remotecall_fetch(lambda: hd.remotecall_fetch(np.negative, two, array), one), -array)
    future = hd.remotecall(divmod, three, 17, 5)
    assert hd.remotecall_fetch(lambda: future.fetch(), one) == (3, 2)
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(divmod, two, 1, 0)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert hd.pmap(abs, range(-20, 20)) == [abs(number) for number in range(-20, 20)]


def test_what_they_print_appears_here(pids: list[int]) -> None:
    with Printed() as printed:
        hd.remotecall_wait(print, pids[0], "hello")
        printed.wait_for(f"      From worker {pids[0]}:\thello\n")


def test_an_interrupt_ends_a_call(pids: list[int], tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def work(path: str) -> Any:
        import pathlib

        pathlib.Path(path).touch()
        while True:
            time.sleep(0.001)

    call = hd.remotecall(work, pids[1], str(mark))
    poll_for(mark.exists)
    hd.interrupt(pids[1])
    with pytest.raises(hd.RemoteException) as info:
        call.fetch(timeout=20)
    assert isinstance(info.value.__cause__, KeyboardInterrupt)
    assert hd.remotecall_fetch(hd.myid, pids[1]) == pids[1]


def test_a_death_is_noticed_by_all_and_a_removal_is_one(pids: list[int]) -> None:
    (another,) = hd.addprocs(UnixSocketManager(1))
    assert hd.remotecall_fetch(hd.remotecall_fetch, another, hd.myid, pids[0]) == pids[0]
    call = hd.remotecall(time.sleep, another, 60)
    hd.remote_do(os._exit, another, 3)
    with pytest.raises(hd.ProcessExitedException):
        call.fetch(timeout=20)
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(hd.remotecall_fetch, pids[0], hd.myid, another)
    assert isinstance(info.value.__cause__, hd.ProcessExitedException)
    (third,) = hd.addprocs(UnixSocketManager(1))
    hd.rmprocs(third, waitfor=20)
    assert hd.workers() == pids


def test_beside_local_workers_that_cannot_reach_them(pids: list[int]) -> None:
    """A worker without the manager has no way to them, and says so; they reach it by its address, if they dial."""
    (local,) = hd.addprocs(1)
    with pytest.raises(hd.RemoteException, match=r"only by connections of its manager \(unix\)") as info:
        hd.remotecall_fetch(hd.remotecall_fetch, local, hd.myid, pids[0])
    assert isinstance(info.value.__cause__, hd.ConnectError)
    (later,) = hd.addprocs(UnixSocketManager(1))
    assert hd.remotecall_fetch(hd.remotecall_fetch, later, hd.myid, local) == local
    assert hd.remotecall_fetch(hd.path_to, later, local) in ("shm", "tcp")
    hd.rmprocs(local, later)
