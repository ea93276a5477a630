"""Managers of a user's own: what they may get wrong, and what the cluster then does; further workers of a host."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.cluster import cluster_of
from hybriddist.managers.cpus import usable_cpus
from hybriddist.managers.interpreter import BLAS_VARIABLES
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed
from tests.helpers.scripts import ROOT

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


class Plain(hd.ClusterManager):
    """Starts ordinary workers, in the plainest way, and notes what it is asked for."""

    arguments: tuple[str, ...] = ("-m", "hybriddist", "--worker")

    def __init__(self, count: int = 1, **fields: Any) -> None:
        self.count = count
        self.fields = fields
        self.asked: list[tuple[str, int]] = []

    def launch(self, params: Mapping[str, Any], launched: list[hd.WorkerConfig], notify: Callable[[], None]) -> None:
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert process.stdin is not None
            process.stdin.write(hd.cluster_cookie().encode() + b"\n")
            config = hd.WorkerConfig()
            config.io, config.userdata = process.stdout, process
            for name, value in self.fields.items():
                setattr(config, name, value)
            launched.append(config)
            notify()

    def manage(self, pid: int, config: hd.WorkerConfig, op: str) -> None:
        self.asked.append((op, pid))
        if config.process is None and op == "finalize" and config.io is not None:
            config.userdata.stdin.close()
            config.userdata.wait(10)

    def kill(self, pid: int, config: hd.WorkerConfig) -> None:
        self.asked.append(("kill", pid))
        config.userdata.kill()


class Through(Plain):
    """Connects by itself to workers that listen by themselves: through a tunnel, say."""

    path_name = "tunnel"

    def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
        _, _, address = config.io.readline().decode().partition("hybriddist_worker:")
        port, _, host = address.strip().partition("#")
        with socket.create_connection((host, int(port))) as connection:
            return connection.makefile("rb"), connection.makefile("wb")


def test_streams_to_a_worker_that_listens_by_itself() -> None:
    """The driver's way is the manager's; the workers, who have no manager, meet by their addresses."""
    manager = Through(2)
    one, two = hd.addprocs(manager)
    assert (hd.path_to(one), hd.path_to(two)) == ("tunnel", "tunnel")
    assert hd.remotecall_fetch(hd.remotecall_fetch, two, hd.path_to, one, two) in ("shm", "tcp")
    with Printed() as printed:
        hd.remotecall_wait(print, one, "hello")
        printed.wait_for(f"From worker {one}:\thello\n")
    hd.rmprocs(one, two)
    assert [op for op, pid in manager.asked if pid == one] == ["register", "deregister", "finalize"]


def test_streams_tell_which_worker_is_at_their_other_end() -> None:
    """Those that `connect` gave, and the socket behind them; also when it is the connection of one of several."""

    class Keeping(Through):
        streams: dict[int, tuple[Any, Any]]

        def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
            self.streams[pid] = streams = super().connect(pid, config)
            return streams

    manager = Keeping(2)
    manager.streams = {}
    pids = hd.addprocs(manager)
    assert sorted(manager.streams) == pids
    for pid, streams in manager.streams.items():
        for stream in streams:
            assert hd.worker_id_from_socket(stream) == pid
            assert hd.worker_id_from_socket(stream.fileno()) == pid
            assert hd.worker_id_from_socket(stream.raw) == pid
    hd.rmprocs(pids)
    assert {hd.worker_id_from_socket(stream) for pair in manager.streams.values() for stream in pair} == {-1}


def failure_of(manager: Plain) -> hd.LaunchError:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(manager)
    (error,) = info.value
    assert info.value.pids == []
    assert hd.workers() == [1]
    assert [op for op, _ in manager.asked] == ["kill", "deregister", "finalize"]
    return error


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (OSError("the tunnel is closed"), "the tunnel is closed"),
        (SystemExit("no way"), "SystemExit"),
        ("a string", r"must return \(reader, writer\) or None, not 'a string'"),
        ((io.StringIO(), io.StringIO()), "the reader is a text file"),
    ],
    ids=["an error", "an exit", "no streams", "text streams"],
)
def test_connect_fails(result: Any, text: str) -> None:
    class Failing(Plain):
        def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
            if isinstance(result, BaseException):
                raise result
            return result

    error = failure_of(Failing())
    assert error.stage == "connect"
    assert re.search(text, str(error))


def test_connect_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker timeout ends it; streams that come too late are closed."""
    go_on = threading.Event()
    ours, theirs = socket.socketpair()

    class Hanging(Plain):
        def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
            go_on.wait(20)
            with ours:
                return ours.makefile("rb"), ours.makefile("wb")

    monkeypatch.setenv("HYBRIDDIST_WORKER_TIMEOUT", "0.3")
    with theirs:
        error = failure_of(Hanging())
        assert isinstance(error, hd.LaunchTimeout)
        assert "gave no streams" in str(error)
        go_on.set()
        theirs.settimeout(10)
        assert theirs.recv(1) == b""


