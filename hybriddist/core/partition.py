"""Cutting work into parts, and the order in which partial results meet.

Pure arithmetic on positions 0..n-1: what the items are, and who works on them, is the caller's business.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise


def split_range(n_items: int, n_parts: int) -> list[range]:
    """Cut ``n_items`` positions into contiguous chunks whose sizes differ by at most one, longer chunks first.

    Args:
        n_items: how many items; 0 gives no chunk.
        n_parts: how many chunks at most; with fewer items than that, each item is a chunk.

    Returns:
        The chunks in order; none is empty.

    Raises:
        ValueError: ``n_items`` is negative or ``n_parts`` is below 1.

    Example:
        >>> split_range(7, 4)
        [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    """
    n_items, n_parts = operator.index(n_items), operator.index(n_parts)
    if n_items < 0:
        raise ValueError(f"there cannot be {n_items} items")
    if n_parts < 1:
        raise ValueError(f"cannot split into {n_parts} parts")
    n_parts = min(n_items, n_parts)
    if n_parts == 0:
        return []
    size, longer = divmod(n_items, n_parts)
    starts = [i * size + min(i, longer) for i in range(n_parts + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def shrinking(n_items: int, n_workers: int) -> list[range]:
    """Cut ``n_items`` positions into contiguous chunks for whoever is free: large ones first, then ever smaller.

    Each takes half of an equal share of what is left. So few requests do most of the work, and at the end, when the
    workers are to finish together, the pieces are small; none is below 1/64 of an equal share of the whole, but for
    the last. The sizes follow from the two numbers alone: where the chunks meet does not depend on who was quick.

    Raises:
        ValueError: ``n_items`` is negative or ``n_workers`` is below 1.

    Example:
        >>> [len(chunk) for chunk in shrinking(20, 2)]
        [5, 4, 3, 2, 2, 1, 1, 1, 1]

    Source: guided self-scheduling (Polychronopoulos and Kuck, 1987).
    """
    n_items, n_workers = operator.index(n_items), operator.index(n_workers)
    if n_items < 0:
        raise ValueError(f"there cannot be {n_items} items")
    if n_workers < 1:
        raise ValueError(f"cannot split among {n_workers} workers")
    least = max(1, n_items // (64 * n_workers))
    chunks: list[range] = []
    start = 0
    while start < n_items:
        size = max(least, -(-(n_items - start) // (2 * n_workers)))
        chunks.append(range(start, min(start + size, n_items)))
        start = chunks[-1].stop
    return chunks


def batches(n_items: int, size: int) -> list[range]:
    """Cut ``n_items`` positions into contiguous batches of ``size``; the last may be shorter.

    Raises:
        ValueError: ``n_items`` is negative or ``size`` is below 1.

    Example:
        >>> batches(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    n_items, size = operator.index(n_items), operator.index(size)
    if n_items < 0:
        raise ValueError(f"there cannot be {n_items} items")
    if size < 1:
        raise ValueError(f"a batch cannot have {size} items")
    return [range(start, min(start + size, n_items)) for start in range(0, n_items, size)]


def neighbours(labels: Sequence[Hashable]) -> list[range]:
    """The maximal runs of equal neighbours, in order.

    A reduction that is associative but not commutative may combine only neighbouring partial results. With the
    chunks' nodes as labels these are the runs that can be combined within one node before anything crosses the
    network.

    Example:
        >>> neighbours(["a", "a", "b", "a"])
        [range(0, 2), range(2, 3), range(3, 4)]
    """
    ends = [i for i in range(1, len(labels) + 1) if i == len(labels) or labels[i] != labels[i - 1]]
    return [range(start, stop) for start, stop in pairwise([0, *ends])]


def fold_rounds(n: int) -> Iterator[list[tuple[int, int]]]:
    """In which order ``n`` partial results are combined by neighbours, in as few rounds as can be.

    Each round is a list of pairs (left, right) that can be combined at once; the result stands at ``left``
    afterwards, and after the last round at 0. Left is always in front of right: for an associative operation the
    result is that of the fold from the left.

    Raises:
        ValueError: ``n`` is negative.

    Example:
        >>> list(fold_rounds(5))
        [[(0, 1), (2, 3)], [(0, 2)], [(0, 4)]]
    """
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"there cannot be {n} results")
    step = 1
    while step < n:
        yield [(left, left + step) for left in range(0, n - step, 2 * step)]
        step *= 2


def tree_children(position: int, n: int, fan_out: int = 2) -> range:
    """Whom the process at ``position`` passes a broadcast on to, in a tree over positions 0..n-1 with root 0.

    Everybody is reached once, in about log(n) to the base ``fan_out`` steps.

    Raises:
        ValueError: ``position`` is not below ``n``, or ``fan_out`` is below 1.

    Example:
        >>> [list(tree_children(i, 6)) for i in range(6)]
        [[1, 2], [3, 4], [5], [], [], []]
    """
    if not 0 <= position < n:
        raise ValueError(f"position {position} is not one of {n}")
    if fan_out < 1:
        raise ValueError(f"a tree cannot have {fan_out} branches")
    first = position * fan_out + 1
    return range(min(first, n), min(first + fan_out, n))
