"""Arrays by value through real connections: equal on arrival, aligned, writable, and the receiver's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybriddist as hd
from hybriddist import limits

pytestmark = pytest.mark.leaks_by_module

LARGE = 40_000
"""Items of one byte and more: above the size from which buffers travel beside the pickle."""

DTYPES = ["?", "i1", "<u2", ">i4", "f2", "f4", ">f8", "c8", "c16", "M8[ns]", "m8[D]", "S5", "U3", "V7", "i4,(2,)f8,S3"]


class Tagged(np.ndarray[Any, Any]):
    """A subclass."""


@pytest.fixture(scope="module", params=["shm", "tcp"])
def worker(request: pytest.FixtureRequest) -> Iterator[int]:
    try:
        yield hd.addprocs(1, transport=request.param)[0]
    finally:
        hd.shutdown()


def state(array: Any) -> tuple[bool, bool, int]:
    """Whether it can be written, whether its memory starts on a cache line, and its bytes."""
    return bool(array.flags.writeable), array.ctypes.data % 64 == 0, array.nbytes


def state_and_itself(array: Any) -> tuple[Any, Any]:
    return state(array), array


def same(one: Any, other: Any) -> bool:
    """Equal in kind, dtype, shape and every byte, whatever lies between the items."""
    # What stays inside the pickle is numpy's own: it turns foreign byte order into native when it is unpickled.
    dtype = other.dtype if other.nbytes >= limits.OUT_OF_BAND_BYTES else one.dtype
    return (
        type(one) is type(other)
        and one.dtype == dtype
        and dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        and one.shape == other.shape
        and np.asarray(one).tobytes() == np.asarray(other.astype(dtype)).tobytes()
    )


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Of any dtype, shape, order and stride, on both sides of the size from which buffers travel apart."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.sampled_from([(), (0,), (3, 0, 2), (1,), (7, 5), (LARGE,), (200, 201), (20, 30, 71)]))
    count = int(np.prod(shape))
    raw = np.random.default_rng(count).integers(0, 2, count * dtype.itemsize, np.uint8)
    array = np.frombuffer(raw.tobytes(), dtype, count).reshape(shape).copy(draw(st.sampled_from("CF")))
    if array.ndim and draw(st.booleans()):
        array = array[::-1] if draw(st.booleans()) else array[::2]
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=arrays())
def test_equal_there_and_back(worker: int, array: Any) -> None:
    there, back = hd.remotecall_fetch(state_and_itself, worker, array)
    assert same(back, array)
    assert there[0], "read-only on the worker"
    assert back.flags.writeable
    if array.nbytes >= LARGE:
        assert there[1], "not aligned to 64 bytes on the worker"
        assert back.ctypes.data % 64 == 0


@pytest.mark.parametrize("size", [10, LARGE])
def test_subclasses_keep_their_class(worker: int, size: int, tmp_path: Path) -> None:
    record = np.rec.array(np.zeros(size, "i4,f8"))
    masked = np.ma.masked_equal(np.arange(size) % 3, 1)
    mapped = np.memmap(tmp_path / "file", np.float64, "w+", shape=size)
    mapped[:] = np.arange(size)
    _, back = hd.remotecall_fetch(state_and_itself, worker, record)
    assert same(back, record)
    _, back = hd.remotecall_fetch(state_and_itself, worker, masked)
    assert type(back) is np.ma.MaskedArray
    assert (back.mask == masked.mask).all()
    assert (back.data == masked.data).all()
    _, back = hd.remotecall_fetch(state_and_itself, worker, mapped)
    assert isinstance(back, np.ndarray)
    if size == LARGE:
        assert type(back) is np.ndarray, "the receiver has not mapped the file"
    assert (back == mapped).all()


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_users_subclass(worker: int, size: int, readonly: bool) -> None:
    array = np.arange(float(size)).view(Tagged)
    array.flags.writeable = not readonly
    (writable, aligned, _), back = hd.remotecall_fetch(state_and_itself, worker, array)
    assert same(back, array)
    assert writable
    assert back.flags.writeable
    assert size < LARGE or (aligned and back.ctypes.data % 64 == 0)


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes(worker: int, size: int, kind: Any) -> None:
    data = kind(range(10)) * (size // 10)
    back = hd.remotecall_fetch(lambda thing: thing, worker, data)
    assert type(back) is kind
    assert back == data


@pytest.mark.parametrize("data", [bytes(LARGE), bytearray(LARGE), np.arange(LARGE), np.arange(LARGE)[::2]])
def test_a_memoryview_arrives_as_bytes(worker: int, data: Any) -> None:
    view = memoryview(data)
    back = hd.remotecall_fetch(lambda thing: thing, worker, view)
    assert type(back) is bytes
    assert back == view.tobytes()


def test_nested_in_containers_closures_and_channels(worker: int) -> None:
    array = np.arange(LARGE, dtype=np.float64)
    nested = {"list": [array, (array * 2, {"deep": array[::2]})]}
    back = hd.remotecall_fetch(lambda: nested, worker)
    assert same(back["list"][0], array)
    assert same(back["list"][1][1]["deep"], array[::2].copy())
    channel: Any = hd.RemoteChannel(lambda: hd.Channel(2), worker)
    channel.put(nested)
    assert same(channel.take()["list"][1][0], array * 2)


def test_arrays_of_objects(worker: int) -> None:
    array = np.array([1, "two", None, {"three": 3}] * 5000, dtype=object)
    _, back = hd.remotecall_fetch(state_and_itself, worker, array)
    assert back.dtype == object
    assert back.tolist() == array.tolist()


def test_data_frames(worker: int) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(LARGE), "b": np.linspace(0, 1, LARGE), "c": ["x", "yy"] * (LARGE // 2)})
    pandas.testing.assert_frame_equal(hd.remotecall_fetch(lambda thing: thing, worker, frame), frame)


def test_arrow_tables(worker: int) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": np.arange(LARGE), "b": ["x", None] * (LARGE // 2)})
    assert hd.remotecall_fetch(lambda thing: thing, worker, table).equals(table)
