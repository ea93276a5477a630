"""Run a program as ``__main__``, with workers, as Python would run it without.

::

    find the program     a script that is missing or does not compile starts no worker
    make __main__ ready  empty; sys.argv and sys.path[0] as Python sets them, before workers inherit the path
    -p N                 start the workers
    -L FILE ...          each in __main__ of the driver first, then of all workers at once
    run the program      in the same __main__

The program runs in the true module ``__main__``, not in a copy: its functions find their globals there, also after
its end, when exit functions run; and functions that come back from workers meet them. What goes wrong in it is shown
as Python shows it, without the frames of this module. Interpreter exit shuts the cluster down.

What this module does not know: command lines (``__main__.py``), and how workers are started.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Final, Literal

from hybriddist import calls, cluster, listing
from hybriddist.core.mainspace import namespace
from hybriddist.errors import CompositeException, HybridDistError
from hybriddist.runtime.start import empty_main

INTERRUPTED_STATUS: Final = 130
"""128 + SIGINT, as shells say it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        kind: "script" (a file, or a folder or archive with a ``__main__``), "-c", "-m", "-" (stdin), or "": a REPL.
            The last two are a REPL if stdin is a terminal, a script otherwise.
        what: path, code, or the module's name.
        arguments: for ``sys.argv``.
    """

    kind: Literal["", "script", "-c", "-m", "-"]
    what: str = ""
    arguments: Sequence[str] = ()


class _Failure(Exception):
    """What was asked for cannot be done: a sentence for stderr, and the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class _Found:
    """A program that can be run.

    Attributes:
        code: None for a REPL, and for a module, which is looked for at last: that runs code of its parent packages.
        argv0: for ``sys.argv``.
        path0: for ``sys.path``.
        attributes: of ``__main__``.
        holds_modules: whether ``path0`` is the program itself, a folder or an archive.
    """

    code: CodeType | None
    argv0: str
    path0: str
    attributes: dict[str, Any]
    holds_modules: bool = False


def run(program: Program, procs: int | Literal["auto"] | None, load: Sequence[str]) -> int:
    """Run a program after so many local workers were started and these files were loaded everywhere.

    Returns:
        The exit status.

    Raises:
        SystemExit: raised by the program.
    """
    try:
        files = [(os.path.abspath(path), _read(path)) for path in load]
        for path, source in files:
            _compile(source, path)
        found = _find(program)
        main = empty_main()
        _prepare_sys(found, program.arguments)
        if procs is not None:
            _start_workers(None if procs == "auto" else procs)
        for path, source in files:
            _load_everywhere(source, path)
        if program.kind == "-m":
            found.code, found.attributes = _find_module(program.what)
            sys.argv[0] = found.attributes["__file__"] or "-m"
        main.update(found.attributes)
        if found.code is None:
            _interact(main)
        else:
            exec(found.code, main)  # noqa: S102 - to run the user's program is what it is for
    except SystemExit:
        raise
    except _Failure as failure:
        print(f"hybriddist: {failure}", file=sys.stderr)
        return failure.status
    except BaseException as error:
        _show(error)
        return INTERRUPTED_STATUS if isinstance(error, KeyboardInterrupt) else 1
    return 0


def load_source(source: bytes, path: str) -> None:
    """Run a file's source in ``__main__`` of this process. Called on each process for ``-L``."""
    main = namespace()
    code = _compile(source, path)
    with _file_name(main, path):
        exec(code, main)  # noqa: S102 - the user's own file


# ---- finding --------------------------------------------------------------------------------------------------------


def _find(program: Program) -> _Found:
    builtin = {"__loader__": BuiltinImporter}
    if program.kind == "script":
        return _find_script(program.what)
    if program.kind == "-c":
        return _Found(_compile(program.what, "<string>"), "-c", "", builtin)
    if program.kind == "-m":
        return _Found(None, "-m", os.getcwd(), {})
    if sys.stdin is not None and sys.stdin.isatty():
        return _Found(None, program.kind, "", builtin)
    source = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return _Found(_compile(source, "<stdin>"), program.kind, "", {"__file__": "<stdin>", "__cached__": None, **builtin})


