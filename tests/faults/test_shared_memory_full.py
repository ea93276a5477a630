"""A shared-memory file system that is too small, or full, or becomes full: everything works, only slower.

Each test runs in a mount namespace of its own with a small file system in place of the machine's, so that nobody else
is disturbed. Creating a segment that has no room succeeds, and touching it then kills the process: a worker's death by
SIGBUS, which none of the scripts would survive, is what is looked for in all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.scripts import ScriptRunner

Run = Callable[[int, str], str]

SCRIPT = """
    import os, sys, time
    import numpy as np
    import hybriddist as hd
    from tests.helpers.patterns import pattern, seed_of

    KIB, MIB = 1 << 10, 1 << 20

    def free():
        status = os.statvfs("/dev/shm")
        return status.f_bavail * status.f_frsize

    def fill(leave=0):
        with open("/dev/shm/filler", "wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, free() - leave)

    def until(condition):
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    def make(seed, size):
        return pattern(seed, size)

    def computed(seed, size):
        array = hd.empty(size // 8, "u8")
        array[:] = pattern(seed, size)
        return array

    def relay(pid, seed, size):
        return seed_of(hd.remotecall_fetch(make, pid, seed, size), size)

    def check(pids, sizes=(8 * KIB, 64 * KIB, 512 * KIB, 8 * MIB)):
        "Arrays to and from every worker and between them, several at a time."
        for size in sizes:
            there = [hd.remotecall(seed_of, pid, pattern(pid, size), size) for pid in pids]
            back = [hd.remotecall(make, pid, -pid % 1000, size) for pid in pids]
            between = [hd.remotecall(relay, pid, pids[0], pid, size) for pid in pids[1:]]
            assert [future.fetch() for future in there] == pids
            assert [seed_of(future.fetch(), size) for future in back] == [-pid % 1000 for pid in pids]
            assert [future.fetch() for future in between] == pids[1:]

"""


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Mount namespaces can be had here."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small shared-memory file system")
    if shutil.which("unshare") is None:
        pytest.skip("the command unshare is missing")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here (a container without CAP_SYS_ADMIN)")


@pytest.fixture
def run(namespaces: None, run_python: ScriptRunner, tmp_path: Path) -> Run:
    """``run(size_mib, code)``: run code after `SCRIPT` with so little shared memory; all that it wrote."""

    def run(size_mib: int, code: str) -> str:
        python = tmp_path / "python.sh"
        python.write_text(
            "#!/bin/sh\n"
            f"exec unshare -m --propagation private sh -c '"
            f'mount -t tmpfs -o size={size_mib}m tmpfs /dev/shm && exec "$@"\' sh {sys.executable} "$@"\n'
        )
        python.chmod(0o700)
        # Warnings are counted where they are written, those of workers come on the driver's stdout.
        done = run_python(SCRIPT + code, python=str(python), timeout=40, env={"PYTHONWARNINGS": "always"})
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "right\n" in done.stdout, output
        assert "Worker" not in done.stderr, output  # "Worker N terminated"
        return output

    return run


def test_full_from_the_start(run: Run) -> None:
    output = run(
        4,
        """
    fill()
    pids = hd.addprocs(3)
    assert [hd.path_to(pid) for pid in pids] == ["tcp"] * 3
    check(pids)
    hd.shutdown()
    assert os.listdir("/dev/shm") == ["filler"]
    print("right")
    """,
    )
    assert output.count("RuntimeWarning") == 1
    assert "/dev/shm has 4 MiB" in output
    assert "TCP is used instead" in output


def test_full_and_shared_memory_insisted_on(run: Run) -> None:
    """A clear failure, after which nothing is left, and with room it works."""
    run(
        4,
        """
    fill()
    try:
        hd.addprocs(2, transport="shm")
    except hd.CompositeException as error:
        for failure in error.exceptions:
            assert isinstance(failure, hd.LaunchError), failure
            assert "/dev/shm has 4 MiB, 0.0 MiB of them free" in str(failure), failure
        assert error.pids == []
    else:
        raise AssertionError("no failure")
    assert hd.nprocs() == 1
    os.unlink("/dev/shm/filler")
    pids = hd.addprocs(2, transport="shm")
    assert [hd.path_to(pid) for pid in pids] == ["shm"] * 2
    check(pids)
    hd.shutdown()
    assert os.listdir("/dev/shm") == []
    print("right")
    """,
    )


def test_room_for_some_of_the_workers(run: Run) -> None:
    output = run(
        4,
        """
    pids = hd.addprocs(10)
    assert {hd.path_to(pid) for pid in pids} == {"shm", "tcp"}
    check(pids[:2] + pids[-2:])
    hd.shutdown()
    print("right")
    """,
    )
    assert output.count("TCP is used instead") == 1


def test_becomes_full_and_empty_again(run: Run) -> None:
    """Each process says so once, with advice."""
    output = run(
        64,
        """
    pids = hd.addprocs(2)
    check(pids, sizes=(64 * KIB,))
    print("now it gets full")
    fill()
    for _ in range(3):
        check(pids)
    assert seed_of(hd.remotecall_fetch(computed, pids[0], 9, 8 * MIB), 8 * MIB) == 9
    fill(leave=300 * KIB)
    check(pids)
    os.unlink("/dev/shm/filler")
    room = free()
    until(lambda: check(pids) or free() < room)  # arrays go through shared memory again
    assert {hd.path_to(pid) for pid in pids} == {"shm"}
    hd.shutdown()
    print("right")
    """,
    )
    before = output.split("now it gets full")[0]
    assert "RuntimeWarning" not in before
    warnings = [line for line in output.splitlines() if "RuntimeWarning" in line]
    assert len(warnings) == 3
    assert sum("From worker" in line for line in warnings) == 2
    for line in warnings:
        assert "large arrays take a slower way while that is so" in line
        assert "/dev/shm has 64 MiB" in line
        assert "mount -o remount,size=2g /dev/shm" in line


def test_every_amount_of_room(run: Run) -> None:
    """Whichever reservation is the first that fails: that of a connection, of an arena, of a second one."""
    run(
        4,
        """
    for leave in (64, 256, 512, 640, 1024, 1200, 1800, 2600):
        fill(leave * KIB)
        room = free()
        pids = hd.addprocs(2)
        check(pids, sizes=(64 * KIB, 2 * MIB))
        hd.rmprocs(pids)
        until(lambda: free() == room)  # all memory is given back, and not only some time
    assert os.listdir("/dev/shm") == ["filler"]
    print("right")
    """,
    )


def test_arrays_larger_than_a_containers_shared_memory(run: Run) -> None:
    """Containers have 64 MiB. Each process that sends such arrays says so once, with advice."""
    output = run(
        64,
        """
    pids = hd.addprocs(2)
    check(pids, sizes=(8 * MIB,))
    print("now they are too large")
    for _ in range(2):
        check(pids, sizes=(100 * MIB,))
    held = [hd.remotecall_fetch(make, pid, index, 8 * MIB) for index in range(6) for pid in pids]
    assert [seed_of(array, 8 * MIB) for array in held] == [index for index in range(6) for pid in pids]
    hd.shutdown()
    print("right")
    """,
    )
    before, after = output.split("now they are too large")
    assert "RuntimeWarning" not in before
    warnings = [line for line in after.splitlines() if "RuntimeWarning" in line]
    assert len(warnings) == 3
    assert sum("From worker" in line for line in warnings) == 2
    for line in warnings:
        assert "what a process sends may take 26 MiB of the 64 MiB of /dev/shm" in line
        assert "mount -o remount,size=2g /dev/shm" in line


def test_a_shared_array_that_has_no_room(run: Run) -> None:
    """An error before anything is taken; one that fits works, and its pages are there when somebody else fills up."""
    run(
        16,
        """
    pids = hd.addprocs(2)
    before = free()
    try:
        hd.SharedArray(20 * MIB, np.uint8)
    except hd.SharedMemoryFull as error:
        assert "no shared memory for 20.0 MiB: the shared-memory file system has 16 MiB" in str(error), error
    else:
        raise AssertionError("no failure")
    assert free() == before
    s = hd.SharedArray(4 * MIB, np.uint8)
    fill()
    s[:] = 1
    assert [hd.remotecall_fetch(np.sum, pid, s) for pid in pids] == [4 * MIB] * 2
    try:
        hd.remotecall_fetch(lambda: hd.SharedArray(1 << 20), pids[0])
    except hd.RemoteException as error:
        assert isinstance(error.__cause__, hd.SharedMemoryFull), error
    else:
        raise AssertionError("no failure")
    del s
    os.unlink("/dev/shm/filler")
    until(lambda: free() > 10 * MIB)
    hd.shutdown()
    assert os.listdir("/dev/shm") == []
    print("right")
    """,
    )


def test_large_values_for_all_go_by_value(run: Run) -> None:
    output = run(
        64,
        """
    def total(shared):
        return float(shared.value.sum()), shared.value.flags.writeable

    pids = hd.addprocs(2)
    assert [hd.path_to(pid) for pid in pids] == ["shm"] * 2
    table = np.ones(8 * MIB, "u1")
    fill(leave=1 * MIB)
    shared = hd.broadcast(table, pids=pids[:1])
    assert hd.remotecall_all(total, shared) == dict.fromkeys([1, *pids], (8 * MIB, False))
    assert hd.remotecall_fetch(lambda pid: hd.remotecall_fetch(total, pid, shared), *pids) == (8 * MIB, False)
    print("now the map")
    assert hd.pmap(lambda i: int(table[i]) + i, range(50)) == list(range(1, 51))
    assert hd.distributed(lambda i: int(table[i]), range(50), reduce=lambda x, y: x + y) == 50
    print("now there is room")
    os.unlink("/dev/shm/filler")
    assert hd.remotecall_all(total, hd.broadcast(table)) == dict.fromkeys([1, *pids], (8 * MIB, False))
    hd.shutdown()
    assert os.listdir("/dev/shm") == []
    print("right")
    """,
    )
    assert output.count("RuntimeWarning: a broadcast value (8.0 MiB) is sent by value") == 1
    assert output.count("RuntimeWarning: what a function has captured (8.0 MiB) is sent by value") == 2
    # And once the driver says of its arrays that they take the slower way.
    assert output.count("large arrays take a slower way while that is so") == 1
    assert output.count("mount -o remount,size=2g /dev/shm") == 4