def test_what_cannot_travel_in_connect_at() -> None:
    class Unpicklable(Through):
        def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
            config.connect_at = threading.Lock()
            return super().connect(pid, config)

    assert "cannot pickle" in str(failure_of(Unpicklable()))


def test_launch_raises_when_one_is_up() -> None:
    """What came is set up, and stays; then the error is raised, with its pid."""

    class HalfWay(Plain):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            super().launch(params, launched, notify)
            raise RuntimeError("no more machines")

    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(HalfWay(2))
    assert isinstance(info.value.exceptions[0], hd.LaunchError)
    assert "no more machines" in str(info.value)
    pids = info.value.pids
    assert len(pids) == 2
    assert hd.workers() == pids
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids
    hd.rmprocs(pids)


# ---- further workers of a host ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, "auto"])
def test_count_is_of_all_through_one_config(count: Any) -> None:
    manager = Plain(count=1)
    manager.fields["count"] = count
    pids = hd.addprocs(manager)
    assert len(pids) == (usable_cpus() if count == "auto" else count)
    assert hd.nodes() == [[1, *pids]]
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids
    for pid, other in itertools.pairwise(pids):
        assert hd.remotecall_fetch(hd.remotecall_fetch, other, hd.myid, pid) == pid
    with Printed() as printed:
        hd.remotecall_wait(print, pids[-1], "hello")
        printed.wait_for(f"      From worker {pids[-1]}:\thello\n")
    assert sorted(pid for op, pid in manager.asked if op == "register") == pids
    hd.rmprocs(pids)


@pytest.mark.parametrize("count", [0, -1, 1.5, "many", True])
def test_a_count_that_is_none(count: Any) -> None:
    manager = Plain()
    manager.fields["count"] = count
    assert 'a number of workers from 1 up, or "auto"' in str(failure_of(manager))


def test_further_workers_are_interrupted_and_killed_through_the_first(tmp_path: Any) -> None:
    manager = Plain()
    manager.fields["count"] = 2
    first, further = hd.addprocs(manager)
    mark = tmp_path / "mark"

    def work(path: str) -> None:
        import pathlib
        import time

        pathlib.Path(path).touch()
        while True:
            time.sleep(0.001)

    call = hd.remotecall(work, further, str(mark))
    poll_for(mark.exists)
    hd.interrupt(further)
    with pytest.raises(hd.RemoteException) as info:
        call.fetch(timeout=20)
    assert isinstance(info.value.__cause__, KeyboardInterrupt)
    assert hd.remotecall_fetch(hd.myid, further) == further
    cluster = cluster_of(current())
    cluster.managers[further].kill(further, cluster.configs[further])
    poll_for(lambda: hd.workers() == [first])


def test_further_workers_leave_with_the_first() -> None:
    manager = Plain()
    manager.fields["count"] = 3
    first, *_ = hd.addprocs(manager)
    os.kill(hd.remotecall_fetch(os.getpid, first), signal.SIGKILL)
    poll_for(lambda: hd.workers() == [1])


def test_a_further_one_that_cannot_start_is_reported_and_the_first_stays() -> None:
    manager = Plain()
    manager.fields.update(count=2, exename=["/no/such/python"])
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(manager)
    assert "a further worker cannot be started" in str(info.value)
    (pid,) = info.value.pids
    assert hd.workers() == [pid]
    assert hd.remotecall_fetch(hd.myid, pid) == pid


# ---- what it may get wrong in its launch --------------------------------------------------------------------------


@pytest.mark.parametrize("notifies", [True, False])
def test_launch_appends_what_is_no_config(notifies: bool) -> None:
    class Wrong(Plain):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            launched.append(5)
            if notifies:
                notify()
            super().launch(params, launched, notify)

    text = "Wrong.launch appended 5 to launched, which takes a WorkerConfig"
    with pytest.raises(TypeError, match=text):
        hd.addprocs(Wrong(0), timeout=30)
    with pytest.raises(hd.CompositeException, match="1 of the workers could not") as info:
        hd.addprocs(Wrong(1), timeout=30)
    assert info.value.pids == hd.workers() != [1]
    assert text in str(info.value.exceptions[0])