def _find_script(path: str) -> _Found:
    import pkgutil

    full = os.path.abspath(path)
    importer: Any = pkgutil.get_importer(full)  # of folders and archives; None for other files
    if importer is None:
        attributes = {"__file__": full, "__cached__": None, "__loader__": SourceFileLoader("__main__", full)}
        return _Found(_compile(_read(path), full), path, os.path.dirname(os.path.realpath(path)), attributes)
    spec = importer.find_spec("__main__")
    if spec is None:
        raise _Failure(f"can't find '__main__' module in {path!r}")
    code, attributes = _code_of(spec)
    return _Found(code, path, full, attributes, holds_modules=True)


def _find_module(name: str) -> tuple[CodeType, dict[str, Any]]:
    """A module's code, as ``-m`` finds it; of a package its ``__main__``. Imports the packages it is in."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name += ".__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # one of its packages is there and misses something else
        spec = None
    except ValueError:  # it is loaded and knows no spec, such as __main__ itself
        spec = None
    if spec is None:
        raise _Failure(f"no module named {name!r}")
    return _code_of(spec)


def _code_of(spec: ModuleSpec) -> tuple[CodeType, dict[str, Any]]:
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise _Failure(f"no code object available for {spec.name}")
    attributes = {
        "__spec__": spec,
        "__loader__": loader,
        "__package__": spec.parent,
        "__file__": spec.origin,
        "__cached__": spec.cached,
    }
    return code, attributes


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = f"[Errno {error.errno}] {error.strerror}" if isinstance(error, OSError) else error
        raise _Failure(f"can't open file {os.path.abspath(path)!r}: {reason}", status=2) from None


def _compile(source: str | bytes, name: str) -> CodeType:
    # dont_inherit: the future imports of this module are not the program's.
    return compile(source, name, "exec", dont_inherit=True)


# ---- making ready ---------------------------------------------------------------------------------------------------


def _prepare_sys(found: _Found, arguments: Sequence[str]) -> None:
    sys.argv[:] = [found.argv0, *arguments]
    if not sys.flags.safe_path:
        replaced, sys.path[0] = sys.path[0], found.path0
        # With a checkout as the current directory that was how this package was found; workers need it too.
        package = str(Path(__file__).resolve().parents[1])
        if os.path.abspath(replaced) == package and package not in map(os.path.abspath, sys.path):
            sys.path.append(package)
    elif found.holds_modules:
        sys.path.insert(0, found.path0)


def _start_workers(count: int | None) -> None:
    try:
        cluster.addprocs(count)
    except (HybridDistError, CompositeException, OSError, ValueError) as error:
        raise _Failure(f"the workers could not be started: {error}") from error


def _load_everywhere(source: bytes, path: str) -> None:
    load_source(source, path)
    running = [calls.remotecall(load_source, pid, source, path) for pid in listing.workers() if pid != listing.myid()]
    failures = []
    for future in running:
        try:
            future.fetch()
        except HybridDistError as error:
            failures.append(error)
    if failures:
        raise _Failure(f"-L {path} failed:\n" + "\n".join(map(str, failures)))


@contextmanager
def _file_name(main: dict[str, Any], path: str) -> Iterator[None]:
    """``__file__`` for as long as a file is run that is not the program."""
    before = main.get("__file__")
    main["__file__"] = path
    try:
        yield
    finally:
        if before is None:
            main.pop("__file__", None)
        else:
            main["__file__"] = before


# ---- running --------------------------------------------------------------------------------------------------------


def _interact(main: dict[str, Any]) -> None:
    import code

    import hybriddist

    start = getattr(sys, "__interactivehook__", None)  # line editing, history, completion
    if start is not None:
        start()
    startup = None if sys.flags.ignore_environment else os.environ.get("PYTHONSTARTUP")
    if startup:
        try:
            load_source(_read(startup), startup)
        except Exception as error:
            _show(error)
    main["hd"] = hybriddist
    count = len([pid for pid in listing.workers() if pid != listing.myid()])
    version = ".".join(map(str, sys.version_info[:3]))
    banner = f"hybriddist {hybriddist.__version__} as hd, Python {version}, {count} worker{'s' * (count != 1)}"
    code.interact(banner, local=main, exitmsg="")


def _show(error: BaseException) -> None:
    """What Python does with an exception that nobody catches. The program's frames alone are shown."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals is globals():
        frames = frames.tb_next
    error.__traceback__ = frames
    sys.excepthook(type(error), error, frames)
