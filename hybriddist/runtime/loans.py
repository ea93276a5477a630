"""`Loan`: a worker that a call has from a pool, until the call has ended.

::

    take ──► send ──► the call runs ──► its end ──► put            also if it failed, or nobody wants its value any more
               └── could not be sent ───────────────► put

A Ctrl-C loses no worker: the steps that must not be torn apart are shielded (``interrupts.py``), and a call that is
under way when its caller is interrupted keeps its worker until it ends. What this module does not know: pools, and how
calls are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybriddist.errors import HybridDistError

if TYPE_CHECKING:
    from hybriddist.ids import RRID
    from hybriddist.runtime.completion import Completion
    from hybriddist.runtime.process import Process


class Loan:
    """One worker of a pool.

    Args:
        put: puts it back.
        is_quick: whether that neither blocks, nor fails, nor runs what users wrote.

    Attributes:
        pid: the worker. Set by whoever makes the loan, with ``loan.pid = pool.take()``: between a plain call's return
            and the assignment there is no gap in which a Ctrl-C could strike.
        kept: what is to live until the call has ended.
        is_under_way: whether the call's end ends this loan.
    """

    __slots__ = ("_is_quick", "_process", "_put", "is_under_way", "kept", "pid")

    def __init__(self, process: Process, put: Callable[[int], Any], is_quick: bool) -> None:
        self._process = process
        self._put = put
        self._is_quick = is_quick
        self.pid = 0
        self.kept: Any = None
        self.is_under_way = False

    def end(self, _: Completion | None = None) -> None:  # shielded
        """Put the worker back now, or have another thread do it, if that is not quick.

        Runs also on threads that receive, which must neither block nor run what users wrote.
        """
        if self._is_quick:
            self._put(self.pid)
        else:
            self._process.start()
            self._process.executor.submit(self._end_slowly)

    def end_after(self, completion: Completion) -> None:  # shielded
        """Put the worker back when the call has ended, whose result completes ``completion``."""
        self.is_under_way = True
        completion.add_callback(self.end)

    def call_here(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rrid: RRID) -> None:  # shielded
        """Begin a call of this process to itself, and put the worker back when it has ended."""
        self.is_under_way = True
        self._process.store_call_here(function, args, kwargs, rrid, self.end)

    def _end_slowly(self) -> None:
        try:
            self._put(self.pid)
        except HybridDistError:
            pass  # the pool is gone with its process: nobody waits for the worker
        except Exception:
            import traceback  # 3 ms, and rarely needed

            traceback.print_exc()