@pytest.mark.parametrize(
    ("same", "text"), [("config", "twice; each worker has a WorkerConfig of its own"), ("io", "whose io is another")]
)
def test_launch_appends_what_it_has_appended(same: str, text: str) -> None:
    """The first one is a worker as any other, and the next addprocs works, with output."""

    class Again(Plain):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            super().launch(params, launched, notify)
            launched.append(launched[0] if same == "config" else hd.WorkerConfig())
            launched[-1].io = launched[0].io
            notify()

    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(Again(), timeout=30)
    (error,) = info.value
    assert re.search(f"Again.launch appended WorkerConfig.*{text}", str(error))
    assert info.value.pids == hd.workers() != [1]
    (other,) = hd.addprocs(Plain(), timeout=30)
    with Printed() as printed:
        for pid in hd.workers():
            hd.remotecall_wait(print, pid, "hello")
            printed.wait_for(f"From worker {pid}:\thello\n")
    assert hd.workers() == [*info.value.pids, other]


def test_launch_appends_the_config_of_a_worker_that_is_there() -> None:
    (pid,) = hd.addprocs(Plain())

    class Late(Plain):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            launched.append(cluster_of(current()).configs[pid])

    with pytest.raises(ValueError, match=r"Late\.launch appended WorkerConfig.* twice"):
        hd.addprocs(Late(), timeout=30)
    assert hd.remotecall_fetch(hd.myid, pid) == pid


@pytest.mark.parametrize("idents", [3, "ab", b"ab"])
def test_connect_idents_that_are_no_list_of_names(idents: Any) -> None:
    """They cost their worker, and no other."""

    class Named(Plain):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            def name_it() -> None:
                launched[-1].ident, launched[-1].connect_idents = [("a", iter("b")), ("b", idents), ("b", None)][
                    len(launched) - 1
                ]
                notify()

            super().launch(params, launched, name_it)

    manager = Named(3)
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(manager, topology="custom", timeout=30)
    (error,) = info.value
    assert isinstance(error, hd.LaunchError)
    assert f"connect_idents in a WorkerConfig is a list of names, not {idents!r}" in str(error)
    one, two = info.value.pids
    assert hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one) == one
    (bad,) = (pid for op, pid in manager.asked if op == "kill")
    assert bad not in (one, two)


def test_register_raises() -> None:
    class Refusing(Plain):
        def manage(self, pid: int, config: hd.WorkerConfig, op: str) -> None:
            if op == "register":
                raise ValueError("no room for it")
            super().manage(pid, config, op)

    error = failure_of(Refusing())
    assert error.message.endswith(": Refusing.manage(..., 'register') raised ValueError('no room for it')")
    assert isinstance(error.__cause__, hd.ClusterError)
    assert isinstance(error.__cause__.__cause__, ValueError)
    assert (error.host, error.stage) == ("localhost", "join")


def test_an_error_that_cannot_say_what_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    class Silent(Plain):
        def connect(self, pid: int, config: hd.WorkerConfig) -> Any:
            raise Mute

    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(Silent(), timeout=30)
    assert "could not be used: Mute" in str(info.value.exceptions[0])


def test_the_config_of_a_worker_that_has_joined() -> None:
    (pid,) = hd.addprocs(Plain())
    config = cluster_of(current()).configs[pid]
    assert config.ospid == hd.remotecall_fetch(os.getpid, pid)
    assert config.cpu_threads == hd.remotecall_fetch(usable_cpus, pid)


# ---- numeric libraries --------------------------------------------------------------------------------------------


class Loaded(Plain):
    """Starts a program that has used numpy before it becomes a worker."""

    arguments = (
        "-c",
        "import numpy as np; np.ones((4, 4)) @ np.ones((4, 4)); import hybriddist as hd; hd.start_worker()",
    )


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables for numeric libraries: only one is set."""
    for name in BLAS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")


@pytest.mark.usefixtures("variables")
def test_numeric_libraries_get_one_thread_unless_asked() -> None:
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"]
    (usual,) = hd.addprocs(Plain())
    (many,) = hd.addprocs(Plain(), enable_threaded_blas=True)
    (own,) = hd.addprocs(Plain(enable_threaded_blas=True))
    assert [hd.remotecall_fetch(os.getenv, usual, name) for name in names] == ["1", "1", "3"]
    assert [hd.remotecall_fetch(os.getenv, many, name) for name in names] == [None, None, "3"]
    assert [hd.remotecall_fetch(os.getenv, own, name) for name in names] == [None, None, "3"]


def test_a_numeric_library_that_is_loaded_already_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("threadpoolctl", reason="it alone can tell BLAS")
    for name in BLAS_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def threads() -> set[int]:
        import threadpoolctl

        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    (usual,) = hd.addprocs(Loaded())
    (many,) = hd.addprocs(Loaded(), enable_threaded_blas=True)
    found = hd.remotecall_fetch(threads, many)
    if not found:
        pytest.skip("this numpy has no BLAS that threadpoolctl knows")
    assert found == {usable_cpus()}
    assert hd.remotecall_fetch(threads, usual) == {1}
