"""The libraries that ours is compared with, those that are here: pools of two warm processes of each, as contexts.

They come with ``pip install ".[benchmarks]"``. What is not installed is left out of the comparison, and said to be.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

WORKERS = 2

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to each item, as the library's own documentation does it first."""


@contextmanager
def pool() -> Iterator[Map]:
    """`Pool.map`: one chunk in eight of each worker's share, cut beforehand."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as processes:
        yield processes.map
        processes.close()
        processes.join()


@contextmanager
def joblib() -> Iterator[Map]:
    """loky's processes, which stay; batches of adapting size."""
    library: Any = importlib.import_module("joblib")
    executor: Any = importlib.import_module("joblib.externals.loky")
    with library.Parallel(n_jobs=WORKERS) as parallel:
        delayed = library.delayed
        yield lambda f, items: parallel(delayed(f)(item) for item in items)
    executor.get_reusable_executor().shutdown(wait=True)


@contextmanager
def mpire() -> Iterator[Map]:
    """64 chunks a worker unless asked otherwise."""
    library: Any = importlib.import_module("mpire")
    with library.WorkerPool(n_jobs=WORKERS, start_method="spawn", keep_alive=True) as processes:
        yield processes.map
        processes.stop_and_join()


@contextmanager
def ray() -> Iterator[Any]:
    """The module itself, with two processes up."""
    library: Any = importlib.import_module("ray")
    library.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield library
    finally:
        library.shutdown()


def those_here(stack: ExitStack, contexts: Mapping[str, Callable[[], AbstractContextManager[Any]]]) -> dict[str, Any]:
    """Enter the contexts of the libraries that are installed; say on stderr which are not."""
    found = {}
    for name, context in contexts.items():
        try:
            found[name] = stack.enter_context(context())
        except ModuleNotFoundError as error:
            print(f"  without {name}: no module {error.name} (pip install '.[benchmarks]')", file=sys.stderr)
    return found
