"""One thread for the numeric libraries of a worker that somebody else's program has become.

Workers that are started here get this by their environment (``managers/interpreter.py``). A program that a manager
starts has an environment of its own, and may have loaded numpy long ago: then only `threadpoolctl` reaches its BLAS,
where it is installed.

What this module does not know: which workers are meant (``managers/launching.py``).
"""

from __future__ import annotations

import os
import sys

from hybriddist.managers.interpreter import BLAS_VARIABLES


def use_one_thread() -> None:
    """Called on the worker. A number of threads that its environment names stays."""
    named = [name for name in BLAS_VARIABLES if name in os.environ]
    for name in BLAS_VARIABLES:
        os.environ.setdefault(name, "1")  # for what is loaded later
    if named or "numpy" not in sys.modules:
        return
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(1)
