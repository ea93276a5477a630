"""`everywhere`, `remotecall_eval`, `remotecall_all`, `clear`: the same on several processes."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


@pytest.fixture(autouse=True)
def main_as_before() -> Iterator[None]:
    """What a test defines in this process's `__main__` is gone afterwards."""
    main = vars(sys.modules["__main__"])
    before = set(main)
    yield
    for name in set(main) - before:
        if not name.startswith("__"):
            del main[name]


@pytest.fixture
def apart(transport: str) -> None:
    """For tests that need a `__main__` for each process."""
    if transport == "memory":
        pytest.skip("in memory all processes share one __main__")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, cluster: list[int]) -> list[Any]:
    """The messages that this process has sent during the test."""
    from hybriddist.runtime.peer import Peer

    messages: list[Any] = []
    send = Peer.send

    def note(peer: Peer, message: Any) -> None:
        if threading.current_thread() is threading.main_thread() and peer.process.pid == 1:
            messages.append(message)
        send(peer, message)

    monkeypatch.setattr(Peer, "send", note)
    return messages


def main(name: str) -> Any:
    return getattr(sys.modules["__main__"], name, "not defined")


# ---- strings --------------------------------------------------------------------------------------------------------


def test_code_runs_on_all_processes_the_own_one_included(cluster: list[int]) -> None:
    assert hd.everywhere("import hybriddist as ew_hd; ew_x = 5") is None
    assert main("ew_x") == 5
    for pid in cluster:
        assert hd.remotecall_eval("ew_x", pid) == 5


@pytest.mark.usefixtures("apart")
def test_a_subset_runs_it_and_the_others_do_not(cluster: list[int]) -> None:
    hd.everywhere("ew_subset = 1", cluster[:2])
    assert main("ew_subset") == "not defined"
    hd.everywhere("ew_subset = globals().get('ew_subset', 0) + 1", procs=range(cluster[0], cluster[0] + 3))
    assert [hd.remotecall_eval("ew_subset", pid) for pid in cluster] == [2, 2, 1]


def test_one_pid_gives_the_value_and_several_give_none(cluster: list[int]) -> None:
    assert hd.everywhere("ew_y = 6\new_y * 7", cluster[0]) == 42
    assert hd.everywhere("6 * 7", procs=1) == 42
    assert hd.everywhere("ew_y = 1", cluster[0]) is None
    assert hd.everywhere("6 * 7", [cluster[0]]) is None
    assert hd.everywhere("6 * 7") is None
    assert hd.remotecall_eval("6 * 7", cluster[1]) == 42
    assert hd.remotecall_eval("6 * 7", cluster) is None


@pytest.mark.usefixtures("apart")
def test_repeated_pids_run_repeatedly(cluster: list[int]) -> None:
    pid = cluster[0]
    hd.everywhere("ew_count = 0")
    hd.everywhere("ew_count += 1", [pid, pid, 1, 1, 1])
    assert hd.remotecall_eval("ew_count", pid) == 2
    assert main("ew_count") == 3


def test_values_are_inserted_and_locals_are_not(cluster: list[int]) -> None:
    local = {"a": [1]}
    assert hd.everywhere("$v['a'], '$v'", cluster[0], v=local) == ([1], "$v")
    with pytest.raises(hd.RemoteException) as info:
        hd.everywhere("local", cluster[0])
    assert isinstance(info.value.__cause__, NameError)


@pytest.mark.usefixtures("apart")
def test_the_own_process_shares_the_object(cluster: list[int]) -> None:
    value = [1]
    hd.everywhere("ew_shared = $value\new_shared.append(2)", value=value)
    assert main("ew_shared") is value
    assert value == [1, 2]
    assert hd.remotecall_eval("ew_shared", cluster[0]) == [1, 2]  # not 1, 2, 2: it was sent before the own run


def test_functions_that_it_defines_keep_their_values(cluster: list[int]) -> None:
    hd.everywhere("def ew_f(): return $value, __file__", value=3)
    for pid in cluster:
        assert hd.remotecall_eval("ew_f()", pid) == (3, __file__)


