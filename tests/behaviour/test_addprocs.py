"""addprocs: arguments, what workers inherit, failures, time limits, several callers at once."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.managers.cpus import usable_cpus
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What each returned or raised, all called at once."""
    barrier, ends = threading.Barrier(len(functions)), [None] * len(functions)

    def run(index: int) -> None:
        barrier.wait(10)
        try:
            ends[index] = functions[index]()
        except Exception as error:
            ends[index] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return ends


# ---- how many -----------------------------------------------------------------------------------------------------


def test_new_pids_sorted_and_counted_on(transport: str) -> None:
    first = hd.addprocs(3, transport=transport)
    assert first == list(range(first[0], first[0] + 3))
    assert hd.addprocs(n=2, transport=transport) == [first[-1] + 1, first[-1] + 2]
    assert hd.nworkers() == 5


def test_as_many_as_usable_cpus_by_default() -> None:
    assert len(hd.addprocs()) == usable_cpus()


def test_none_at_all() -> None:
    (before,) = hd.addprocs(1)
    assert hd.addprocs(0) == hd.addprocs(hd.LocalManager(0)) == []
    assert hd.addprocs(1) == [before + 1]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"n": 1, "colour": "red"}, TypeError, "'colour'"),
        ({"n": 1, "colour": "red", "weight": 1}, TypeError, "'colour', 'weight'"),
        ({"n": 0, "colour": "red"}, TypeError, "'colour'"),
        ({"n": 1, "transport": "pigeon"}, ValueError, "transport must be one of 'auto', 'shm', 'tcp'"),
        ({"n": 1, "topology": "ring"}, ValueError, "topology must be one of 'all_to_all', 'master_worker', 'custom'"),
        ({"n": 1, "on_failure": "ignore"}, ValueError, "on_failure must be one of 'raise', 'continue'"),
        ({"n": 1, "timeout": "soon"}, TypeError, "timeout"),
        ({"n": 1, "restrict": "yes"}, TypeError, "restrict"),
        ({"n": 1, "env": ["A=1"]}, TypeError, "env"),
        ({"n": 1, "env": {"A": 1}}, TypeError, "env"),
        ({"n": 1, "exename": 5}, TypeError, "exename"),
        ({"n": 1, "exename": []}, ValueError, "exename is empty"),
        ({"n": 1, "exeflags": 5}, TypeError, "exeflags"),
        ({"n": 1, "exeflags": [5]}, TypeError, "each word of exeflags must be a string or a path, not int"),
        ({"n": 1, "exeflags": "'unclosed"}, ValueError, "exeflags=.*cannot be split into words: No closing quotation"),
        ({"n": 1, "dir": 5}, TypeError, "dir must be a string or a path, not int"),
        ({"n": 1, "dir": b"/"}, TypeError, "dir must be a string or a path, not bytes"),
        ({"n": 1, "enable_threaded_blas": "x"}, TypeError, "enable_threaded_blas must be True or False, not 'x'"),
        ({"n": -1}, ValueError, "n, the number of workers to add, must not be negative: -1"),
        ({"n": 1, "lazy": "yes"}, TypeError, "lazy must be True or False, not 'yes'"),
        ({"n": 1.5}, TypeError, "float"),
        ({"n": True}, TypeError, "bool"),
        ({"n": "3"}, TypeError, "str"),
    ],
)
def test_wrong_arguments_start_nothing(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    (before,) = hd.addprocs(1)
    with pytest.raises(error, match=text):
        hd.addprocs(**arguments)
    assert hd.workers() == [before]
    assert hd.addprocs(1) == [before + 1]


def test_the_signature_is_the_documented_one() -> None:
    names = "n restrict transport dir exename exeflags env topology lazy enable_threaded_blas timeout on_failure"
    first, *others, rest = inspect.signature(hd.addprocs).parameters.values()
    assert [first.name, *(other.name for other in others)] == names.split()
    assert first.default is None
    assert {other.kind for other in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert rest.kind is inspect.Parameter.VAR_KEYWORD
    defaults = {other.name: other.default for other in others}
    assert defaults == {**hd.LocalManager(1).default_addprocs_params(), "restrict": True, "on_failure": "raise"}


def test_machines_are_for_later() -> None:
    for machines in (["host"], "user@host", [("host", 2)]):
        with pytest.raises(TypeError, match=r"a number of workers or a ClusterManager.*SSH are not built yet"):
            hd.addprocs(machines)
    with pytest.raises(AttributeError, match="SSH are not built yet"):
        hd.SSHManager  # noqa: B018


def test_a_negative_number_in_each_spelling() -> None:
    for what in (-1, -(10**30), hd.LocalManager(-1)):
        with pytest.raises(ValueError, match="n, the number of workers to add, must not be negative: -1"):
            hd.addprocs(what)


def test_a_custom_manager_gets_every_keyword() -> None:
    class Curious(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            told.update(params)
            super().launch(params, launched, notify)

        def default_addprocs_params(self) -> dict[str, Any]:
            return {**super().default_addprocs_params(), "colour": "blue", "weight": 3}

    told: dict[str, Any] = {}
    hd.addprocs(Curious(1), colour="red", dir="/")
    assert told["colour"] == "red"
    assert told["weight"] == 3
    assert told["dir"] == "/"
    assert told["lazy"] is True


def test_a_manager_of_ones_own_gets_whatever_is_given() -> None:
    class Idle(hd.ClusterManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            told.update(params)

        def manage(self, pid: int, config: Any, op: str) -> None:
            raise AssertionError("there is nobody to manage")

    told: dict[str, Any] = {}
    given = {"colour": "red", "n": -1, "restrict": "a little", "exeflags": 5}
    assert hd.addprocs(Idle(), **given) == []
    assert told == {**Idle().default_addprocs_params(), **given}


# ---- where --------------------------------------------------------------------------------------------------------


def test_only_the_driver_adds_and_removes() -> None:
    (pid,) = hd.addprocs(1)
    drivers = ((hd.addprocs, (1,)), (hd.rmprocs, (pid,)), (hd.interrupt, ()), (hd.shutdown, ()))
    for function, arguments in drivers:
        with pytest.raises(hd.RemoteException, match="Only process 1 can") as info:
            hd.remotecall_fetch(function, pid, *arguments)
        assert isinstance(info.value.__cause__, hd.NotDriverError)
    assert hd.workers() == [pid]


# ---- joining ------------------------------------------------------------------------------------------------------


def test_new_workers_are_known_to_all_when_addprocs_returns(transport: str) -> None:
    everybody: list[int] = []
    for count in (1, 2, 2):
        everybody += hd.addprocs(count, transport=transport)
        assert [hd.remotecall_fetch(hd.workers, pid) for pid in everybody] == [everybody] * len(everybody)


class OneByOne(hd.LocalManager):
    """Starts the next worker when the last one is listed, and has been tried."""

    def __init__(self, n: int, try_it: Callable[[int], object] = lambda pid: hd.remotecall_fetch(hd.myid, pid)) -> None:
        super().__init__(n)
        self.before = hd.procs()
        self.try_it = try_it
        self.seen: list[int] = []

    def launch(self, params: Any, launched: Any, notify: Any) -> None:
        for _ in range(self.n):
            one = hd.LocalManager(1)
            one._context = self._context
            one.launch(params, launched, notify)
            (new,) = poll_for(lambda: set(hd.procs()) - {*self.before, *self.seen})
            self.try_it(new)
            self.seen.append(new)


def test_workers_can_be_used_before_the_others_are_there(transport: str) -> None:
    manager = OneByOne(3)
    assert hd.addprocs(manager, transport=transport) == manager.seen


@pytest.mark.parametrize(
    "way",
    [
        lambda a, b: hd.remotecall_fetch(hd.remotecall_fetch, a, hd.myid, b),
        lambda a, b: hd.remotecall_fetch(hd.fetch, a, hd.remotecall(hd.myid, b)),
        lambda a, b: hd.remotecall_fetch(lambda: hd.Future(b).put(b).fetch(), a),
        lambda a, b: hd.remotecall_fetch(hd.path_to, a, b) in ("shm", "tcp") and b,
        lambda a, b: b in hd.remotecall_fetch(hd.procs, a, b) and b,
    ],
    ids=["call", "reference", "new future", "path", "node"],
)
def test_workers_can_use_each_other_before_they_are_told_of_each_other(way: Any, transport: str) -> None:
    """In both directions, the new ones among themselves and with an old one."""

    def try_it(new: int) -> None:
        for other in sorted(set(hd.workers()) - {new}):
            answers.extend([(way(other, new), new), (way(new, other), other)])

    answers: list[tuple[object, int]] = []
    hd.addprocs(1, transport=transport)
    hd.addprocs(OneByOne(2, try_it), transport=transport)
    assert [answer for answer, _ in answers] == [right for _, right in answers]
    assert len(answers) == 6


def test_a_reference_to_a_newcomer_is_given_back(transport: str) -> None:
    """A worker that has not heard of the owner holds a reference for a moment: nothing is left of that."""

    def try_it(new: int) -> None:
        future = hd.remotecall_wait(abs, new, -5)
        assert hd.remotecall_fetch(lambda f: type(f).__name__, old, future) == "Future"
        rrid = hd.remoteref_id(future)
        assert rrid in hd.live_references(new)
        del future
        poll_for(lambda: rrid not in hd.live_references(new))
        tried.append(new)

    tried: list[int] = []
    (old,) = hd.addprocs(1, transport=transport)
    assert hd.addprocs(OneByOne(1, try_it), transport=transport) == tried


def test_a_newcomer_that_is_killed_at_once_is_gone_for_all() -> None:
    def try_it(new: int) -> None:
        os.kill(hd.remotecall_fetch(os.getpid, new), signal.SIGKILL)
        poll_for(lambda: new not in hd.workers())
        with pytest.raises(hd.RemoteException) as info:
            hd.remotecall_fetch(hd.remotecall_fetch, old, hd.myid, new)
        assert isinstance(info.value.__cause__, hd.ProcessExitedException)
        assert info.value.__cause__.signal == signal.SIGKILL

    (old,) = hd.addprocs(1)
    hd.addprocs(OneByOne(1, try_it))
    assert hd.remotecall_fetch(hd.workers, old) == [old]


def test_several_addprocs_and_rmprocs_at_once(transport: str) -> None:
    """They queue; every pid is given out once, and what remains is what was not removed."""
    old = hd.addprocs(3, transport=transport)

    def add() -> list[int]:
        return hd.addprocs(2, transport=transport)

    *added, _, _ = in_threads(add, add, add, lambda: hd.rmprocs(old[0]), lambda: hd.rmprocs(old[1:]))
    new = [pid for pids in added for pid in pids]
    assert sorted(new) == list(range(old[-1] + 1, old[-1] + 7))
    assert all(pids == sorted(pids) for pids in added)
    assert hd.workers() == sorted(new)
    assert [hd.remotecall_fetch(hd.workers, pid) for pid in new] == [sorted(new)] * 6


def test_launches_do_not_interleave() -> None:
    class Watched(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            story.append("begin")
            super().launch(params, launched, notify)
            story.append("end")

    story: list[str] = []
    in_threads(*[lambda: hd.addprocs(Watched(1))] * 4)
    assert story == ["begin", "end"] * 4
    assert hd.nworkers() == 4


def test_removal_waits_for_its_turn_behind_addprocs() -> None:
    class Held(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            launching.set()
            assert go_on.wait(30)
            super().launch(params, launched, notify)

    launching, go_on = threading.Event(), threading.Event()
    (old,) = hd.addprocs(1)
    thread = threading.Thread(target=lambda: hd.addprocs(Held(1)))
    thread.start()
    try:
        assert launching.wait(30)
        removal = hd.rmprocs(old, waitfor=0)  # returns at once all the same
        assert not removal.isready()
        with pytest.raises(hd.RemovalTimeout):
            removal.wait(0.05)
        assert hd.workers() == [old]
    finally:
        go_on.set()
        thread.join(30)
    removal.wait(30)
    assert hd.workers() == [old + 1]


# ---- what workers inherit ----------------------------------------------------------------------------------------


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("found")
    (there,) = hd.addprocs(1, dir=tmp_path)
    (here,) = hd.addprocs(1)
    assert hd.remotecall_fetch(Path.read_text, there, Path("here.txt")) == "found"
    assert hd.remotecall_fetch(os.getcwd, here) == os.getcwd()
    with pytest.raises(FileNotFoundError):
        Path("here.txt").read_text()


def test_from_a_directory_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.syspath_prepend("")
    monkeypatch.chdir(gone)
    gone.rmdir()
    for keywords in ({}, {"exename": sys.executable}):
        there, somewhere = hd.addprocs(1, dir=tmp_path, **keywords) + hd.addprocs(1, **keywords)
        assert hd.remotecall_fetch(os.getcwd, there) == str(tmp_path)
        assert hd.remotecall_fetch(abs, somewhere, -1) == 1
        with pytest.raises(hd.LaunchError, match=r"current directory has been removed.* give an absolute dir="):
            hd.addprocs(1, dir="relative", **keywords)


def test_missing_directory() -> None:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(2, dir="/no/such/place")
    assert "/no/such/place" in str(info.value)
    assert len(info.value) == 2
    assert {type(error) for error in info.value} == {hd.LaunchError}


def test_environment_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HD_TEST_COLOUR", "red")
    (before,) = hd.addprocs(1)
    monkeypatch.setenv("HD_TEST_COLOUR", "green")
    (after,) = hd.addprocs(1)
    (given,) = hd.addprocs(1, env={"HD_TEST_COLOUR": "blue", "HD_TEST_SIZE": "9"})
    colours = [hd.remotecall_fetch(os.getenv, pid, "HD_TEST_COLOUR") for pid in (before, after, given)]
    assert colours == ["red", "green", "blue"]
    assert hd.remotecall_fetch(os.getenv, given, "HD_TEST_SIZE") == "9"
    assert "HD_TEST_SIZE" not in os.environ


def test_module_path_of_the_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hd_test_module.py").write_text(f"NAME = {name!r}")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    (one,) = hd.addprocs(1)
    monkeypatch.syspath_prepend(str(tmp_path / "second"))
    (two,) = hd.addprocs(1)

    def name() -> str:
        import hd_test_module  # type: ignore[import-not-found]

        return str(hd_test_module.NAME)

    assert [hd.remotecall_fetch(name, pid) for pid in (one, two)] == ["first", "second"]
    assert hd.remotecall_fetch(lambda: sys.path, one)[0] == str(tmp_path / "first")


def test_numeric_libraries_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    rest = ["VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS"]
    for name in names + rest:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the driver's own, not meant for workers

    def threads() -> list[str | None]:
        import os

        return [os.environ.get(name) for name in names]

    (usual,) = hd.addprocs(1)
    (given,) = hd.addprocs(1, env={"MKL_NUM_THREADS": "2"})
    (many,) = hd.addprocs(1, enable_threaded_blas=True)
    assert hd.remotecall_fetch(threads, usual) == ["1", "1", "1"]
    assert [hd.remotecall_fetch(os.getenv, usual, name) for name in rest] == ["1"] * 4
    assert hd.remotecall_fetch(threads, given) == ["1", "1", "2"]
    assert hd.remotecall_fetch(threads, many) == ["3", None, None]
    assert threads() == ["3", None, None]


def test_the_numeric_library_itself_has_one_thread() -> None:
    """Not what the variables say, but what numpy's BLAS does; also in a fork of a template that others came from."""
    pytest.importorskip("threadpoolctl", reason="it alone can ask BLAS for its threads")

    def threads() -> set[int]:
        import numpy as np
        import threadpoolctl

        np.ones((4, 4)) @ np.ones((4, 4))
        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    (usual,) = hd.addprocs(1)
    (given,) = hd.addprocs(1, env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"})
    (again,) = hd.addprocs(1)
    found = hd.remotecall_fetch(threads, usual)
    if not found:
        pytest.skip("this numpy has no BLAS that threadpoolctl knows")
    assert found == hd.remotecall_fetch(threads, again) == {1}
    assert hd.remotecall_fetch(threads, given) == {min(2, os.cpu_count() or 1)}


def test_interpreter_and_flags(tmp_path: Path) -> None:
    script = tmp_path / "my python"
    script.write_text(f'#!/bin/sh\nHD_TEST_STARTED_BY="$0" exec {shlex.quote(sys.executable)} "$@"')
    script.chmod(0o700)
    for exename in (str(script), script, [str(script), "-B"]):
        (pid,) = hd.addprocs(1, exename=exename)
        assert hd.remotecall_fetch(os.getenv, pid, "HD_TEST_STARTED_BY") == str(script)
    assert hd.remotecall_fetch(lambda: sys.flags.dont_write_bytecode, pid) == 1
    for exeflags in ("-O -X hd_test=1", ["-O", "-X", "hd_test=1"]):
        (pid,) = hd.addprocs(1, exeflags=exeflags)
        assert hd.remotecall_fetch(lambda: (sys.flags.optimize, sys._xoptions["hd_test"]), pid) == (1, "1")


def test_workers_share_no_state() -> None:
    one, two = hd.addprocs(2)

    def mark(value: Any = None) -> Any:
        import fractions
        import sys

        if value is not None:
            fractions.mark = value  # type: ignore[attr-defined]
        return getattr(sys.modules["fractions"], "mark", None)

    assert hd.remotecall_fetch(mark, one, "here") == "here"
    assert hd.remotecall_fetch(mark, two) is None
    assert hd.addprocs(1) == [two + 1]
    assert hd.remotecall_fetch(mark, two + 1) is None
