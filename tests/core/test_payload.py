"""Objects to bytes and back: what arrives equals what was sent, or the error says what and where."""

from __future__ import annotations

import math
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.errors import DeserializeError, SerializeError


def travel(value: Any) -> Any:
    """As over a connection: the receiver's buffers are writable memory of its own."""
    body, buffers = payload.dumps(value)
    return payload.loads(body, [bytearray(buffer) for buffer in buffers])


# ---- values -----------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=100)
@given(values)
def test_plain_values_travel(value: Any) -> None:
    assert travel(value) == value


@pytest.mark.parametrize("text", ["__main__", "__mp_main__", "if __name__ == '__main__': pass"])
def test_text_that_looks_like_a_reference_to_the_script_is_only_text(text: str) -> None:
    assert travel([text]) == [text]


def test_a_body_may_be_a_memoryview() -> None:
    assert payload.loads(memoryview(b"junk" + payload.dumps((1, "a"))[0])[4:]) == (1, "a")


@pytest.mark.parametrize("thing", [math, math.sin, len, int, threading.Lock, str.upper, [].append.__class__])
def test_what_has_a_name_arrives_as_itself(thing: Any) -> None:
    assert travel(thing) is thing


def test_lambdas_and_local_functions_go_by_value() -> None:
    factor = 3

    def multiply(n: int, *, plus: int = 1) -> int:
        return factor * n + plus

    assert travel(multiply)(2) == 7
    assert travel(lambda n: multiply(n) + len("ab"))(1) == 6


# ---- buffers ----------------------------------------------------------------------------------------------------

LARGE = limits.OUT_OF_BAND_BYTES


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


@settings(max_examples=150)
@given(arrays())
def test_arrays_travel_and_are_the_receivers_own(array: Any) -> None:
    body, buffers = payload.dumps([array])
    [got] = payload.loads(body, [bytearray(buffer) for buffer in buffers])
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


def test_mapped_files_arrive_as_memory(tmp_path: Any) -> None:
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


# ---- what cannot be pickled -------------------------------------------------------------------------------------


class Pool:
    def __init__(self, content: Any) -> None:
        self.content = content


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class Reduces:
    def __init__(self, *arguments: Any) -> None:
        self._get = lambda: arguments

    def __reduce__(self) -> Any:
        return Reduces, self._get()


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (LOCK, "a value of type _thread.lock"),
        ([1, {"a": (LOCK,)}], "value[1]['a'][0] (a _thread.lock)"),
        (Pool({"x": [LOCK]}), "value.content['x'][0] (a _thread.lock)"),
        (Slotted(LOCK), "value.held (a _thread.lock)"),
        ({LOCK: 1}, "value (key) (a _thread.lock)"),
        ((x for x in ()), "a value of type generator"),
        (Reduces([LOCK]), "value (in its state)[0][0] (a _thread.lock)"),
    ],
)
def test_the_error_names_the_type_and_the_place(value: Any, place: str) -> None:
    with pytest.raises(SerializeError) as caught:
        payload.dumps(value)
    assert f"cannot pickle {place}: TypeError: cannot pickle" in str(caught.value)
    assert "__getstate__" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_the_error_speaks_of_the_call() -> None:
    lock = threading.Lock()

    def function() -> Any:
        return lock

    def failure(value: Any, labels: tuple[str, ...]) -> str:
        with pytest.raises(SerializeError) as caught:
            payload.dumps(value, labels)
        return str(caught.value)

    labels = payload.CALL_LABELS
    assert "pickle argument 2['a'] (a _thread.lock)" in failure((len, (1, {"a": lock}), {}), labels)
    assert "pickle argument 1.content (a _thread.lock)" in failure((len, (Pool(lock),), {}), labels)
    assert "pickle keyword argument 'k'[0] (a _thread.lock)" in failure((len, (), {"k": [lock]}), labels)
    assert "pickle the function (closure variable 'lock') (a _thread.lock)" in failure((function, (), {}), labels)
    assert "pickle argument 1 (a _thread.lock)" in failure(((lock,), {}), payload.ARGUMENTS_LABELS)


