"""Modules of the caller's own project work on workers that lack their files: the driver lends them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]

Write = Callable[..., Any]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: list[int]) -> Iterator[Write]:
    """``write(name, files)``: put files into a folder that only this process knows, and import the module ``name``.

    The workers are there already: they have not got the folder on their path. Names must not be used twice.
    """
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, files: dict[str, str]) -> Any:
        for file, text in files.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    hd.everywhere("import sys\nfor n in [n for n in sys.modules if n.startswith('own_')]: del sys.modules[n]", cluster)


PACKAGE = {
    "own_package/__init__.py": "from .values import BASE\nfrom . import deep\n",
    "own_package/values.py": "BASE = 40\n",
    "own_package/deep/__init__.py": "from ..values import BASE as base\n",
    "own_package/deep/leaf.py": "from .. import values\nfrom . import base\nimport own_sibling\n\n"
    "def answer(x):\n    return x + values.BASE + base - own_sibling.forty()\n",
    "own_sibling.py": "def forty():\n    return 40\n",
}


def test_packages_with_relative_imports_and_siblings(write: Write, cluster: list[int]) -> None:
    leaf = write("own_package.deep.leaf", PACKAGE)
    for pid in cluster:
        assert hd.remotecall_fetch(leaf.answer, pid, 2) == 42
    assert hd.remotecall_eval("__import__('sys').modules['own_package.deep'].__path__", cluster[0]) == []


def test_imports_in_functions_in_everywhere_and_by_name(write: Write, cluster: list[int]) -> None:
    write("own_sibling", PACKAGE)
    del sys.modules["own_sibling"]

    def use() -> Any:
        import own_package.deep.leaf  # type: ignore[import-not-found]

        return own_package.deep.leaf.answer(1)

    assert hd.remotecall_fetch(use, cluster[0]) == 41
    hd.everywhere("import own_package.values as own_values", cluster)
    assert hd.remotecall_eval("own_values.BASE", cluster[1]) == 40
    assert hd.remotecall_fetch(lambda: importlib.util.find_spec("own_sibling") is not None, cluster[2])


def test_a_module_is_one_object_a_process(write: Write, cluster: list[int]) -> None:
    module = write(
        "own_state",
        {
            "own_state.py": "count = 0\nclass Thing:\n    def is_one(self): return type(self) is Thing\n"
            "def up():\n    global count\n    count += 1\n    return count\n"
        },
    )
    a, b, _ = cluster
    assert [hd.remotecall_fetch(module.up, a) for _ in range(4)] == [1, 2, 3, 4]
    assert hd.remotecall_fetch(module.up, b) == 1
    assert module.count == 0
    thing = hd.remotecall_fetch(module.Thing, a)
    assert type(thing) is module.Thing
    assert hd.remotecall_fetch(thing.is_one, a)
    assert hd.remotecall_fetch(lambda t: hd.remotecall_fetch(t.is_one, b), a, thing)


def test_calls_at_the_same_time_get_the_same_module(write: Write, cluster: list[int]) -> None:
    module = write(
        "own_slow", {"own_slow.py": "import time\ntime.sleep(0.05)\nkey = object()\ndef f(): return id(key)\n"}
    )
    for pid in cluster:
        assert len({future.fetch() for future in [hd.remotecall(module.f, pid) for _ in range(6)]}) == 1


def test_code_of_a_module_that_the_workers_do_not_know(write: Write, cluster: list[int]) -> None:
    """Lambdas, everywhere and decorated functions, called from there."""
    module = write(
        "own_caller",
        {
            "own_caller.py": "import hybriddist as hd\nBASE = 40\ndef helper(x): return BASE + x\n"
            "def call(pid):\n"
            "    return hd.remotecall_fetch(lambda x: helper(x), pid, 2), hd.everywhere('$v + 1', pid, v=41)\n"
            "def define(pids):\n"
            "    @hd.everywhere(procs=pids)\n"
            "    def own_defined(x): return helper(x)\n"
        },
    )
    assert module.call(cluster[0]) == (42, 42)
    module.define(cluster)
    assert hd.remotecall_eval("own_defined(2)", cluster[1]) == 42


def test_packages_without_init(write: Write, cluster: list[int]) -> None:
    module = write("own_bare.inner.module", {"own_bare/inner/module.py": "def f(): return __name__\n"})
    assert hd.remotecall_fetch(module.f, cluster[0]) == "own_bare.inner.module"


def test_tracebacks_show_the_source_and_exceptions_keep_their_type(write: Write, cluster: list[int]) -> None:
    module = write(
        "own_errors",
        {"own_errors.py": "class Mine(Exception): pass\n\ndef fail():\n    raise Mine('text')  # to be seen\n"},
    )
    Path(module.__file__).unlink()  # the worker runs on this machine and would find the lines in the file
    module.__loader__.get_source = lambda name: (
        "class Mine(Exception): pass\n\ndef fail():\n    raise Mine('text')  # seen\n"
    )
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(module.fail, cluster[0])
    assert type(info.value.__cause__) is module.Mine
    assert "raise Mine('text')  # seen" in str(info.value)


def test_a_module_that_is_just_being_imported_here(write: Write, cluster: list[int]) -> None:
    """This process holds the import lock of the package, and waits for the worker, which asks for the package."""
    module = write(
        "own_loading",
        {
            "own_loading/__init__.py": "import hybriddist as hd\nif hd.myid() == 1:\n"
            "    value = hd.remotecall(eval, hd.workers()[0], '__import__(\"own_loading.part\").part.x').fetch(10)\n",
            "own_loading/part.py": "x = 7\n",
        },
    )
    assert module.value == 7


def test_functions_of_a_lent_module_have_keys_and_new_workers_are_lent_it_too(
    run_python: ScriptRunner, transport: str
) -> None:
    done = run_python(
        f"""
        transport = {transport!r}
        """
        """
        import os, sys
        os.makedirs("late")
        import hybriddist as hd
        a, = hd.addprocs(1, transport=transport)
        with open("late/own_late.py", "w") as file:
            file.write("def f(x): return x + 1\\n")
        sys.path.insert(0, os.path.abspath("late"))
        import own_late
        assert [hd.remotecall_fetch(own_late.f, a, i) for i in range(4)] == [1, 2, 3, 4]
        sys.path.pop(0)
        hd.rmprocs(a)
        b, = hd.addprocs(1, transport=transport)
        assert [hd.remotecall_fetch(own_late.f, b, i) for i in range(4)] == [1, 2, 3, 4]
        """
    )
    assert done.returncode == 0, done.stderr


# ---- what is not lent -----------------------------------------------------------------------------------------------


def test_installed_packages_are_not_lent(write: Write, cluster: list[int], tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path / "site-packages"))
    try:
        module = write("own_installed", {"site-packages/own_installed.py": "def f(): return 1\n"})
        with pytest.raises(hd.RemoteException, match=r"No module named 'own_installed'.*Install the module"):
            hd.remotecall_fetch(module.f, cluster[0])
    finally:
        sys.path.remove(str(tmp_path / "site-packages"))


def test_what_is_nowhere_is_missing_as_usual(cluster: list[int]) -> None:
    for name in ("own_nowhere", "own_nowhere.part", "json.own_nowhere", "numpy.own_nowhere"):
        with pytest.raises(hd.RemoteException) as info:
            hd.remotecall_fetch(importlib.import_module, cluster[0], name)
        assert isinstance(info.value.__cause__, ModuleNotFoundError)
        assert info.value.__cause__.name in (name, "own_nowhere")


def test_a_module_that_cannot_be_lent_says_why(write: Write, cluster: list[int], tmp_path: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"own_compiled{suffix}").write_text("")
    with pytest.raises(hd.RemoteException, match=r"process 1 cannot lend it: .*own_compiled.* is not Python source"):
        hd.remotecall_fetch(importlib.import_module, cluster[0], "own_compiled")


def test_a_module_that_fails_there_is_named(write: Write, cluster: list[int]) -> None:
    module = write("own_fails", {"own_fails.py": "import hybriddist as hd\nassert hd.myid() == 1\ndef f(): pass\n"})
    for call in (hd.remotecall_fetch, hd.remotecall_wait) * 2:
        with pytest.raises(hd.RemoteException, match=r"own_fails\.py\", line 2"):
            call(module.f, cluster[0])
    assert hd.remotecall_fetch(abs, cluster[0], -1) == 1


def test_a_module_that_only_a_worker_has(cluster: list[int], tmp_path: Path) -> None:
    """Workers lend nothing. Whoever gets something of it is told its name, and what to do."""
    a, b, *_ = cluster
    name = f"worker_only_{a}_{b}"
    (tmp_path / f"{name}.py").write_text("class Thing:\n    pass\n\n\ndef f():\n    return 5\n")
    hd.remotecall_eval(f"import sys; sys.path.insert(0, $folder); import {name} as wo_m", a, folder=str(tmp_path))
    try:
        says = rf"No module named '{name}'. Install the module .* driver's sys.path"
        for code in ("wo_m.Thing()", "wo_m.f", "wo_m"):
            with pytest.raises(hd.DeserializeError, match=says):
                hd.remotecall_eval(code, a)
        with pytest.raises(hd.DeserializeError, match=says):
            hd.remotecall(eval, a, "__import__('__main__').wo_m.Thing()").fetch()
        for pid in (b, 1):
            with pytest.raises(hd.RemoteException, match=says):
                hd.remotecall_eval("__import__('hybriddist').remotecall_fetch(wo_m.f, $pid)", a, pid=pid)
        assert hd.remotecall_eval("wo_m.f()", a) == 5
    finally:
        hd.remotecall_eval("sys.path.remove($folder)", a, folder=str(tmp_path))
