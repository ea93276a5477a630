"""Functions and classes of the script, by value: they run in the receiver's `__main__`, and come home unharmed."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hybriddist.core import closures, mainspace, payload
from tests.helpers.scripts import ScriptRunner


class Process:
    """A `__main__` of its own, as another process has one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str = "") -> None:
        self.main = types.ModuleType("__main__")
        self._monkeypatch = monkeypatch
        self.run(code)

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setitem(sys.modules, "__main__", self.main)
            yield

    def run(self, code: str) -> None:
        exec(compile(code, "<script>", "exec", dont_inherit=True), self.main.__dict__)

    def send(self, value: Any) -> tuple[bytes, list[Any]]:
        with self.active():
            return payload.dumps(value)

    def receive(self, sent: tuple[bytes, list[Any]]) -> Any:
        with self.active():
            return payload.loads(*sent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.main, name)


Start = Callable[..., Process]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    return functools.partial(Process, monkeypatch)


def test_a_function_runs_in_the_receivers_main(start: Start) -> None:
    script, worker = start("def f(): return x + y\nx = 1\ny = 2"), start("y = 5; z = 6")
    f = worker.receive(script.send(script.f))
    assert f.__globals__ is worker.main.__dict__
    assert (worker.x, worker.y, worker.z) == (1, 2, 6)
    assert f() == 3
    worker.run("x = 10")
    assert f() == 12
    assert script.f() == 3


def test_it_meets_what_is_defined_there(start: Start) -> None:
    script, worker = start("def f(): return only_there()"), start("def only_there(): return 'met'")
    assert worker.receive(script.send(script.f))() == "met"


def test_lambdas_and_inner_functions_of_the_script_as_well(start: Start) -> None:
    script = start("n = 2\ndef outer(k):\n    def inner(): return n * k\n    return inner\nf = lambda: outer(3)()")
    for function, value in ((script.f, 6), (script.outer(5), 10)):
        worker = start()
        assert worker.receive(script.send(function))() == value
        assert worker.n == 2


def test_all_of_a_function_travels(start: Start) -> None:
    script = start(
        "import functools\n"
        "def f(a, b=2, *, c: int = 3):\n    'Its text.'\n    return a, b, c\n"
        "f.mark = [1]\n"
        "f.itself = f\n"
        "def recursive(n): return n and recursive(n - 1)\n"
        "def make():\n    def local(n): return n and local(n - 1)\n    return local\n"
    )
    f = start().receive(script.send(script.f))
    assert (f(1), f.__doc__, f.mark, f.__name__, f.__module__) == ((1, 2, 3), "Its text.", [1], "f", "__main__")
    assert f.__annotations__ == {"c": int}
    assert f.itself is f
    assert start().receive(script.send(script.recursive))(3) == 0
    assert start().receive(script.send(script.make()))(3) == 0


def test_code_keeps_the_name_of_its_file(start: Start) -> None:
    """Tracebacks are made of it."""
    script = start("def f():\n    def inner(): pass\n    return inner\nclass C:\n    def method(self): pass\n")
    for function in (script.f, script.f(), script.C().method, lambda: 0):
        copy = start().receive(script.send(function))
        assert copy.__code__.co_filename == function.__code__.co_filename
        assert copy.__code__.co_firstlineno == function.__code__.co_firstlineno
    assert start().receive(script.send(script.f))().__code__.co_filename == "<script>"


def test_the_module_names_of_main_stay_its_own(start: Start) -> None:
    script, worker = start("__file__ = 'script.py'\ndef f(): return __name__, __spec__, __file__"), start()
    worker.main.__spec__ = "the worker's"  # type: ignore[assignment]
    assert worker.receive(script.send(script.f))() == ("__main__", "the worker's", "script.py")


