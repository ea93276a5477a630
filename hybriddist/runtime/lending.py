"""The driver lends its modules: a worker that cannot import one asks the driver for its source.

::

    worker: import project.part              (a pickle names it, or the user's code imports it)
      │ Python's own finders: no such file
      ▼
    Borrower.find_spec ── call ──► driver: find_source ── the text, or None ──► a module here, like any other

The borrower is the last finder, so nothing changes for what a worker finds by itself. What is installed on the driver
is not lent (`core/sources.py`). Each module comes once; a file that is edited afterwards is not read again.

It cannot end in a circle: the driver looks for the file without importing it, and so takes no lock that the thread
that waits for us may hold. The worker's import lock of the module is held meanwhile, which is what it is for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hybriddist.core.sources import ModuleSource, SourceLoader, are_installed, find_source
from hybriddist.errors import HybridDistError, RemoteException
from hybriddist.ids import DRIVER

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


class Borrower:
    """A finder for `sys.meta_path` of a worker."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def install(self) -> None:
        """Be the last finder of this interpreter."""
        sys.meta_path.append(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Called by the import system when nobody else has found the module.

        Raises:
            ModuleNotFoundError: the driver has it, but cannot lend it.
        """
        if not self._may_ask(name):
            return None
        try:
            answer = self._process.fetch_call(find_source, DRIVER, (name,), {})
        except RemoteException:
            raise
        except HybridDistError:  # the driver is gone, and soon we are
            return None
        if isinstance(answer, ModuleSource):
            return SourceLoader(answer).spec()
        if answer is not None:
            raise ModuleNotFoundError(
                f"No module named {name!r} here, and process {DRIVER} cannot lend it: {answer}. "
                f"Install it for {sys.executable}",
                name=name,
            )
        return None

    def _may_ask(self, name: str) -> bool:
        process = self._process
        parent_name, _, _ = name.rpartition(".")
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == "hybriddist":
            return False  # modules that are optional on this system: asked for often, and never lent
        if parent_name:
            parent = sys.modules.get(parent_name)
            places = list(getattr(parent, "__path__", ()))
            if places and are_installed(places):
                return False
        # A thread that receives cannot wait for an answer that it would have to receive itself.
        return DRIVER in process.peers and not process.leaving.is_set() and not process.guard.is_shielded()
