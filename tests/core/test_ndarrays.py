"""Arrays of every kind: equal on arrival, beside the body where they are large, and the receiver's own."""

from __future__ import annotations

import copyreg
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core import payload

LARGE = limits.OUT_OF_BAND_BYTES


def travel(value: Any) -> Any:
    """As over a connection: the receiver's buffers are writable memory of its own."""
    body, buffers = payload.dumps(value)
    return payload.loads(body, [bytearray(buffer) for buffer in buffers])


def test_buffers_travel_beside_the_body_from_the_limit_up() -> None:
    below, at = np.ones(LARGE - 1, np.uint8), np.ones(LARGE, np.uint8)
    assert payload.dumps(below)[1] == []
    body, buffers = payload.dumps((below, at))
    assert [buffer.nbytes for buffer in buffers] == [LARGE]
    assert LARGE < len(body) < LARGE + 1000


def test_buffers_are_contiguous_bytes_over_the_arrays_own_memory() -> None:
    array = np.zeros((100, 100), np.float64, order="F")
    _, [buffer] = payload.dumps(array)
    assert (buffer.format, buffer.ndim, buffer.contiguous, buffer.nbytes) == ("B", 1, True, array.nbytes)
    array[0, 0] = 1.0
    assert bytes(buffer[:8]) == np.float64(1.0).tobytes()


def test_a_frame_has_no_more_buffers_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BUFFERS", 3)
    for make in (lambda n: np.full(LARGE, n, np.uint8), lambda n: np.full(2 * LARGE, n, np.uint8)[::2]):
        arrays = [make(n) for n in range(5)]
        body, buffers = payload.dumps(arrays)
        assert len(buffers) == 3
        got = payload.loads(body, [bytearray(buffer) for buffer in buffers])
        assert all((a == b).all() and b.flags.writeable for a, b in zip(arrays, got, strict=True))


