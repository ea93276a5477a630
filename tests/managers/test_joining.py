"""A program of a manager's own becoming a worker: what it must not do, and how it ends."""

from __future__ import annotations

import socket

import pytest

import hybriddist as hd
from hybriddist.managers.streams import connect_at
from tests.helpers.scripts import ScriptRunner


@pytest.mark.parametrize(
    ("before", "error"),
    [
        (
            "hd.Future()",
            "ClusterError: this process has made references or calls already; init_worker comes before any",
        ),
        (
            "hd.addprocs(1)",
            "ClusterError: this process is a member of a cluster already; init_worker comes first of all",
        ),
        ("hd.init_worker('secret')", "ClusterError: this process is a member of a cluster already; init_worker comes "),
    ],
)
def test_it_comes_first(run_python: ScriptRunner, before: str, error: str) -> None:
    done = run_python(f"import hybriddist as hd\nkept = {before}\nhd.init_worker('secret')")
    assert done.returncode == 1
    assert error in done.stderr


@pytest.mark.parametrize(
    ("cookie", "manager", "kind"), [("", None, ValueError), (b"x", None, TypeError), ("secret", object(), TypeError)]
)
def test_bad_arguments(cookie: object, manager: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        hd.init_worker(cookie, manager)  # type: ignore[arg-type]
    assert hd.myid() == 1


def test_messages_are_for_workers() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rwb") as stream:
        with pytest.raises(hd.ClusterError, match="process_messages is for workers, after init_worker"):
            hd.process_messages(stream, stream)
        assert not stream.closed


def test_a_connection_of_a_member_comes_from_its_manager(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import socket
        import hybriddist as hd
        hd.init_worker("a secret of no importance")
        ours, theirs = socket.socketpair()
        try:
            hd.process_messages("no stream", ours)
        except TypeError as error:
            print(error)
        hd.process_messages(ours.makefile("rb"), ours.makefile("wb"), incoming=False)  # to the driver: not yet a member
        from hybriddist.runtime.current import current
        current().pid = 5
        try:
            hd.process_messages(ours.makefile("rb"), ours.makefile("wb"), incoming=False)
        except hd.ClusterError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "the reader must be a binary file object" in done.stdout
    assert "this process is worker 5: connections that it makes come from its manager's connect" in done.stdout


def test_calls_before_a_driver_has_come(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import hybriddist as hd
        hd.init_worker("a secret of no importance")
        for pid in 1, 2:
            try:
                hd.remotecall_fetch(len, pid, [1])
            except hd.ClusterError as error:
                print(type(error).__name__, error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ClusterError no driver has connected to this process yet") == 2


def test_without_a_driver_it_leaves_in_time(run_python: ScriptRunner) -> None:
    done = run_python(
        "import hybriddist as hd, threading\nhd.init_worker('a secret of no importance')\nthreading.Event().wait()",
        env={"HYBRIDDIST_WORKER_TIMEOUT": "0.2"},
    )
    assert done.returncode == 1
    assert "could not connect within 0.2 seconds" in done.stderr


def test_no_place_to_connect_at_is_nothing() -> None:
    assert connect_at(hd.WorkerConfig()) == b""
