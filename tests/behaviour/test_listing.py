"""Who is there: pids and lists, on the driver and on every worker."""

from __future__ import annotations

from typing import Any

import pytest

import hybriddist as hd

pytestmark = pytest.mark.leaks_by_module


def lists() -> dict[str, Any]:
    """What this process says of the cluster, whichever it is."""
    import hybriddist as hd

    return {
        "nprocs": hd.nprocs(),
        "nworkers": hd.nworkers(),
        "procs": hd.procs(),
        "workers": hd.workers(),
        "nodes": hd.nodes(),
    }


def lists_on(pid: int) -> dict[str, Any]:
    return hd.remotecall_fetch(lists, pid)


def test_counts_with_workers(cluster: list[int]) -> None:
    assert hd.nprocs() == 4
    assert hd.nworkers() == 3
    assert hd.procs() == [1, *cluster]
    assert hd.workers() == cluster == sorted(cluster)


def test_everybody_knows_who_he_is(cluster: list[int]) -> None:
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in hd.procs()] == hd.procs()


def test_everybody_knows_who_there_is(cluster: list[int]) -> None:
    assert [lists_on(pid) for pid in cluster] == [lists()] * 3


def test_local_workers_share_the_drivers_node(cluster: list[int]) -> None:
    """A node is proved by shared memory, whatever the transport of the connections is."""
    everybody = [1, *cluster]
    assert hd.nodes() == [everybody]
    for pid in everybody:
        assert hd.procs(pid) == hd.procs_on_node(pid) == everybody
    assert hd.remotecall_fetch(hd.procs_on_node, cluster[0]) == everybody
    assert hd.remotecall_fetch(hd.procs, cluster[0], 1) == everybody


@pytest.mark.parametrize("question", [hd.procs, hd.procs_on_node, hd.path_to])
def test_questions_about_a_pid_that_never_was(cluster: list[int], question: Any) -> None:
    with pytest.raises(hd.NoSuchProcessError, match="no process with id 999999 exists") as info:
        question(999_999)
    assert info.value.pid == 999_999
    assert isinstance(info.value, LookupError)


@pytest.mark.parametrize("wrong", ["2", 2.0, None, True])
def test_a_pid_is_an_integer(cluster: list[int], wrong: Any) -> None:
    with pytest.raises(TypeError):
        hd.path_to(wrong)


def test_workers_ask_each_other(cluster: list[int]) -> None:
    """A first talk in either direction makes the connection; then the lists still agree."""
    for asking in cluster:
        for asked in cluster:
            assert hd.remotecall_fetch(hd.remotecall_fetch, asking, hd.myid, asked) == asked
            assert hd.remotecall_fetch(hd.remotecall_fetch, asking, lists, asked) == lists()
