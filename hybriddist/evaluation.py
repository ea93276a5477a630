"""The same on several processes: `everywhere`, `remotecall_eval`, `remotecall_all`, `clear`.

Each checks what it is given, and compiles it, before anything is sent. What this module does not know: how a call is
made on several processes and what becomes of failures (`on_each.py`), how a string becomes code (`core/snippets.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any, Final, TypeVar, overload

from hybriddist.calls import remotecall_fetch
from hybriddist.core import closures, mainspace, snippets
from hybriddist.core.marks import ValueMark
from hybriddist.on_each import as_pids, on_each, on_one
from hybriddist.pools import AbstractWorkerPool
from hybriddist.runtime.current import current

D = TypeVar("D", bound=Callable[..., Any])
P = TypeVar("P", bound=AbstractWorkerPool)

_MISSING: Final = object()
_OUR_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


@overload
def everywhere(code: str, procs: int | Iterable[int] | None = None, **interpolated: Any) -> Any: ...
@overload
def everywhere(code: D, procs: int | Iterable[int] | None = None) -> D: ...
@overload
def everywhere(*, procs: int | Iterable[int] | None = None) -> Callable[[D], D]: ...
def everywhere(code: Any = _MISSING, procs: int | Iterable[int] | None = None, **interpolated: Any) -> Any:
    """Run code, or define a function or class, in ``__main__`` of every process. Blocks until all are done.

    Three spellings::

        hd.everywhere("import math; scale = $x", x=2)     # run a string

        @hd.everywhere                                    # define a function or class under its name
        def area(r): return math.pi * (scale * r) ** 2

        @hd.everywhere(procs=[2, 3])                      # ... on some
        class Shape: ...

    Processes that are added later do not get it. There is no ``timeout``: every keyword may be the name of a value. Who
    needs a limit runs a string by `remotecall_eval`.

    Args:
        code: a string, of which common indentation is taken off; or a function or class. In a string ``$name`` (not
            inside of quotes) is the value passed under that name, and ``__file__`` the file of the caller, so that
            files beside it are found. Import statements, also in blocks, are run on the caller first and once, so that
            processes do not race to build the same module; one that stands in a block may fail there.
        procs: one pid, or several, each of which gets it as often as it is named. Default: all that there are now.
        **interpolated: the values of ``$name``. Other processes get copies, the own one the objects themselves.

    Returns:
        For a string and one pid the value of the last expression (None if the string does not end in one); for a
        string otherwise None. A function or class is returned.

    Raises:
        SyntaxError: with the line in ``code``; nothing was run or sent.
        TypeError: a ``$name`` without a value, or a value without its ``$name``.
        ImportError: an import statement failed on the caller; nothing was sent.
        SerializeError: a value cannot be pickled; nothing was sent.
        NoSuchProcessError: there is no such process; nothing was sent.
        RemoteException, ProcessExitedException: with one pid (also the own one): it failed.
        CompositeException: otherwise: one exception for each failure, in the order of ``procs``, this process last.

    Example:
        >>> import hybriddist as hd
        >>> hd.everywhere("$a * 2", hd.myid(), a=21)
        42

    Source: Julia's Distributed, ``@everywhere``.
    """
    if code is _MISSING:
        _no_values(interpolated)
        return lambda definition: everywhere(definition, procs)
    if isinstance(code, str):
        snippet, imports = _parse(code, interpolated)
        pids = as_pids(procs)
        if any(pid != current().pid for pid in pids):
            snippets.run_imports(imports)
        return _run(snippet, interpolated, procs, pids)
    name = _name_of(code)
    _no_values(interpolated)
    pids = as_pids(procs)
    if isinstance(procs, Iterable) or procs is None:
        on_each(pids, _define, (name, code, _announce([name], [], pids)), {}, f"defining {name}")
    else:
        remotecall_fetch(_define, pids[0], name, code, None)
    return code


def remotecall_eval(code: str, pids: int | Iterable[int], *, timeout: float | None = None, **interpolated: Any) -> Any:
    """Run code in ``__main__`` of one process, or of several: the value of its last expression.

    As `everywhere`, but nothing is imported on the caller.

    Args:
        code, pids, **interpolated: as for `everywhere`. No value can be named ``timeout``.
        timeout: seconds to wait for the end; None waits without limit. With a limit the own process, if it is one of
            them, runs the code on another thread.

    Returns:
        With one pid the value; None if the code does not end in an expression. With several pids None: the code is
        run for its effect (`remotecall_all` collects values).

    Raises:
        TimeoutError: some had not ended within ``timeout``. The code goes on there, to its end.
        Otherwise as `everywhere`.

    Example:
        >>> import hybriddist as hd
        >>> hd.remotecall_eval("6 * 7", hd.myid())
        42

    Source: Julia's Distributed, ``remotecall_eval``.
    """
    if not isinstance(code, str):
        raise TypeError(f"the code must be a string, not {type(code).__name__}; to call a function use remotecall")
    snippet, _ = _parse(code, interpolated)
    return _run(snippet, interpolated, pids, as_pids(pids), "remotecall_eval", timeout)


def remotecall_all(
    f: Callable[..., Any], /, *args: Any, procs: int | Iterable[int] | None = None, **kwargs: Any
) -> dict[int, Any]:
    """Call ``f(*args, **kwargs)`` on every process at the same time, and collect the values. Blocks.

    Args:
        f: any callable, as for `remotecall`.
        *args, **kwargs: its arguments. A keyword named ``procs`` cannot be passed on. One named ``timeout`` is, so
            there is no limit in time: who needs one fetches a `remotecall` of each.
        procs: one pid or several; by default all processes that there are now, this one included.

    Returns:
        The values by pid, in the order of ``procs``. A pid that is named twice gets one call.

    Raises:
        CompositeException: of the failures, in the order of ``procs``, this process last.
        SerializeError, NoSuchProcessError: nothing was sent.

    Example:
        >>> import hybriddist as hd
        >>> hd.remotecall_all(pow, 2, 5)
        {1: 32}

    Source: Julia's ``remotecall`` on each of ``procs()``, as its manual writes it.
    """
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")
    pids = list(dict.fromkeys(as_pids(procs)))
    values = on_each(pids, f, args, kwargs, "remotecall_all")
    return {pid: values[pid] for pid in pids}


@overload
def clear(names: P) -> P: ...
@overload
def clear(
    names: str | Iterable[str],
    pids: int | Iterable[int] | None = None,
    mod: str = "__main__",
    timeout: float | None = None,
) -> None: ...
def clear(
    names: Any, pids: int | Iterable[int] | None = None, mod: str = "__main__", timeout: float | None = None
) -> Any:
    """Set global variables of other processes to None, so that their values can be freed. Blocks.

    Names that are not defined there are skipped. A value that a later call brings along is there again.

    With a worker pool it is ``pool.clear()``: the functions that a `CachingPool` has sent are freed. The pool is
    returned, and nothing is waited for.

    Args:
        names: one name or several; or a pool, alone.
        pids: one pid or several. Default: the workers but this process, whose variables are not touched.
        mod: the name of the module; a process that has not loaded it is skipped.
        timeout: seconds to wait for all of them; None waits without limit.

    Raises:
        TimeoutError: some had not done so within ``timeout``. They will, when they come to it.
        TypeError, ValueError: what is no name, or belongs to the module itself, such as ``__name__``.
        RemoteException, ProcessExitedException, CompositeException, NoSuchProcessError: as `everywhere`.

    Example:
        >>> import hybriddist as hd
        >>> hd.clear(["table", "index"])

    Source: Julia's Distributed, ``clear!`` of symbols and of a ``CachingPool``.
    """
    if isinstance(names, AbstractWorkerPool):
        if pids is not None or mod != "__main__":
            raise TypeError("clear of a pool takes no pids and no module: it is about all of its workers")
        return names.clear()
    checked = _variable_names(names)
    if not isinstance(mod, str):
        raise TypeError(f"mod is the name of a module, not {type(mod).__name__}")
    if pids is None:
        process = current()
        pids = [pid for pid in process.membership.workers() if pid != process.pid]
    where = as_pids(pids)
    if isinstance(pids, Iterable):
        on_each(where, _clear_here, (checked, mod), {}, "clear", timeout)
    else:
        on_one(where[0], _clear_here, (checked, mod), "clear", timeout)
    return None


# ---- what runs on each process --------------------------------------------------------------------------------------


def _define(name: str, definition: Any, announcement: mainspace.Announcement | None) -> None:
    with _defining(announcement):
        mainspace.namespace()[name] = definition
    if isinstance(definition, FunctionType) and name in definition.__code__.co_freevars:
        # A local function that calls itself: its variable is bound only when the decorator has returned, there.
        cell = (definition.__closure__ or ())[definition.__code__.co_freevars.index(name)]
        if not closures.cell_contents(cell):
            cell.cell_contents = definition


def _clear_here(names: list[str], module_name: str) -> None:
    module = sys.modules.get(module_name)
    for name in names:
        if module is not None and name in module.__dict__:
            module.__dict__[name] = None
    if module_name == "__main__":
        mainspace.ledger().book.forget(names)


# ---- to all of them -------------------------------------------------------------------------------------------------


def _run(
    snippet: snippets.Snippet,
    values: dict[str, Any],
    procs: int | Iterable[int] | None,
    pids: list[int],
    what: str = "everywhere",
    timeout: float | None = None,
) -> Any:
    if procs is None or isinstance(procs, Iterable):
        announcement = _announce(*snippets.used_names(snippet), pids)
        on_each(pids, partial(_run_quietly, snippet, announcement), (values,), {}, what, timeout)
        return None
    return on_one(pids[0], snippets.run, (snippet, values), what, timeout)


def _run_quietly(
    snippet: snippets.Snippet, announcement: mainspace.Announcement | None, values: dict[str, Any]
) -> None:
    with _defining(announcement):
        snippets.run(snippet, values)  # its value may be what cannot travel, and nobody asked for it


def _announce(assigned: list[str], read: list[str], pids: list[int]) -> mainspace.Announcement | None:
    """Announce names that this process is going to define together with others; None if it does not take part."""
    own = current().pid
    if own not in pids or all(pid == own for pid in pids):
        return None
    return mainspace.ledger().announce(assigned, read)


def _defining(announcement: mainspace.Announcement | None) -> AbstractContextManager[None]:
    return nullcontext() if announcement is None else mainspace.ledger().defining(announcement, ValueMark)


# ---- checks ---------------------------------------------------------------------------------------------------------


def _parse(text: str, values: dict[str, Any]) -> Any:
    """Compile code for whoever called the library."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OUR_FOLDER):
        frame = frame.f_back
    file = frame.f_globals.get("__file__")
    place = f"{os.path.basename(frame.f_code.co_filename)} line {frame.f_lineno}"
    return snippets.parse(text, values, os.path.abspath(file) if isinstance(file, str) else None, place)


def _name_of(definition: Any) -> str:
    """The name under which a function or class is to be defined."""
    if not isinstance(definition, type) and not (callable(definition) and hasattr(definition, "__name__")):
        raise TypeError(f"everywhere takes a string, a function or a class, not {type(definition).__name__}")
    name = definition.__name__
    if not isinstance(name, str) or not name.isidentifier():
        kind = "a lambda" if isinstance(definition, FunctionType) else repr(definition)
        raise ValueError(f"{kind} has no name under which it could be defined: use def")
    return name


def _no_values(interpolated: dict[str, Any]) -> None:
    if interpolated:
        raise TypeError(f"a value for {next(iter(interpolated))!r} was passed, but values belong to a string of code")


def _variable_names(names: str | Iterable[str]) -> list[str]:
    if not isinstance(names, str) and not isinstance(names, Iterable):
        raise TypeError(f"clear takes the name of a variable or several names, not {type(names).__name__}")
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"the name of a variable is a string, not {type(name).__name__}")
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot be the name of a variable")
        if name.startswith("__") and name.endswith("__"):
            raise ValueError(f"{name} belongs to the module itself and cannot be cleared")
    return found


__all__ = ["clear", "everywhere", "remotecall_all", "remotecall_eval"]
