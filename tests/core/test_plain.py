"""Arrays of plain numbers and large bytes go without a pickler; what arrives is the same, the rest goes as ever."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hybriddist import limits
from hybriddist.core import payload, plain
from hybriddist.errors import DeserializeError

LARGE = limits.OUT_OF_BAND_BYTES


def there_and_back(value: Any) -> Any:
    body, buffers = payload.dumps(value)
    return payload.loads(body, [bytearray(buffer) for buffer in buffers])


def goes_plainly(value: Any) -> bool:
    return payload.dumps(value)[0][0] < 4


def check_same(arrived: Any, sent: Any) -> None:
    assert type(arrived) is type(sent)
    if isinstance(sent, np.ndarray):
        assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape)
        assert arrived.flags.c_contiguous
        assert arrived.flags.writeable
        np.testing.assert_array_equal(arrived, sent)
    elif isinstance(sent, tuple | list):
        assert len(arrived) == len(sent)
        for one, other in zip(arrived, sent, strict=True):
            check_same(one, other)
    elif isinstance(sent, dict):
        check_same(list(arrived.items()), list(sent.items()))
    else:
        assert arrived == sent


PLAIN = [np.dtype(code) for code in "?bBhHiIlLqQefdFD"]
SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text(max_size=5) | st.binary(max_size=5)
)  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Zero, few or many bytes, of any shape."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    dtype = draw(st.sampled_from(PLAIN))
    if draw(st.booleans()):
        shape = (LARGE // dtype.itemsize + draw(st.integers(-1, 1)), *shape[:1])
    array = np.zeros(shape, dtype)
    array.reshape(-1)[:7] = np.arange(min(7, array.size)).astype(dtype)
    return array


@given(st.data())
def test_what_arrives_is_what_was_sent(data: st.DataObject) -> None:
    parts = tuple(data.draw(st.lists(arrays() | SCALARS, min_size=1, max_size=4)))
    for value in (parts, (parts, {}), parts[0]):
        check_same(there_and_back(value), value)
    assert goes_plainly((parts, {})) == any(isinstance(part, np.ndarray) for part in parts)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_plain_dtype_goes_plainly(dtype: np.dtype[Any]) -> None:
    for size in (3, LARGE):
        assert goes_plainly(np.ones(size, dtype))


def array_in(value: Any) -> Any:
    """The array in nested tuples, which have one."""
    if isinstance(value, tuple):
        return next((found for found in map(array_in, value) if found is not None), None)
    return value if isinstance(value, np.ndarray) else None


class Mine(np.ndarray):
    """A subclass keeps its class."""


def read_only() -> np.ndarray[Any, Any]:
    array = np.ones(LARGE)
    array.flags.writeable = False
    return array


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of numpy: a matrix is not recommended
    MATRIX = np.matrix([[1.0, 2.0]])

NOT_PLAIN = {
    "a subclass": np.ones(LARGE).view(Mine),
    "a matrix": MATRIX,
    "Fortran order": np.asfortranarray(np.ones((200, 100))),
    "strided": np.ones((200, 200))[::2],
    "read-only": read_only(),
    "the other byte order": np.ones(LARGE, np.dtype("f8").newbyteorder()),
    "dates": np.zeros(LARGE, "datetime64[s]"),
    "structured": np.zeros(LARGE, "i4,f4"),
    "metadata": np.zeros(LARGE, np.dtype("f8", metadata={"unit": "m"})),
    "text": np.array(["one", "three"]),
    "objects": np.array([None, "x"], object),
    "long double": np.ones(LARGE, np.longdouble),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain_goes_as_ever(name: str) -> None:
    array = NOT_PLAIN[name]
    for value in (array, (array,), ((array, 1), {})):
        assert not goes_plainly(value)
        arrived = array_in(there_and_back(value))
        assert type(arrived) is type(array)
        assert arrived.dtype == array.dtype
        assert (arrived.dtype.metadata or {}) in ({}, array.dtype.metadata)
        np.testing.assert_array_equal(arrived, array)


def test_one_array_twice_stays_one() -> None:
    array = np.ones(LARGE)
    assert not goes_plainly(((array, array), {}))
    first, second = there_and_back(((array, array), {}))[0]
    assert first is second


@pytest.mark.parametrize("other", [[1], (1,), {"a": 1}, {1}, range(3), np.float64(1.0), print], ids=str)
def test_company_of_other_kinds(other: Any) -> None:
    """It may refer to the array, or have a pickle of its own."""
    array = np.ones(LARGE)
    for value in ((array, other), (other, array), ((array, other), {}), ((array,), {"key": other})):
        assert not goes_plainly(value)
        check_same(array_in(there_and_back(value)), array)


def test_a_subclass_of_a_number_keeps_its_class() -> None:
    class Metres(float):
        """Known by value."""

    arrived = there_and_back(((np.ones(3), Metres(2.0)), {}))
    assert type(arrived[0][1]).__name__ == "Metres"


def test_large_ones_are_not_copied() -> None:
    array = np.zeros(LARGE, np.uint8)
    body, (buffer,) = payload.dumps(array)
    array[0] = 7
    assert buffer[0] == 7
    memory = bytearray(buffer)
    arrived = payload.loads(body, [memory])
    arrived[1] = 8
    assert memory[1] == 8


def test_a_buffer_that_is_too_short() -> None:
    body, _ = payload.dumps(np.ones(LARGE))
    with pytest.raises(DeserializeError, match="buffer is too small"):
        payload.loads(body, [bytearray(LARGE)])
    with pytest.raises(DeserializeError):
        payload.loads(body, [])


def test_more_than_somebody_should_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the pickler's way asks how much memory there is."""
    monkeypatch.setattr(plain, "MOST_BYTES", 3 * LARGE)
    one, two = np.ones(LARGE, np.uint8), np.ones(2 * LARGE, np.uint8)
    assert goes_plainly((one, two))
    assert not goes_plainly((one, two, one.copy()))


