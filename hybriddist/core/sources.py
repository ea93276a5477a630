"""Modules as text: which may be sent to another process, and how one is made of its text there.

The caller's own modules (files of a project) are sent as source to workers that lack them; what is installed is not,
since it may have been built for one machine, and since a worker that lacks it should say so. *Installed* is what lies
in the standard library or under a folder named ``site-packages`` or ``dist-packages``, links resolved. Packages that
are installed in editable form lie elsewhere, and so are the caller's own.

What this module does not know: who asks for a module, and how the text gets there (`runtime/lending.py`).
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterable
from typing import Any, Final

from hybriddist.records import Record

_PACKAGE_FOLDERS: Final = frozenset({"site-packages", "dist-packages"})


class ModuleSource(Record):
    """A module, ready to travel."""

    name: str
    text: str
    file: str | None
    """Where the text was read; None for a package without an ``__init__``."""
    is_package: bool


class SourceLoader:
    """Makes a module of its text, as the import system wants it. Tracebacks and `inspect` show its lines."""

    def __init__(self, source: ModuleSource) -> None:
        self.source = source

    def spec(self) -> Any:
        """The specification of the module."""
        from importlib.machinery import ModuleSpec

        name, _, file, is_package = self.source
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = file is not None  # so that the module gets its __file__
        return spec

    def create_module(self, spec: Any) -> None:
        """The usual kind of module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the text in the module."""
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102 - what a loader is for

    def get_code(self, name: str) -> types.CodeType:
        """The compiled text."""
        return compile(self.source.text, self.source.file or f"<{name}>", "exec", dont_inherit=True)

    def get_source(self, name: str) -> str:
        """The text: for tracebacks, where there is no such file."""
        return self.source.text

    def is_package(self, name: str) -> bool:
        """Whether it has submodules."""
        return self.source.is_package


def find_source(name: str) -> ModuleSource | str | None:
    """This process's module of that name, to be sent elsewhere.

    The module is not imported: its lock may be held by whoever waits for our answer.

    Returns:
        The module; a sentence on why it cannot be sent; or None: there is none, or it is installed.
    """
    spec = _find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    is_package = spec.submodule_search_locations is not None
    file = spec.origin if spec.has_location or (spec.origin and os.path.exists(spec.origin)) else None
    if are_installed([file] if file else places):
        return None
    if file is None:
        return ModuleSource(name, "", None, True) if places else None
    try:
        text = _read(name, spec.loader, file)
    except Exception as error:
        return f"{file} cannot be read: {type(error).__name__}: {error}"
    if text is None:
        return f"{file} is not Python source"
    return ModuleSource(name, text, os.path.abspath(file), is_package)


def _read(name: str, loader: Any, file: str) -> str | None:
    """The text of a module; None if there is none."""
    if hasattr(loader, "get_source"):
        return loader.get_source(name)  # type: ignore[no-any-return]
    if not file.endswith(".py"):
        return None
    from importlib.util import decode_source

    with open(file, "rb") as opened:  # of a loader that changes what it reads, such as pytest's
        return decode_source(opened.read())


def are_installed(paths: Iterable[str]) -> bool:
    """Whether all of these files or folders are installed, so that every process must have its own."""
    library = os.path.realpath(os.path.dirname(os.__file__)) + os.sep
    for path in paths:
        full = os.path.realpath(path)
        if not full.startswith(library) and _PACKAGE_FOLDERS.isdisjoint(full.split(os.sep)):
            return False
    return True


def _find_spec(name: str) -> Any:
    module = sys.modules.get(name)
    if module is not None:
        spec = getattr(module, "__spec__", None)
        return spec if spec is not None and spec.loader is not None else _spec_of_file(name, module)
    parent_name = name.rpartition(".")[0]
    path = None
    if parent_name:
        parent = _find_spec(parent_name)
        path = None if parent is None else parent.submodule_search_locations
        if path is None:
            return None
    for finder in sys.meta_path:
        if isinstance(finder, type) or type(finder).__module__ != __name__:
            try:
                spec = finder.find_spec(name, path)
            except Exception:  # a finder of somebody else, which may not like our question
                continue
            if spec is not None:
                return spec
    return None


def _spec_of_file(name: str, module: Any) -> Any:
    """For a module that was loaded by hand and knows nothing but its file."""
    from importlib.util import spec_from_file_location

    file = getattr(module, "__file__", None)
    path = getattr(module, "__path__", None)
    if not isinstance(file, str):
        return None
    return spec_from_file_location(name, file, submodule_search_locations=None if path is None else list(path))