def test_a_submodule_that_is_reached_through_its_package_is_imported(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import subprocess, sys, xml.dom.minidom
        from hybriddist.core import payload
        receiver = "import sys; from hybriddist.core import payload; payload.loads(sys.stdin.buffer.read())()"
        body, _ = payload.dumps(lambda: xml.dom.minidom.parseString("<a/>"))
        subprocess.run([sys.executable, "-c", receiver], input=body, check=True)
        """
    )
    assert done.returncode == 0, done.stderr


def test_cached_functions_of_the_script_go_with_an_empty_cache(start: Start) -> None:
    script = start("import functools\n@functools.lru_cache(maxsize=7)\ndef f(n): return n * x\nx = 2\nf(1)")
    f = start().receive(script.send([script.f]))[0]
    assert (f(3), f.cache_parameters()["maxsize"], f.cache_info().misses) == (6, 7, 1)


def test_functions_that_only_claim_to_be_of_the_script_keep_their_globals(start: Start) -> None:
    script = start("def f(): return 1")
    wrapper = functools.wraps(script.f)(lambda: Process)
    assert wrapper.__module__ == "__main__"
    worker = start()
    assert worker.receive(script.send(wrapper))().__name__ == "Process"
    assert "Process" not in worker.main.__dict__


# ---- whose globals ----------------------------------------------------------------------------------------------


def test_a_counter_on_the_worker_goes_on_counting(start: Start) -> None:
    script = start("n = 0\ndef bump():\n    global n\n    n += 1\n    return n")
    worker = start()
    assert [worker.receive(script.send(script.bump))() for _ in range(3)] == [1, 2, 3]
    assert script.n == 0
    script.run("n = 10")
    assert worker.receive(script.send(script.bump))() == 11


def test_a_value_that_comes_home_does_not_overwrite_a_newer_one(start: Start) -> None:
    script, worker = start("x = [1]; y = 1\ndef f(): return x, y"), start()
    f = worker.receive(script.send(script.f))
    worker.run("y = 7")
    script.run("x = [2]; y = 2")
    assert script.receive(worker.send(f))() == ([2], 2)
    assert (script.x, script.y) == ([2], 2)


def test_a_value_that_comes_home_where_it_was_deleted_is_there_again(start: Start) -> None:
    script, worker = start("x = 1\ndef f(): return x"), start()
    f = worker.receive(script.send(script.f))
    script.run("del x")
    assert script.receive(worker.send(f))() == 1


def test_values_pass_through_a_third_process(start: Start) -> None:
    script, first, second = start("x = 1\ndef f(): return x"), start(), start()
    f = second.receive(first.send(first.receive(script.send(script.f))))
    assert f() == 1
    script.run("x = 2")
    second.receive(script.send(script.f))
    assert f() == 2
    script.run("x = 3")
    script.receive(second.send(f))
    assert script.x == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", "2"), ("1", "True"), ("0.0", "-0.0"), ("'a'", "b'a'"), ("None", "0"), ("[1]", "[2]"), ("(1,)", "(True,)")],
)
def test_news_is_told_from_the_same(start: Start, first: str, second: str) -> None:
    script, worker = start("def f(): return x"), start()
    for text in (first, second, first):
        script.run(f"x = {text}")
        assert repr(worker.receive(script.send(script.f))()) == repr(eval(text))


def test_mutable_globals_are_brought_up_to_date(start: Start) -> None:
    script, worker = start("x = [1]\ndef f(): return x"), start()
    worker.receive(script.send(script.f))
    script.x.append(2)
    assert worker.receive(script.send(script.f))() == [1, 2]


def test_a_forked_child_is_a_process_of_its_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    script = start()
    with script.active():
        before = mainspace.ledger()
        assert mainspace.ledger() is before
        monkeypatch.setattr(mainspace.os, "getpid", lambda: -1)
        assert mainspace.ledger().token != before.token


# ---- classes ----------------------------------------------------------------------------------------------------


def test_classes_keep_their_identity_on_all_ways(run_python: ScriptRunner) -> None:
    """Real processes: within one, cloudpickle would find the very class again."""
    done = run_python(
        """
        import enum, struct, subprocess, sys
        from typing import Protocol, runtime_checkable
        from hybriddist.core import payload

        WORKER = '''
        import struct, sys
        from hybriddist.core import payload
        while head := sys.stdin.buffer.read(8):
            function, args = payload.loads(sys.stdin.buffer.read(*struct.unpack("q", head)))
            body, _ = payload.dumps(function(*args))
            sys.stdout.buffer.write(struct.pack("q", len(body)) + body)
            sys.stdout.buffer.flush()
        '''.replace("\\n        ", "\\n")
        worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=-1, stdout=-1)

        def call(function, *args):
            body, _ = payload.dumps((function, args))
            worker.stdin.write(struct.pack("q", len(body)) + body)
            worker.stdin.flush()
            return payload.loads(worker.stdout.read(*struct.unpack("q", worker.stdout.read(8))))

        SETTING = {"a": 1}

        class C:
            count = 0
            def __init__(self, n): self.n = n
            def double(self): return C(2 * self.n)
            def setting(self): return SETTING["a"]

        class Color(enum.Enum):
            RED = 1

        @runtime_checkable
        class Doubles(Protocol):
            def double(self): ...

        kept = []

        # Out and home: the same class; a new instance made there is of it, too.
        back = call(lambda c: c, C(3))
        assert type(back) is C and back.n == 3
        assert type(call(C.double, C(3))) is C
        assert call(C, 4).double().n == 8
        assert type(call(lambda: C(1))) is C

        # There it is one class, however often it comes.
        def remember(c):
            kept.append(type(c))
            return len(set(kept))
        assert [call(remember, C(n)) for n in range(3)] == [1, 1, 1]

        # Its newest attributes go out; coming home it brings nothing old.
        C.count = 5
        assert call(lambda c: type(c).count, C(0)) == 5
        traveller = call(lambda c: [c, setattr(type(c), "count", 6)][0], C(0))
        assert C.count == 5
        method, setting = C.double, SETTING
        SETTING["a"] = 2
        back = call(lambda c: c, C(0))
        assert C.double is method and SETTING is setting and back.setting() == 2

        # A new class of the same name is another one.
        old = C
        class C(old):
            def double(self): return "new"
        assert type(call(lambda c: c, C(1))) is C and call(C.double, C(1)) == "new"
        assert type(call(lambda c: c, old(1))) is old

        assert call(lambda c: c, Color.RED) is Color.RED
        assert call(lambda c: c is Color.RED, Color.RED)
        assert call(lambda d: isinstance(d, Doubles), old(1)) and not call(lambda d: isinstance(d, Doubles), 1)

        class Error(Exception): pass
        try:
            raise call(lambda: Error("mine"))
        except Error as error:
            assert str(error) == "mine"

        worker.stdin.close()
        assert worker.wait() == 0
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_child_of_multiprocessing_sends_its_script_by_value(start: Start) -> None:
    # Its `__main__` is found under another name, and its functions have the globals of a copy.
    child, worker = start("__name__ = '__mp_main__'\nclass C:\n    n = 1\n"), start()
    copy = types.ModuleType("__mp_main__")
    exec("x = 3\ndef f(): return x", copy.__dict__)
    child.main.f = copy.f  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__mp_main__", child.main)
        sent = child.send((copy.f, child.C()))
    assert worker.receive(sent)[0]() == 3
    assert worker.receive(sent)[1].n == 1


# ---- reading code -----------------------------------------------------------------------------------------------


def test_globals_are_told_from_attributes_and_found_in_inner_code() -> None:
    def function(thing: Any) -> Any:
        class Inner:
            field = IN_CLASS  # type: ignore[name-defined] # noqa: F821

            def method(self) -> Any:
                return thing.attribute, IN_METHOD  # type: ignore[name-defined] # noqa: F821

        return Inner, [IN_LOOP for _ in thing.path]  # type: ignore[name-defined] # noqa: F821

    usage = closures.usage(function.__code__)
    assert {"IN_CLASS", "IN_METHOD", "IN_LOOP"} <= set(usage.globals)
    assert not {"attribute", "path", "__name__"} & set(usage.globals)
    assert {"attribute", "path"} <= usage.names
    assert not usage.stores_globals
    assert not usage.stores_cells


def test_names_are_what_is_found_under_them() -> None:
    assert closures.is_named(len)
    assert closures.is_named(Process.send)
    assert closures.is_named(pytest.MonkeyPatch)
    assert not closures.is_named(lambda: 1)
    assert not closures.is_named([].append)
    assert not closures.is_named(type("Process", (), {"__module__": __name__}))