def test_more_buffers_than_a_frame_may_have() -> None:
    many = tuple(np.full(LARGE, number % 256, np.uint8) for number in range(limits.MAX_BUFFERS + 1))
    assert not goes_plainly(many)
    body, buffers = payload.dumps(many)
    assert len(buffers) == limits.MAX_BUFFERS
    check_same(payload.loads(body, buffers), many)


# ---- bytes ----------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * (LARGE // 256)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 10, LARGE - 1, LARGE])
def test_large_bytes_go_beside_the_body(kind: Any, size: int) -> None:
    thing = kind(DATA[:size])
    for value in (thing, (thing, 1), ((thing,), {}), ((1, np.zeros(9000), thing), {})):
        assert str(there_and_back(value)) == str(value)
        body, buffers = payload.dumps(value)
        assert goes_plainly(value) == (size == LARGE or (kind is bytes and "array" in str(value)))
        assert sum(map(len, buffers)) >= (size if size == LARGE else 0)
        assert (len(body) < 1000) == (size < 500 or size == LARGE)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(DATA),
        memoryview(bytearray(DATA)),
        memoryview(np.arange(9e4).reshape(300, 300)),
        memoryview(np.ones(9000, np.complex128)),
        memoryview(np.asfortranarray(np.arange(9e4).reshape(300, 300))),
        memoryview(2 * DATA)[::2],
    ],
    ids=["read-only", "writable", "of numbers", "of complex numbers", "Fortran", "strided"],
)
def test_memoryviews_arrive_as_bytes(view: memoryview) -> None:
    for value in (view, (view,), ((view,), {})):
        assert goes_plainly(value)
        arrived = there_and_back(value)
        while type(arrived) is tuple:
            arrived = arrived[0]
        assert type(arrived) is bytes
        assert arrived == view.tobytes()


def test_inside_of_something_they_are_part_of_the_pickle() -> None:
    for value in ([DATA], ((1,), {"x": DATA}), ((1,), {"x": [DATA]}), (DATA, lambda: 1)):
        body, buffers = payload.dumps(value)
        assert not buffers
        assert DATA in body


def test_the_same_bytes_twice_arrive_as_one() -> None:
    first, second = there_and_back((DATA, DATA))
    assert first is second
    assert first == DATA
