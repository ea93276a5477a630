"""addprocs that does not succeed, or not for all: failed launches, time limits, shutdown in the middle."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """An exename that runs shell code, whatever its arguments are."""

    def command(code: str) -> list[str]:
        script = tmp_path / "command.sh"
        script.write_text(code)
        return ["/bin/sh", str(script)]

    return command


class Flawed(hd.LocalManager):
    """Its middle worker is a command that ends at once."""

    def launch(self, params: Any, launched: Any, notify: Any) -> None:
        for exename in (None, "/bin/false", None):
            one = hd.LocalManager(1)
            one._context = self._context
            one.launch({**params, "exename": exename}, launched, notify)


def test_the_good_ones_of_a_launch_stay() -> None:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(Flawed(3))
    (error,) = info.value
    assert isinstance(error, hd.LaunchError)
    assert (error.host, error.stage) == ("localhost", "announce")
    assert "Unable to read host:port string from worker. Launch command exited with error?" in str(error)
    assert info.value.pids == hd.workers()
    assert len(info.value.pids) == 2
    assert [hd.remotecall_fetch(hd.workers, pid) for pid in info.value.pids] == [info.value.pids] * 2


def test_go_on_without_those_that_failed() -> None:
    with pytest.warns(RuntimeWarning, match="localhost"):
        pids = hd.addprocs(Flawed(3), on_failure="continue")
    assert pids == hd.workers()
    assert len(pids) == 2
    with pytest.warns(RuntimeWarning, match="localhost"):
        assert hd.addprocs(2, exename="/bin/false", on_failure="continue") == []


def test_a_failed_launch_costs_its_pid_only() -> None:
    (first,) = hd.addprocs(1)
    with pytest.raises(hd.CompositeException):
        hd.addprocs(1, exename="/bin/false")
    assert hd.addprocs(1) == [first + 2]
    with pytest.raises(hd.ProcessExitedException, match="never started"):
        hd.remotecall_fetch(hd.myid, first + 1)
    assert hd.remotecall_fetch(hd.workers, first) == [first, first + 2]


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("echo some reason >&2; exit 3", "Unable to read host:port string from worker.", hd.LaunchError),
        ("yes garbage | head -n 1100; sleep 60", "Unexpected output from worker launch command.", hd.LaunchError),
        ("sleep 60", "Timed out waiting to read host:port string from worker.", hd.LaunchTimeout),
    ],
    ids=["ends", "chatters", "is silent"],
)
def test_a_command_that_does_not_announce_itself(
    command: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch, code: str, text: str, kind: type[Exception]
) -> None:
    if kind is hd.LaunchTimeout:
        monkeypatch.setenv("HYBRIDDIST_WORKER_TIMEOUT", "0.3")
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(1, exename=command(code))
    (error,) = info.value
    assert type(error) is kind
    assert text in str(error)
    assert error.stage == "announce"
    if kind is hd.LaunchError and "Unable" in text:
        assert "exit code 3" in str(error)
        assert error.stderr_tail == "some reason"


def test_an_interpreter_without_the_package(command: Callable[[str], list[str]]) -> None:
    """The command's own words say what is wrong."""
    code = f"exec {shlex.quote(sys.executable)} -S -I -m hybriddist --worker"
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(1, exename=command(code))
    assert "No module named" in str(info.value)
    assert "hybriddist" in info.value.exceptions[0].stderr_tail  # type: ignore[attr-defined]


def test_an_interpreter_that_does_not_exist() -> None:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(1, exename="/no/such/python")
    assert "/no/such/python" in str(info.value)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("where", ["launch", "manage", "kill"])
def test_a_manager_that_raises_is_heard(where: str, kind: type[BaseException]) -> None:
    """Whatever it raises, on whichever of the library's threads: the call ends, with that."""

    class Raising(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            super().launch(params, launched, notify)
            if where == "launch":
                raise kind("enough")

        def manage(self, pid: int, config: Any, op: str) -> None:
            if where != "launch" and op == "register":
                raise kind("enough")
            super().manage(pid, config, op)

        def kill(self, pid: int, config: Any) -> None:
            super().kill(pid, config)
            if where == "kill":
                raise kind("enough")

    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(Raising(1))
    (failure,) = info.value
    assert isinstance(failure, hd.LaunchError)
    assert "enough" in str(failure)
    assert info.value.pids == (hd.workers() if where == "launch" else [])
    assert hd.nprocs() == 1 + len(info.value.pids) == (2 if where == "launch" else 1)
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])
    assert len(hd.addprocs(1)) == 1


# ---- time limits -------------------------------------------------------------------------------------------------


class HalfSlow(hd.LocalManager):
    """Its second worker is a command that never announces itself."""

    def launch(self, params: Any, launched: Any, notify: Any) -> None:
        one = hd.LocalManager(1)
        one._context = self._context
        one.launch(params, launched, notify)
        poll_for(lambda: hd.nprocs() == 2)
        one.launch({**params, "exename": ["/bin/sh", "-c", "exec sleep 60"]}, launched, notify)


def test_time_limit_of_the_whole_call() -> None:
    with pytest.raises(TimeoutError, match="did not finish within 1 seconds") as info:
        hd.addprocs(HalfSlow(2), timeout=1)
    assert isinstance(info.value, hd.LaunchTimeout)
    assert info.value.pids == hd.workers()  # type: ignore[attr-defined]
    assert hd.remotecall_fetch(hd.workers, hd.workers()[0]) == hd.workers()
    assert hd.addprocs(1) == [hd.workers()[0] + 2]


def test_time_limit_tells_where_the_workers_were(command: Callable[[str], list[str]]) -> None:
    with pytest.raises(hd.LaunchTimeout, match=r"did not finish within 0\.5 seconds") as info:
        hd.addprocs(2, timeout=0.5, exename=command("echo pre; exec sleep 60"))
    assert (info.value.host, info.value.stage, info.value.stderr_tail) == ("localhost", "announce", "pre")


def test_a_manager_that_never_ends_is_left_behind() -> None:
    class Endless(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            try:
                while True:
                    super().launch(params, launched, notify)
                    time.sleep(0.05)
            except hd.ClusterError as error:
                told.append(error)
                raise

    told: list[Exception] = []
    with pytest.raises(TimeoutError) as info:
        hd.addprocs(Endless(1), timeout=0.5)
    poll_for(lambda: told, what="notify raises when the call is over")
    pids = info.value.pids  # type: ignore[attr-defined]
    assert pids == hd.procs()[1:]  # as many as there was time for
    pids += hd.addprocs(1)
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids


# ---- shutdown ----------------------------------------------------------------------------------------------------


def test_addprocs_after_shutdown(transport: str) -> None:
    (last,) = hd.addprocs(1, transport=transport)
    for _ in range(2):
        hd.shutdown()
        assert hd.workers() == [1]
        assert (hd.nprocs(), hd.myid()) == (1, 1)
        last += 1
        assert hd.addprocs(1, transport=transport) == [last]
        assert hd.remotecall_fetch(hd.myid, last) == last
    with pytest.raises(hd.ProcessExitedException):
        hd.remotecall_fetch(hd.myid, last - 1)
    hd.shutdown()
    hd.shutdown()


def test_shutdown_during_addprocs_ends_it() -> None:
    slow, ends = threading.Event(), []

    class Slow(HalfSlow):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            super().launch(params, launched, notify)
            slow.set()

    def add() -> None:
        try:
            hd.addprocs(Slow(2))
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    assert slow.wait(30)
    hd.shutdown()
    thread.join(30)
    assert [type(error) for error in ends] == [hd.ClusterError]
    assert hd.workers() == [1]