def test_too_deep_is_an_error_like_any_other() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializeError, match="nested too deeply"):
        payload.dumps(deep)
    assert travel(1) == 1


class Hostile:
    """Its pickling raises what it is told to, with a text that raises too."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("error", [ValueError, SystemExit, Unspeakable, MemoryError, GeneratorExit])
def test_whatever_pickling_raises_is_a_serialize_error(error: type[BaseException]) -> None:
    with pytest.raises(SerializeError, match="Hostile") as caught:
        payload.dumps([1, Hostile(error)])
    assert type(caught.value.__cause__) is error


def test_an_interrupt_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        payload.dumps(Hostile(KeyboardInterrupt))


def test_the_search_for_the_culprit_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybriddist.core import culprit

    monkeypatch.setattr(culprit, "_MOST_OBJECTS", 100)
    with pytest.raises(SerializeError, match="a value of type list, or something in it: TypeError"):
        payload.dumps([*range(1000), LOCK])


def test_more_than_a_frame_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HEAD_BYTES", 10_000)
    with pytest.raises(SerializeError, match="limit is 10000"):
        payload.dumps(b"x" * 10_000)
    with pytest.raises(SerializeError, match="limit is 10000"):
        payload.dumps((lambda: 1, b"x" * 10_000))
    assert payload.dumps(np.zeros(LARGE))[1]


# ---- what cannot be unpickled -----------------------------------------------------------------------------------


class Returns:
    """Unpickles by a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def raise_it(error: type[BaseException]) -> None:
    raise error("while unpickling")


@pytest.mark.parametrize("error", [ValueError, SystemExit, RecursionError, GeneratorExit, Unspeakable])
def test_whatever_unpickling_raises_is_a_deserialize_error(error: type[BaseException]) -> None:
    body, _ = payload.dumps(Returns(raise_it, error))
    with pytest.raises(DeserializeError) as caught:
        payload.loads(body)
    assert type(caught.value.__cause__) is error
    assert error.__name__ in str(caught.value)


def test_an_interrupt_while_unpickling_stays_one() -> None:
    body, _ = payload.dumps(Returns(raise_it, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        payload.loads(body)


def test_a_missing_module_is_named_with_advice() -> None:
    with pytest.raises(DeserializeError, match=r"No module named 'no_such_thing'.*Install the module") as caught:
        payload.loads(b"\x80\x05cno_such_thing\nvalue\n.")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_name_is_named_with_advice() -> None:
    with pytest.raises(DeserializeError, match=r"'no_such_name'.*define it there first") as caught:
        payload.loads(b"\x80\x05c__main__\nno_such_name\n.")
    assert isinstance(caught.value.__cause__, AttributeError)


@given(st.binary(max_size=40))
def test_cut_and_spoilt_pickles_are_deserialize_errors(noise: bytes) -> None:
    body, _ = payload.dumps({"a": [1, 2.0, "three"], "b": (None, b"four")})
    for cut in range(len(body)):
        with pytest.raises(DeserializeError):
            payload.loads(body[:cut])
    with pytest.raises(DeserializeError):
        payload.loads(b"\x00" + noise)


def test_missing_buffers_are_a_deserialize_error() -> None:
    body, buffers = payload.dumps([np.zeros(LARGE), np.zeros(LARGE)])
    with pytest.raises(DeserializeError):
        payload.loads(body, buffers[:1])


def test_numpy_is_not_loaded_for_plain_values(run_python: Any) -> None:
    done = run_python(
        """
        import sys
        from hybriddist.core import payload
        assert payload.loads(*payload.dumps([(1, "a"), {"b": b"c" * 20_000}]))[0] == (1, "a")
        assert not {"numpy", "cloudpickle"} & set(sys.modules)
        assert payload.loads(*payload.dumps(lambda: 5))() == 5
        assert "numpy" not in sys.modules
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_format_is_protocol_5() -> None:
    assert payload.dumps(1)[0] == pickle.dumps(1, 5)
    assert payload.dumps(sys)[0][:2] == b"\x80\x05"
