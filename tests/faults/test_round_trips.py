"""Whatever the array, it is the same after a round trip: values, dtype, shape, and it can be written to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import hybriddist as hd

pytestmark = pytest.mark.leaks_by_module

LARGE = 40_000
"""Elements: beyond what travels inside the message, whatever the dtype."""


@pytest.fixture(scope="module", params=["shm", "tcp"])
def worker(request: pytest.FixtureRequest) -> Iterator[int]:
    try:
        (pid,) = hd.addprocs(1, transport=request.param)
        yield pid
    finally:
        hd.shutdown()


class Lengths(np.ndarray):  # type: ignore[type-arg]
    """Somebody's own kind of array."""


def echo(*things: Any) -> Any:
    return things


def describe(array: Any) -> Any:
    """What the other process sees, told without an array."""
    return array.dtype, array.shape, array.tobytes(), array.flags.writeable


scalars = st.one_of(
    npst.boolean_dtypes(),
    # Of this machine's byte order: numpy's own pickling makes others so, though not always.
    npst.integer_dtypes(endianness="="),
    npst.unsigned_integer_dtypes(endianness="="),
    npst.floating_dtypes(endianness="="),
    npst.complex_number_dtypes(endianness="="),
    npst.datetime64_dtypes(endianness="="),
    npst.timedelta64_dtypes(endianness="="),
    npst.byte_string_dtypes(max_len=5),
    npst.unicode_string_dtypes(endianness="=", max_len=5),
)
dtypes = st.one_of(
    scalars,
    npst.array_dtypes(scalars, max_size=3),
    npst.nested_dtypes(scalars, max_leaves=4, max_itemsize=64),
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of any dtype, small and large, then turned, cut, reversed, made read-only."""
    dtype = np.dtype(draw(dtypes))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array: Any
    if draw(st.booleans()):
        array = np.array(draw(npst.arrays(dtype, shape)))
    else:  # bytes of any kind; too many to be drawn one by one
        seed = draw(st.integers(0, 2**32 - 1))
        itemsize = max(1, dtype.itemsize)
        raw = np.random.default_rng(seed).bytes(LARGE // max(1, itemsize // 8) * itemsize)
        array = _of_bytes(dtype, raw)
        shape = draw(st.sampled_from([(-1,), (8, -1), (2, -1, 4)]))
        array = array[: array.size // 8 * 8].reshape(shape)
    if array.ndim:
        if draw(st.booleans()):
            array = np.asfortranarray(array)
        if draw(st.booleans()):
            array = array.T
        step = draw(st.sampled_from([1, 1, 2, -1]))
        array = array[::step]
        if draw(st.booleans()):
            array = array[..., 1:]
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


def _of_bytes(dtype: np.dtype[Any], raw: bytes) -> Any:
    if dtype.kind == "U":  # not every number is a letter
        codes = np.frombuffer(raw, np.uint32) % 0xD7FF
        return codes.astype(np.uint32).view(dtype) if dtype.itemsize else np.zeros(len(raw), dtype)
    if dtype.kind == "V" or not dtype.itemsize or dtype.hasobject:
        return np.zeros(LARGE, dtype)
    if dtype.kind == "b":
        return np.frombuffer(raw, np.uint8) % 2 == 0
    return np.frombuffer(raw, dtype)


def assert_same(found: Any, array: Any) -> None:
    assert type(found) is type(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()  # NaNs, negative zeros, and padding as well


@settings(max_examples=60)
@given(arrays())
def test_arrays(worker: int, array: Any) -> None:
    dtype, shape, content, writable = hd.remotecall_fetch(describe, worker, array)
    assert (dtype, shape, content) == (array.dtype, array.shape, array.tobytes())
    assert writable
    (found,) = hd.remotecall_fetch(echo, worker, array)
    assert_same(found, array)
    assert found.flags.writeable
    if found.size and not found.dtype.hasobject:
        found[...] = found  # the memory is ours


@settings(max_examples=20)
@given(st.lists(arrays(), max_size=5))
def test_several_at_once(worker: int, several: list[Any]) -> None:
    found = hd.remotecall_fetch(echo, worker, *several, *several)
    assert len(found) == 2 * len(several)
    for one, array in zip(found, [*several, *several], strict=True):
        assert_same(one, array)


@pytest.mark.parametrize("count", [0, 1, 50, LARGE])
@pytest.mark.parametrize("masked", [True, False])
def test_masked_arrays(worker: int, count: int, masked: bool) -> None:
    array: Any = np.ma.masked_array(np.arange(count, dtype=float), fill_value=-5.0)
    if masked:
        array.mask = np.arange(count) % 3 == 0
    (found,) = hd.remotecall_fetch(echo, worker, array)
    assert type(found) is np.ma.MaskedArray
    assert (np.ma.getmaskarray(found) == np.ma.getmaskarray(array)).all()
    assert found.fill_value == -5.0
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.array([{"a": 1}, None, "text", 2.5, [1, [2]]], dtype=object),
        np.array([[object, 1], [2, 3]], dtype=object).T,
        np.array([(1, "one"), (2, None)], dtype=[("number", "i4"), ("thing", object)]),
        np.full(LARGE, "text", dtype=object),
    ],
    ids=["mixed", "turned", "in a structure", "large"],
)
def test_arrays_of_objects(worker: int, array: Any) -> None:
    (found,) = hd.remotecall_fetch(echo, worker, array)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.rec.fromarrays([np.arange(LARGE), np.arange(LARGE) / 2], names="a,b"),
        np.arange(LARGE).view(Lengths),
        np.broadcast_to(np.arange(3.0), (LARGE, 3)),
        np.lib.stride_tricks.sliding_window_view(np.arange(LARGE), 3),
        np.arange(LARGE, dtype=">i4"),
        np.zeros((0, LARGE)),
        np.array(7.5),
        np.arange(LARGE * 8, dtype=np.uint8)[3:-5].view(">u4")[::7],
        np.float32(2.5),
        np.datetime64("NaT", "s"),
    ],
    ids=["records", "subclass", "broadcast", "windows", "big-endian", "empty", "0-d", "unaligned", "scalar", "NaT"],
)
def test_unusual_arrays(worker: int, array: Any) -> None:
    (found,) = hd.remotecall_fetch(echo, worker, array)
    assert_same(found, array)


@pytest.mark.parametrize("size", [0, 1, 100, 20_000, 1 << 18, (1 << 18) + 1, 5 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, pickle.PickleBuffer])
def test_bytes(worker: int, size: int, kind: Any) -> None:
    content = np.random.default_rng(size).bytes(size)
    (found,) = hd.remotecall_fetch(echo, worker, kind(content))
    assert bytes(found) == content
    assert type(found) is kind or kind in (memoryview, pickle.PickleBuffer)