def test_requests_are_sent_before_the_own_run(cluster: list[int]) -> None:
    """On this process the code waits for what the others have done."""
    futures = [hd.Future() for _ in cluster]
    hd.everywhere(
        "import hybriddist as ew_hd\n"
        "[f.wait(10) for f in $futures] if ew_hd.myid() == 1 else $futures[$pids.index(ew_hd.myid())].put(1)",
        futures=futures,
        pids=cluster,
    )
    assert all(future.isready() for future in futures)


def test_it_works_on_a_worker(cluster: list[int]) -> None:
    def nested() -> Any:
        hd.everywhere("ew_nested = $v", v=hd.myid())
        return hd.remotecall_all(hd.myid)

    assert hd.remotecall_fetch(nested, cluster[1]) == {pid: pid for pid in [1, *cluster]}
    assert main("ew_nested") == cluster[1]


def test_file_is_that_of_the_caller(cluster: list[int]) -> None:
    """So files beside it are found, wherever it runs."""
    code = "import os\nos.path.samefile(os.path.join(os.path.dirname(__file__), 'conftest.py'), $conftest)"
    for pid in (1, cluster[0]):
        assert hd.everywhere(code, pid, conftest=str(Path(__file__).parent / "conftest.py")) is True


def test_tracebacks_show_the_lines_on_all_processes(cluster: list[int]) -> None:
    with pytest.raises(hd.CompositeException) as info:
        hd.everywhere("x = 0\n1 / x  # shown here")
    assert len(info.value) == 4
    for error in info.value:
        assert "1 / x  # shown here" in str(error)
        assert "test_everywhere.py line" in str(error)