dtypes = st.sampled_from(
    ["u1", "<f8", ">f8", ">i2", "c16", "?", "M8[s]", "m8[ms]", "S5", "<U3", "f2", [("a", "<i4"), ("when", "M8[D]")]]
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Of all dtypes, sizes on both sides of the limit, C, Fortran and strided, of dimension 0 to 3."""
    dtype = np.dtype(draw(dtypes))
    shape = draw(st.sampled_from([(), (0,), (7,), (3, 0, 2), (40, 50), (20_000,), (3, 90, 80), (1, 1)]))
    array = np.arange(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint64).astype(np.uint8) % 2
    array = array.view(dtype).reshape(shape) if array.size else np.zeros(shape, dtype)
    how = draw(st.sampled_from(["C", "F", "strided", "reversed", "transposed"]))
    if how == "F":
        array = np.asfortranarray(array)
    elif how == "strided" and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif how == "reversed" and array.ndim:
        array = array[::-1]
    elif how == "transposed":
        array = array.T
    if draw(st.booleans()):
        array = array.view()
        array.flags.writeable = False
    return array


PLACES: Any = {
    "in a list": (lambda array: [array], lambda value: value[0]),
    "the value itself": (lambda array: array, lambda value: value),
    "an argument": (lambda array: ((1, array), {}), lambda value: value[0][1]),
}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=100)
@given(array=arrays())
def test_arrays_travel_and_are_the_receivers_own(place: str, array: Any) -> None:
    put, take = PLACES[place]
    body, buffers = payload.dumps(put(array))
    got = take(payload.loads(body, [bytearray(buffer) for buffer in buffers]))
    if got.dtype != array.dtype:
        # numpy itself turns what it pickles as bytes into the machine's byte order.
        assert got.dtype == array.dtype.newbyteorder("=")
        assert array.nbytes < LARGE
        got = got.astype(array.dtype)
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert got.flags.writeable or not got.size
    assert len(buffers) == (array.nbytes >= LARGE)
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        assert got.flags.f_contiguous


def test_large_arguments_of_plain_numbers_take_the_short_way() -> None:
    array = np.arange(LARGE, dtype=np.float64)
    short, [buffer] = payload.dumps(((array,), {}))
    long, _ = payload.dumps((([array],), {}))
    assert b"_frombuffer" in long
    assert b"_frombuffer" not in short
    assert np.shares_memory(np.frombuffer(buffer), array)


def test_what_a_dtypes_name_does_not_say_arrives() -> None:
    array = np.zeros(LARGE, np.dtype("f8", metadata={"unit": "m"}))
    assert travel(((array,), {}))[0][0].dtype.metadata == {"unit": "m"}


def test_an_array_that_is_two_arguments_stays_one() -> None:
    array = np.zeros(LARGE)
    body, buffers = payload.dumps(((array, array), {"k": array}))
    (first, second), named = payload.loads(body, [bytearray(buffer) for buffer in buffers])
    assert len(buffers) == 1
    assert first is second is named["k"]


def test_reductions_that_the_user_registered_are_kept_beside_large_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, type(Path()), lambda path: (str, ("reduced",)))
    assert travel(((np.zeros(LARGE), Path("x")), {}))[0][1] == "reduced"


def test_a_reduction_of_arrays_that_the_user_registered_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (str, ("reduced",)))
    assert travel(((np.zeros(LARGE),), {})) == (("reduced",), {})


def test_read_only_arrays_are_not_copied_here() -> None:
    array = np.arange(LARGE, dtype=np.uint8)
    array.flags.writeable = False
    _, [buffer] = payload.dumps({"a": array})
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), array)


@pytest.mark.parametrize("mask", [np.ma.nomask, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("hard", [False, True])
def test_masked_arrays(mask: Any, hard: bool) -> None:
    array = np.ma.MaskedArray(np.arange(LARGE), mask=mask, fill_value=-5, hard_mask=hard)
    body, buffers = payload.dumps(array)
    assert len(body) < 2000
    got = payload.loads(body, [bytearray(buffer) for buffer in buffers])
    assert type(got) is np.ma.MaskedArray
    assert (got.data == array.data).all()
    assert np.array_equal(got.mask, array.mask)
    assert (got.fill_value, got.hardmask) == (-5, hard)
    got[1] = 7
    assert got.data[1] == (1 if hard and mask else 7)


def test_record_arrays() -> None:
    array = np.rec.fromarrays([np.arange(5000), np.arange(5000.0)], names="n,x")
    body, buffers = payload.dumps(array)
    assert len(body) < 2000
    got = payload.loads(body, [bytearray(buffer) for buffer in buffers])
    assert type(got) is np.recarray
    assert (got.x == array.x).all()
    assert got[3].n == 3


def test_mapped_files_arrive_as_memory(tmp_path: Path) -> None:
    array: Any = np.memmap(tmp_path / "data", np.float64, "w+", shape=(5000,))
    array[:] = 1.5
    got = travel(array)
    assert type(got) is np.ndarray
    assert got.sum() == 7500
    array._mmap.close()


def test_arrays_of_objects_go_by_pickle() -> None:
    array = np.array([{"a": 1}, None, "b"] * 3000, object)
    assert (travel(array) == array).all()


def test_arrays_are_found_wherever_they_sit() -> None:
    strided = np.arange(2 * LARGE)[::2]

    def closed_over() -> Any:
        return strided

    body, buffers = payload.dumps(closed_over)
    assert [buffer.nbytes for buffer in buffers] == [strided.nbytes]
    assert (payload.loads(body, [bytearray(b) for b in buffers])() == strided).all()


def test_one_array_twice_arrives_as_one() -> None:
    for array in (np.zeros(LARGE), np.zeros(2 * LARGE)[::2]):
        first, second = travel((array, array))
        assert first is second


def test_bytes_beside_arrays_do_not_confuse_the_order() -> None:
    readonly = np.full(LARGE, 1, np.uint8)
    readonly.flags.writeable = False
    plain, strided = np.full(LARGE, 2, np.uint8), np.full(2 * LARGE, 3, np.uint8)[::2]
    got = travel([readonly, plain, strided, readonly[:3], plain[:3], bytearray(5)])
    assert [int(a[0]) for a in got] == [1, 2, 3, 1, 2, 0]


class Labelled(np.ndarray[Any, Any]):
    """A subclass that leaves its pickling to numpy."""


class Reduced(np.ndarray[Any, Any]):
    """One that does not."""

    def __reduce__(self) -> Any:
        return np.asarray, (np.zeros(3),)


@pytest.mark.parametrize("kind", [Labelled, np.matrix])
@pytest.mark.parametrize("place", ["bare", "argument", "nested", "beside another"])
@pytest.mark.parametrize("shape_it", [lambda a: a, lambda a: a.T, lambda a: a[:, ::2]], ids=["C", "F", "strided"])
def test_subclasses_travel_beside_the_body(kind: Any, place: str, shape_it: Any) -> None:
    array = shape_it(np.arange(40_000.0).reshape(4, -1).view(kind))
    value, find = {
        "bare": (array, lambda v: v),
        "argument": (((array,), {}), lambda v: v[0][0]),
        "nested": ([{"a": array}], lambda v: v[0]["a"]),
        "beside another": (((np.zeros(9000), array), {}), lambda v: v[0][1]),
    }[place]
    body, buffers = payload.dumps(value)
    assert len(body) < 1000
    back = find(payload.loads(body, [bytearray(buffer) for buffer in buffers]))
    assert type(back) is kind
    assert back.shape == array.shape
    assert back.flags.writeable
    assert np.array_equal(back, array)


def test_a_subclass_with_its_own_pickling_keeps_it() -> None:
    body, buffers = payload.dumps(np.arange(9000.0).view(Reduced))
    assert payload.loads(body, buffers).tolist() == [0, 0, 0]
