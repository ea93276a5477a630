"""Code travels: functions and classes of all kinds run elsewhere as they would here."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]

FACTOR = 3


def times_factor(x: int) -> int:
    return x * FACTOR


class Account:
    bank = "of the module"

    def __init__(self, balance: int) -> None:
        self.balance = balance

    def grow(self, by: int) -> int:
        self.balance += by
        return self.balance


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of the caller's own, which came after the workers."""
    text = "def answer(x):\n    return x + offset()\n\ndef offset():\n    return 40\n"
    (tmp_path / "own_project_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_project_module

    yield own_project_module
    del sys.modules["own_project_module"]


# ---- inside of modules --------------------------------------------------------------------------------------------


def test_functions_and_classes_of_modules_go_by_name(cluster: list[int]) -> None:
    assert hd.remotecall_fetch(times_factor, cluster[0], 5) == 15
    account = hd.remotecall_fetch(Account, cluster[0], 7)
    assert type(account) is Account
    assert hd.remotecall_fetch(account.grow, cluster[1], 3) == 10
    assert account.balance == 7
    assert hd.remotecall_fetch(lambda: Account, cluster[0]) is Account


def test_lambdas_closures_and_local_classes_go_by_value(cluster: list[int]) -> None:
    offset = 100

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

        def total(self) -> int:
            return self.x + offset

    def local(x: int, *, more: int = 1) -> int:
        return x + offset + more

    for pid in cluster:
        assert hd.remotecall_fetch(lambda: offset + 1, pid) == 101
        assert hd.remotecall_fetch(local, pid, 1, more=2) == 103
        assert hd.remotecall_fetch(functools.partial(local, 5), pid) == 106
        assert hd.remotecall_fetch(Local(1).total, pid) == 101
        back = hd.remotecall_fetch(Local, pid, 5)
        assert type(back) is Local
        assert back.total() == 105


def test_closures_capture_values_at_the_time_of_the_call(cluster: list[int]) -> None:
    futures = []
    for i in range(5):
        futures.append(hd.remotecall(lambda: i, cluster[0]))  # noqa: B023 - that is what is tested
    assert [future.fetch() for future in futures] == [0, 1, 2, 3, 4]


def test_a_closure_that_changes_between_calls(cluster: list[int]) -> None:
    """Calls of one function: each sees what its variables were then, also once the function is known there."""
    value = 0

    def read() -> Any:
        return value

    for value in (0, 0, 0, 0, 1, 1, 0, "text", 0, [1], [1, 2]):
        assert hd.remotecall_fetch(read, cluster[0]) == value


def test_recursive_and_mutually_recursive_functions(cluster: list[int]) -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert hd.remotecall_fetch(even, cluster[0], 10) is True
    assert hd.remotecall_fetch(odd, cluster[0], 10) is False


def test_functions_as_results(cluster: list[int]) -> None:
    def adder(n: int) -> Any:
        return lambda x: x + n

    assert hd.remotecall_fetch(adder, cluster[0], 5)(1) == 6
    add = hd.remotecall(adder, cluster[0], 5)
    assert hd.remotecall_fetch(lambda f: f.fetch()(2), cluster[1], add) == 7


def test_a_module_as_an_argument(cluster: list[int]) -> None:
    import json

    assert hd.remotecall_fetch(lambda module: module.dumps([1]), cluster[0], json) == "[1]"
    assert hd.remotecall_fetch(lambda: json.dumps([2]), cluster[0]) == "[2]"


def test_a_module_of_the_callers_own_works_where_its_files_are_missing(
    project: types.ModuleType, cluster: list[int]
) -> None:
    for _ in range(3):
        assert hd.remotecall_fetch(project.answer, cluster[0], 2) == 42


# ---- scripts ------------------------------------------------------------------------------------------------------

BEGIN = """
import sys
import hybriddist as hd
a, b = hd.addprocs(2, transport={transport!r})
"""


def run(run_python: ScriptRunner, transport: str, code: str, **how: Any) -> None:
    """Run a script of assertions against two workers, ``a`` and ``b``."""
    done = run_python(BEGIN.format(transport=transport) + code + "\nprint('all right')\n", **how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all right\n")
    assert done.stderr == ""


def test_no_guard_is_needed(run_python: ScriptRunner, transport: str) -> None:
    """The script is not run again on the workers, however it is run here."""
    code = """
def f(x):
    return x + 1

class Pair:
    def __init__(self, x, y):
        self.x, self.y = x, y

assert hd.remotecall_fetch(f, a, 1) == 2
pair = hd.remotecall_fetch(Pair, a, 1, 2)
assert type(pair) is Pair and (pair.x, pair.y) == (1, 2)
assert hd.remotecall_fetch(lambda p: p.x + p.y, b, pair) == 3
assert isinstance(hd.remotecall_fetch(lambda: Pair(3, 4), b), Pair)
"""
    run(run_python, transport, code)
    run(run_python, transport, code, how="-c")
    run(run_python, transport, code, how="-")


def test_globals_of_the_script_go_along_and_stay(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
x = 1
unused = open(__file__)
def f(): return x
def g(): return f() + 10
assert [hd.remotecall_fetch(f, a) for _ in range(4)] == [1] * 4
x = 2
assert hd.remotecall_fetch(f, a) == 2
assert hd.remotecall_fetch(g, b) == 12
x = 1
assert [hd.remotecall_fetch(f, a) for _ in range(4)] == [1] * 4
x = [1]
assert hd.remotecall_fetch(f, a) == [1]
x.append(2)
assert hd.remotecall_fetch(f, a) == [1, 2]
assert hd.remotecall_fetch(lambda: sorted(vars(sys.modules['__main__']).keys() & {'x', 'f', 'unused'}), b) == ['f', 'x']
unused.close()
""",
    )


def test_globals_are_sent_again_only_when_they_have_changed(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
pickled = 0
class Counted:
    def __init__(self, x): self.x = x
    def __getstate__(self):
        global pickled
        pickled += 1
        return self.__dict__
def times(call, n=5):
    global pickled
    pickled = 0
    return [call(i) for i in range(n)], pickled

v = Counted(7)
assert times(lambda i: hd.remotecall_fetch(lambda: v.x, a)) == ([7] * 5, 1)
assert times(lambda i: hd.remotecall_fetch(lambda: v.x, b)) == ([7] * 5, 1)
assert times(lambda i: hd.remotecall_fetch(lambda: (v.x, v.x, (lambda: v.x)()), a)) == ([(7, 7, 7)] * 5, 1)
def change(i):
    v.x = i
    return hd.remotecall_fetch(lambda: v.x, a)
assert times(change) == ([0, 1, 2, 3, 4], 5)
def rebind(i):
    global v
    v = Counted(i % 2)  # from one to the other and back
    return hd.remotecall_fetch(lambda: v.x, a)
assert times(rebind) == ([0, 1, 0, 1, 0], 5)
w = v
assert times(lambda i: hd.remotecall_fetch(lambda: v is w, a)) == ([True] * 5, 1)
assert hd.remotecall_eval("v is w", a)
""",
    )


def test_lists_of_the_script_stay_on_the_worker_until_they_change_here(
    run_python: ScriptRunner, transport: str
) -> None:
    run(
        run_python,
        transport,
        """
items = [1]
def add():
    items.append(0)
    return len(items)
assert [hd.remotecall_fetch(add, a) for _ in range(3)] == [2, 3, 4]
assert hd.remotecall_fetch(add, b) == 2
assert items == [1]
items.append(2)
assert [hd.remotecall_fetch(add, a) for _ in range(3)] == [3, 4, 5]
""",
    )


def test_values_that_say_that_they_are_the_same_are_the_same(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class Tagged:
    def __init__(self, tag, rest): self.tag, self.rest = tag, rest
    def __hash__(self): return hash(self.tag)
    def __eq__(self, other): return self.tag == other.tag
t = Tagged(1, "old")
def f(): return t.rest
assert hd.remotecall_fetch(f, a) == "old"
t.rest = "new"
assert hd.remotecall_fetch(f, a) == "old"  # the hash says that nothing has changed
t = Tagged(1, "new")
assert hd.remotecall_fetch(f, a) == "new"  # another object
t.tag = 2
t.rest = "newer"
assert hd.remotecall_fetch(f, a) == "newer"
""",
    )


def test_cleared_names_and_values_of_other_workers(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
x = [1]
def f(): return x
assert hd.remotecall_fetch(f, a) == [1]
hd.clear("x")
assert hd.remotecall_fetch(lambda: globals()["x"], a) is None and x == [1]
x.append(2)
assert hd.remotecall_fetch(f, a) == [1, 2]

y = "of the driver"
hd.everywhere("y = 'of the worker'", [a, b])
assert hd.remotecall_eval("y", a) == "of the worker"
assert hd.remotecall_fetch(lambda: y, a) == "of the driver"  # a function brings the caller's globals
""",
    )


def test_a_changed_class_is_sent_again(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class C:
    factor = 2
    def times(self, x): return x * self.factor
def f(x): return C().times(x)
assert [hd.remotecall_fetch(f, a, 3) for _ in range(3)] == [6] * 3
C.factor = 5
assert [hd.remotecall_fetch(f, a, 3) for _ in range(3)] == [15] * 3
C.times = lambda self, x: -x
assert [hd.remotecall_fetch(f, a, 3) for _ in range(3)] == [-3] * 3
""",
    )


def test_the_newest_definition_counts(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
def f(): return 'old'
def caller(): return f()
assert [hd.remotecall_fetch(caller, a) for _ in range(3)] == ['old'] * 3
def f(): return 'new'
assert [hd.remotecall_fetch(caller, a) for _ in range(3)] == ['new'] * 3
assert hd.remotecall_fetch(f, a) == 'new'
class C:
    def m(self): return 1
c = hd.remotecall_fetch(C, a)
assert hd.remotecall_fetch(c.m, b) == 1
class C:
    def m(self): return 2
assert hd.remotecall_fetch(lambda: C().m(), a) == 2
""",
    )


def test_state_of_the_workers_main_stays(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
count = 0
def up():
    global count
    count += 1
    return count
assert [hd.remotecall_fetch(up, a) for _ in range(4)] == [1, 2, 3, 4]
assert hd.remotecall_fetch(up, b) == 1
assert count == 0
""",
    )


def test_a_function_of_the_script_goes_from_worker_to_worker(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
y = 5
def leaf(x): return x + y
def through(x): return hd.remotecall_fetch(leaf, b, x)
assert [hd.remotecall_fetch(through, a, i) for i in range(4)] == [5, 6, 7, 8]
async def wait_for(f): return await f
assert hd.remotecall_fetch(wait_for, a, hd.remotecall(leaf, b, 1)) == 6
""",
    )


def test_exceptions_of_the_script_keep_their_type(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class Mine(Exception):
    pass
def fail(): raise Mine('text')
try:
    hd.remotecall_fetch(fail, a)
except hd.RemoteException as error:
    assert type(error.__cause__) is Mine and error.__cause__.args == ('text',)
else:
    raise AssertionError
""",
    )