# ---- imports --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("apart")
def test_imports_run_first_on_the_caller_once_then_everywhere(
    cluster: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    (tmp_path / "ew_module.py").write_text(
        f"import hybriddist\nvalue = 7\nwith open({str(log)!r}, 'a') as f:\n    f.write(f'{{hybriddist.myid()}} ')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        for _ in range(2):
            hd.everywhere("with open('/dev/null'):\n    import ew_module", cluster)
        order = [int(pid) for pid in log.read_text().split()]
        assert order[0] == 1
        assert sorted(order) == [1, *cluster]
        assert main("ew_module") == "not defined"
        assert hd.remotecall_eval("ew_module.value", cluster[0]) == 7
    finally:
        sys.modules.pop("ew_module", None)


def test_an_import_that_fails_is_reported_once_before_anything_is_sent(cluster: list[int], sent: list[Any]) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        hd.everywhere("import no_such_module_anywhere")
    assert sent == []
    hd.everywhere("try:\n    import no_such_module_anywhere\nexcept ImportError:\n    ew_missing = True")
    assert hd.remotecall_eval("ew_missing", cluster[0]) is True


def test_eval_imports_nothing_on_the_caller(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match="no_such_module_anywhere"):
        hd.remotecall_eval("import no_such_module_anywhere", cluster[0])


# ---- functions and classes ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("apart")
def test_functions_and_classes_are_defined_in_main_and_returned(cluster: list[int]) -> None:
    @hd.everywhere
    def ew_function(n: int) -> int:
        return 1 if n < 2 else n * ew_function(n - 1)

    @hd.everywhere(procs=cluster[:1])
    class EwClass:
        x = 3

    assert ew_function(5) == 120
    assert main("ew_function") is ew_function
    assert main("EwClass") == "not defined"
    assert hd.remotecall_eval("ew_function(4)", cluster[1]) == 24
    assert hd.remotecall_eval("EwClass.x", cluster[0]) == 3
    assert type(hd.remotecall_eval("EwClass()", cluster[0])) is EwClass
    assert hd.everywhere(len, cluster[0]) is len
    assert hd.remotecall_eval("len is __builtins__.len", cluster[0])


def test_later_workers_do_not_get_it_and_replaced_ones_get_globals_anew(
    run_python: ScriptRunner, transport: str
) -> None:
    if transport == "memory":
        return  # no script can have such a cluster
    done = run_python(
        f"""
        import hybriddist as hd
        a, = hd.addprocs(1, transport={transport!r})
        hd.everywhere("x = 1")
        table = [1]
        def f(): return table
        assert [hd.remotecall_fetch(f, a) for _ in range(3)] == [[1]] * 3
        hd.rmprocs(a)
        b, = hd.addprocs(1, transport={transport!r})
        try:
            hd.remotecall_eval("x", b)
        except hd.RemoteException as error:
            assert isinstance(error.__cause__, NameError)
        else:
            raise AssertionError
        assert [hd.remotecall_fetch(f, b) for _ in range(3)] == [[1]] * 3
        try:
            hd.everywhere("y = 1", [a, b, 1])
        except hd.CompositeException as group:
            assert [type(e) for e in group] == [hd.ProcessExitedException] and group.exceptions[0].pid == a
        assert hd.remotecall_eval("y", b) == y == 1
        """
    )
    assert done.returncode == 0, done.stderr


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors_come_in_the_order_of_pids_the_own_process_last(cluster: list[int]) -> None:
    a, b, c = cluster
    with pytest.raises(hd.CompositeException) as info:
        hd.everywhere(
            "import hybriddist as ew_hd\nif ew_hd.myid() != $b: raise ValueError(ew_hd.myid())", [c, 1, b, a], b=b
        )
    assert [type(error) for error in info.value] == [hd.RemoteException] * 3
    assert [error.pid for error in info.value] == [c, a, 1]
    assert [error.__cause__.args for error in info.value] == [(c,), (a,), (1,)]
    assert re.match(rf"everywhere failed on 3 of 4 processes: On worker {c}:", str(info.value))
    assert str(info.value).endswith("...and 2 more exceptions.")


@pytest.mark.parametrize("which", [0, 1])
def test_with_one_pid_the_error_is_a_remote_exception(cluster: list[int], which: int) -> None:
    pid = [1, cluster[0]][which]
    for call in (hd.everywhere, hd.remotecall_eval):
        with pytest.raises(hd.RemoteException) as info:
            call("1 / 0", pid)
        assert info.value.pid == pid
        assert isinstance(info.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("call", [hd.everywhere, lambda code: hd.remotecall_eval(code, [1, 2])])
def test_a_syntax_error_is_reported_once_with_its_line(call: Any, cluster: list[int], sent: list[Any]) -> None:
    with pytest.raises(SyntaxError) as info:
        call("ew_before = 1\nx = = 2\n")
    assert (info.value.lineno, info.value.text) == (2, "x = = 2\n")
    assert sent == []
    assert main("ew_before") == "not defined"


@pytest.mark.parametrize(
    ("arguments", "values", "error", "says"),
    [
        ((5,), {}, TypeError, "a string, a function or a class, not int"),
        ((None,), {}, TypeError, "not NoneType"),
        ((b"x",), {}, TypeError, "not bytes"),
        ((lambda: 1,), {}, ValueError, "a lambda has no name"),
        ((len,), {"x": 1}, TypeError, "values belong to a string"),
        ((), {"x": 1}, TypeError, "values belong to a string"),
        (("x",), {"x": 1}, TypeError, r"there is no \$x"),
        (("$x",), {}, TypeError, "has no value: pass x="),
        (("1", "2"), {}, TypeError, "a pid or several, not '2'"),
        (("1", [2, "3"]), {}, TypeError, "a pid is an integer, not str"),
        (("1", True), {}, TypeError, "a pid is an integer, not bool"),
        (("1", 1.0), {}, TypeError, "a pid is an integer, not float"),
        (("1", [2, 99999]), {}, hd.NoSuchProcessError, "99999"),
        (("1", 0), {}, hd.NoSuchProcessError, "0"),
        (("$x", None), {"x": threading.Lock()}, hd.SerializeError, "lock"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    cluster: list[int], sent: list[Any], arguments: Any, values: Any, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        hd.everywhere(*arguments, **values)
    assert sent == []


def test_no_processes_are_no_work(cluster: list[int]) -> None:
    assert hd.everywhere("1 / 0", []) is None
    assert hd.remotecall_all(pow, 2, 3, procs=[]) == {}


# ---- remotecall_all -------------------------------------------------------------------------------------------------


def test_all_collects_by_pid(cluster: list[int]) -> None:
    a, b, c = cluster
    assert hd.remotecall_all(hd.myid) == {pid: pid for pid in [1, *cluster]}
    assert list(hd.remotecall_all(sorted, [2, 1], procs=(c, 1, a, c), reverse=False)) == [c, 1, a]
    assert hd.remotecall_all(lambda x, y: x + y, 1, y=2, procs=b) == {b: 3}


def test_all_runs_at_the_same_time_and_fails_as_one(cluster: list[int]) -> None:
    gate = hd.Future()

    def meet(last: int) -> int:
        if hd.myid() == last:
            gate.put(1)
        gate.wait(10)
        raise ValueError(hd.myid())

    with pytest.raises(hd.CompositeException, match="remotecall_all failed on 3 of 3") as info:
        hd.remotecall_all(meet, cluster[2], procs=cluster)
    assert [error.pid for error in info.value] == cluster
    with pytest.raises(TypeError, match="must be callable, not int"):
        hd.remotecall_all(5)  # type: ignore[arg-type]
    with pytest.raises(hd.SerializeError):
        hd.remotecall_all(print, threading.Lock())


# ---- what only one worker has ---------------------------------------------------------------------------------------

OWN = """
class EwOwn:
    def __init__(self, x): self.x = x
    def twice(self): return 2 * self.x
class EwError(Exception): pass
def ew_own(x): return EwOwn(x).twice()
def ew_raise(): raise EwError(5)
import hybriddist as hd
"""


def twice_of(o: Any) -> int:
    return o.twice()  # type: ignore[no-any-return]


def are_alike(a: Any, b: Any) -> bool:
    return type(a) is type(b)


@pytest.mark.usefixtures("apart")
def test_what_only_one_workers_main_has_travels_by_value(cluster: list[int]) -> None:
    a, b, _ = cluster
    hd.remotecall_eval(OWN, a)
    there = partial(hd.remotecall_eval, pids=a)
    assert there("EwOwn(4)").twice() == 8
    assert there("EwOwn")(5).twice() == there("ew_own")(5) == 10
    assert hd.remotecall(eval, a, "__import__('__main__').EwOwn(4)").fetch().twice() == 8
    for pid in (b, 1):  # from worker to worker, and in a nested call to the driver
        assert there("hd.remotecall_fetch($f, $pid, EwOwn(6))", f=twice_of, pid=pid) == 12
        assert there("hd.remotecall_fetch(ew_own, $pid, 6)", pid=pid) == 12
        assert there("hd.remotecall_fetch(EwOwn(7).twice, $pid)", pid=pid) == 14
        assert there("hd.remotecall_fetch($f, $pid, EwOwn(6), EwOwn(7))", f=are_alike, pid=pid)
        with pytest.raises(hd.RemoteException, match=r"EwError: 5"):
            there("hd.remotecall_fetch(ew_raise, $pid)", pid=pid)
    assert hd.remotecall_fetch(are_alike, a, there("EwOwn(4)"), there("EwOwn(4)"))
    assert there("type($back) is EwOwn", back=there("EwOwn(4)"))  # back where it came from it is the same class


# ---- clear ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("apart")
def test_clear_sets_names_to_none_on_the_workers_only(cluster: list[int]) -> None:
    a, b, _ = cluster
    hd.everywhere("ew_p = ew_q = [1]")
    hd.clear("ew_p", a)
    assert [hd.remotecall_eval("ew_p, ew_q", pid) for pid in (a, b)] == [(None, [1]), ([1], [1])]
    hd.clear(["ew_p", "ew_q", "ew_unknown"])
    assert hd.remotecall_eval("ew_p, ew_q, 'ew_unknown' in globals()", b) == (None, None, False)
    assert main("ew_p") == [1]
    hd.clear(("ew_p",), [1])
    assert main("ew_p") is None


@pytest.mark.usefixtures("apart")
def test_clear_in_another_module(cluster: list[int]) -> None:
    hd.everywhere("import tests.helpers.polling as ew_m; ew_m.ew_name = 1", cluster)
    hd.clear("ew_name", mod="tests.helpers.polling")
    assert hd.remotecall_eval("ew_m.ew_name", cluster[0]) is None
    hd.clear("ew_name", mod="no.such.module")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((5,), TypeError, "not int"),
        ((["a", 5],), TypeError, "a string, not int"),
        (("a b",), ValueError, "'a b' cannot be"),
        (("",), ValueError, "cannot be"),
        (("__name__",), ValueError, "__name__ belongs to the module"),
        (("a", 99999), hd.NoSuchProcessError, "99999"),
        (("a", "2"), TypeError, "a pid or several"),
        (("a", None, os), TypeError, "name of a module, not module"),
    ],
)
def test_clear_refuses_bad_input(cluster: list[int], sent: list[Any], arguments: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        hd.clear(*arguments)
    assert sent == []


# ---- timeouts -------------------------------------------------------------------------------------------------------

GATES: dict[str, threading.Event] = {}
"""On each process (in a memory cluster: on all of them together)."""


def wait_at_gate(name: str) -> None:
    GATES.setdefault(name, threading.Event()).wait(20)
    GATES[f"{name} passed"] = threading.Event()


def open_gate(name: str) -> None:
    GATES.setdefault(name, threading.Event()).set()


def has_passed(name: str) -> bool:
    return f"{name} passed" in GATES


WAIT = "import tests.behaviour.test_everywhere as ew_t; ew_t.wait_at_gate($name)"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_remotecall_eval_with_a_timeout(several: bool, own: bool, transport: str, cluster: list[int]) -> None:
    """What is late goes on."""
    slow = 1 if own else cluster[0]
    name = f"{several} {own} {transport}"
    with pytest.raises(TimeoutError, match=rf"within 0.1 seconds on process.* {'.' if several else ''}{slow}"):
        hd.remotecall_eval(WAIT, [slow, slow] if several else slow, timeout=0.1, name=name)
    assert not hd.remotecall_fetch(has_passed, slow, name)
    hd.remotecall_fetch(open_gate, slow, name)
    poll_for(lambda: hd.remotecall_fetch(has_passed, slow, name))
    assert hd.remotecall_eval("1 + $x", slow, timeout=20, x=2) == 3
    assert hd.remotecall_eval("1", [1, *cluster], timeout=20) is None


def test_failures_beside_a_timeout_are_told(cluster: list[int]) -> None:
    a, b, _ = cluster
    code = "import threading, hybriddist\nif hybriddist.myid() == $a: 1 / 0\nthreading.Event().wait(1)"
    with pytest.raises(TimeoutError) as caught:
        hd.remotecall_eval(code, [a, b], timeout=0.2, a=a)
    assert f"[{b}]" in str(caught.value)
    assert "ZeroDivisionError" in caught.value.__notes__[0]


def test_a_timeout_that_raises_there_is_a_failure(cluster: list[int]) -> None:
    for pid in (1, cluster[0]):
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_eval("raise TimeoutError('there')", pid, timeout=20)
        assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.usefixtures("apart")
def test_clear_with_a_timeout(cluster: list[int]) -> None:
    pid = cluster[0]
    hd.everywhere("ew_kept = 1", [pid])
    ospid = hd.remotecall_fetch(os.getpid, pid)
    os.kill(ospid, signal.SIGSTOP)
    try:
        for pids in (pid, [pid]):
            with pytest.raises(TimeoutError, match="clear did not end"):
                hd.clear("ew_kept", pids, timeout=0.05)
    finally:
        os.kill(ospid, signal.SIGCONT)
    poll_for(lambda: hd.remotecall_eval("ew_kept", pid) is None)
    hd.clear("ew_kept", pid, timeout=20)


@pytest.mark.parametrize(
    "call", [lambda t: hd.remotecall_eval("1", 1, timeout=t), lambda t: hd.clear("x", [1], timeout=t)]
)
def test_a_timeout_is_a_number(call: Any, cluster: list[int], sent: list[Any]) -> None:
    with pytest.raises(TypeError, match="timeout must be a number"):
        call("soon")
    assert sent == []
