"""What is Python code made of? Counts functions, branches and names in every Python file of a folder, in parallel.

    python examples/code_census.py [FOLDER] [--workers N] [--top N] [--no-serial]

Without FOLDER it counts the standard library of the running interpreter. `pmap` reads the files, a `distributed`
reduction folds the counts on the workers, and the same is done serially, to compare results and times.
"""

from __future__ import annotations

import argparse
import ast
import functools
import operator
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import hybriddist as hd

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


@dataclass
class Census:
    """What was counted in some files. ``skipped`` names those that are no Python source, with the reason."""

    totals: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def __iadd__(self, other: Census) -> Census:
        self.totals.update(other.totals)
        self.names.update(other.names)
        self.skipped += other.skipped
        return self


def count(path: Path) -> Census:
    """The census of one file."""
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the counted code, such as "\d"
            nodes = list(ast.walk(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Census(skipped=[f"{path}: {type(error).__name__}: {error}"])
    totals = Counter(files=1, lines=len(source.splitlines()))
    totals["functions"] = sum(isinstance(node, FUNCTIONS) for node in nodes)
    totals["branches"] = sum(isinstance(node, BRANCHES) for node in nodes)
    names = (getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None) for node in nodes)
    return Census(totals, Counter(filter(None, names)))


def fold(censuses: Iterable[Census]) -> Census:
    """All of them together, in a new one."""
    return functools.reduce(operator.iadd, censuses, Census())


def count_in_parallel(files: list[Path]) -> Census:
    """The census of all files, counted and folded on the workers."""
    found: list[Census] = hd.pmap(count, files, progress=True)
    total: Census = hd.distributed(fold, found, chunked=True, reduce=operator.iadd)
    return total


def python_files(folder: Path) -> list[Path]:
    """The Python files below ``folder``, without installed packages, in a fixed order."""
    files = (path for path in folder.rglob("*.py") if path.is_file())
    return sorted(path for path in files if not {"site-packages", "dist-packages"} & {*path.relative_to(folder).parts})


def show(census: Census, top: int) -> None:
    """Print the table, the skipped files and the most frequent names."""
    totals = {**census.totals, "distinct names": len(census.names), "skipped files": len(census.skipped)}
    for what, number in totals.items():
        print(f"{what:<20}{number:>12,}")
    for reason in census.skipped:
        print(f"  skipped {reason}")
    print("\nmost frequent names")
    for name, number in sorted(census.names.items(), key=lambda item: (-item[1], item[0]))[:top]:
        print(f"  {name:<18}{number:>12,}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count functions, branches and names in Python code, in parallel.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--workers", type=int, metavar="N", help="default: one for each usable CPU")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many names to show (%(default)s)")
    parser.add_argument("--no-serial", action="store_true", help="do not count serially as well, to compare")
    options = parser.parse_args()
    if min(options.top, 1 if options.workers is None else options.workers) < 1:
        parser.error("--workers and --top must be at least 1")
    if not options.folder.is_dir():
        parser.error(f"not a folder: {options.folder}")
    files = python_files(options.folder)
    if not files:
        parser.error(f"no Python files in {options.folder}")

    workers = hd.addprocs(options.workers)
    start = time.perf_counter()
    census = count_in_parallel(files)
    seconds = time.perf_counter() - start
    show(census, options.top)
    print(f"\nparallel: {seconds:.2f} s with {len(workers)} workers")
    if not options.no_serial:
        # Second, when the files are in memory already: if anything, the comparison favours the serial run.
        start = time.perf_counter()
        serial = fold(map(count, files))
        serial_seconds = time.perf_counter() - start
        print(f"serial:   {serial_seconds:.2f} s, {serial_seconds / seconds:.2f} times as long")
        if serial != census:
            sys.exit("the results differ")
        print("the results are equal")


if __name__ == "__main__":
    main()
