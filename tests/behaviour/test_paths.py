"""Which way messages take, and which processes share a node."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hybriddist as hd

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def path_between(one: int, other: int) -> str:
    return hd.remotecall_fetch(hd.path_to, one, other)


def test_path_to_oneself(transport: str) -> None:
    assert hd.path_to(1) == "self"
    (pid,) = hd.addprocs(1, transport=transport)
    assert path_between(pid, pid) == "self"


def test_auto_takes_shared_memory_inside_a_node() -> None:
    one, two = hd.addprocs(2)
    assert [hd.path_to(one), path_between(one, 1), path_between(one, two), path_between(two, one)] == ["shm"] * 4


def test_one_transport_for_all(transport: str) -> None:
    one, two = hd.addprocs(2, transport=transport)
    paths = [hd.path_to(one), path_between(one, 1), path_between(one, two), path_between(two, one)]
    assert paths == [transport] * 4


def test_workers_of_one_cluster_may_differ() -> None:
    (one,) = hd.addprocs(1, transport="shm")
    (two,) = hd.addprocs(1, transport="tcp")
    (three,) = hd.addprocs(1)
    assert [hd.path_to(pid) for pid in (one, two, three)] == ["shm", "tcp", "shm"]
    assert path_between(three, one) == path_between(one, three) == "shm"
    assert path_between(two, three) == path_between(three, two) == "tcp"
    assert hd.nodes() == [[1, one, two, three]]  # a node is who can share memory, not who does


def test_a_node_that_is_far_away(elsewhere: list[str]) -> None:
    """Same host, same address, and yet not the same memory: another node, as the probe proves."""
    (near,) = hd.addprocs(1)
    one, two = far = hd.addprocs(2, exename=elsewhere)
    assert hd.nodes() == [[1, near], *([pid] for pid in far)]
    assert hd.procs_on_node(one) == hd.procs(one) == [one]
    assert hd.procs_on_node(near) == hd.procs(1) == [1, near]
    assert {hd.path_to(one), path_between(near, one), path_between(one, two)} == {"tcp"}
    assert hd.remotecall_fetch(len, one, bytes(10**6)) == 10**6


def test_shared_memory_that_cannot_be_had_is_insisted_on(elsewhere: list[str]) -> None:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(1, exename=elsewhere, transport="shm")
    (error,) = info.value
    assert isinstance(error, hd.LaunchError)
    assert error.stage == "connect"
    assert "cannot share memory" in str(error)
    assert hd.workers() == [1]


@pytest.fixture
def elsewhere(tmp_path: Path) -> list[str]:
    """An interpreter with a shared-memory file system of its own, as another machine has."""
    command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c"]
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can give a process a shared memory of its own")
    if subprocess.run([*command, mount], capture_output=True).returncode:
        pytest.skip("this system does not allow private mounts")
    script = tmp_path / "elsewhere.sh"
    script.write_text(f'{mount} && exec {shlex.quote(sys.executable)} "$@"')
    return [*command[:-1], str(script)]


def test_listening_is_on_loopback_only(listening: Callable[[int], set[str]], transport: str) -> None:
    pids = hd.addprocs(2, transport=transport)
    hd.remotecall_fetch(hd.remotecall_fetch, pids[0], hd.myid, pids[1])
    assert listening(1) == set()
    for pid in pids:
        assert listening(pid) == {"127.0.0.1"}


def test_without_restriction_one_address_is_chosen(listening: Callable[[int], set[str]]) -> None:
    (pid,) = hd.addprocs(1, restrict=False)
    assert len(listening(pid)) == 1
    assert listening(pid).isdisjoint({"0.0.0.0", "::"})


@pytest.fixture
def listening() -> Callable[[int], set[str]]:
    """The addresses on which a process accepts connections, as the kernel says, not as we believe."""
    psutil = pytest.importorskip("psutil")

    def addresses(pid: int) -> set[str]:
        process = psutil.Process(hd.remotecall_fetch(os.getpid, pid))
        return {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}

    return addresses
