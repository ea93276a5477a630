"""Splits, batches and trees: examples, and properties over all sizes."""

from __future__ import annotations

import doctest
from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.core import partition
from hybriddist.core.partition import batches, fold_rounds, neighbours, shrinking, split_range, tree_children

counts = st.integers(0, 300)
sizes = st.integers(1, 100)


def together(parts: list[range]) -> list[int]:
    return [i for part in parts for i in part]


@pytest.mark.parametrize(
    ("n_items", "n_parts", "lengths"),
    [(7, 4, [2, 2, 2, 1]), (3, 4, [1, 1, 1]), (10, 3, [4, 3, 3]), (5, 1, [5]), (0, 4, []), (8, 4, [2] * 4)],
)
def test_split_examples(n_items: int, n_parts: int, lengths: list[int]) -> None:
    assert [len(part) for part in split_range(n_items, n_parts)] == lengths


@given(counts, sizes)
def test_a_split_is_contiguous_balanced_and_longer_chunks_come_first(n_items: int, n_parts: int) -> None:
    parts = split_range(n_items, n_parts)
    assert together(parts) == list(range(n_items))
    assert len(parts) == min(n_items, n_parts)
    lengths = [len(part) for part in parts]
    assert lengths == sorted(lengths, reverse=True)
    assert not lengths or lengths[0] - lengths[-1] <= 1 <= lengths[-1]


def test_a_split_of_very_many_items_is_exact() -> None:
    parts = split_range(10**18 + 1, 3)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert parts[-1].stop == 10**18 + 1


@given(counts, sizes)
def test_batches_are_full_but_the_last(n_items: int, size: int) -> None:
    parts = batches(n_items, size)
    assert together(parts) == list(range(n_items))
    assert all(len(part) == size for part in parts[:-1])
    assert all(1 <= len(part) <= size for part in parts)


@given(st.lists(st.integers(0, 2), max_size=30))
def test_neighbours_are_the_maximal_runs(labels: list[int]) -> None:
    runs = neighbours(labels)
    assert together(runs) == list(range(len(labels)))
    values = [{labels[i] for i in run} for run in runs]
    assert all(len(value) == 1 for value in values)
    assert all(left != right for left, right in pairwise(values))


@given(st.integers(1, 200))
def test_folding_in_rounds_is_the_fold_from_the_left(n: int) -> None:
    letters = [chr(200 + i) for i in range(n)]
    expected = reduce(lambda a, b: a + b, letters)
    rounds = list(fold_rounds(n))
    for pairs in rounds:
        touched = [position for pair in pairs for position in pair]
        assert len(set(touched)) == len(touched)
        for left, right in pairs:
            letters[left] += letters[right]
            letters[right] = "!"
    assert letters[0] == expected
    assert len(rounds) == (n - 1).bit_length()


def test_nothing_to_fold() -> None:
    assert list(fold_rounds(0)) == []
    assert list(fold_rounds(1)) == []


@given(st.integers(1, 200), st.integers(1, 10))
def test_a_tree_reaches_everybody_once(n: int, fan_out: int) -> None:
    reached = [child for position in range(n) for child in tree_children(position, n, fan_out)]
    assert sorted(reached) == list(range(1, n))
    assert all(len(tree_children(position, n, fan_out)) <= fan_out for position in range(n))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: split_range(-1, 2), "-1 items"),
        (lambda: split_range(3, 0), "0 parts"),
        (lambda: batches(-1, 2), "-1 items"),
        (lambda: batches(3, 0), "0 items"),
        (lambda: list(fold_rounds(-1)), "-1 results"),
        (lambda: tree_children(3, 3), "position 3"),
        (lambda: tree_children(-1, 3), "position -1"),
        (lambda: tree_children(0, 3, 0), "0 branches"),
    ],
)
def test_impossible_numbers_are_named(call: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()  # type: ignore[operator]


def test_whole_numbers_only() -> None:
    with pytest.raises(TypeError):
        split_range(2.5, 2)  # type: ignore[arg-type]


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(partition).failed == 0


# ---- shrinking ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(1, 300))
def test_shrinking_chunks_cover_all_in_order_and_never_grow(n: int, workers: int) -> None:
    chunks = shrinking(n, workers)
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks)][: len(chunks)]
    assert (chunks[-1].stop if chunks else 0) == n
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes
    least = max(1, n // (64 * workers))
    assert all(size >= least for size in sizes[:-1])
    assert all(size <= -(-n // (2 * workers)) or size == least for size in sizes)
    assert len(chunks) <= 20 * workers


@pytest.mark.parametrize(("n", "workers"), [(-1, 2), (5, 0), (5, -1)])
def test_shrinking_refuses_what_makes_no_sense(n: int, workers: int) -> None:
    with pytest.raises(ValueError, match="cannot"):
        shrinking(n, workers)
