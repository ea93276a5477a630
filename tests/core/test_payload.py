"""Objects to bytes and back: what arrives equals what was sent, or the error says what and where."""

from __future__ import annotations

import math
import mmap
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.core.lease import physical_bytes
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
    assert payload.dumps(np.zeros(limits.OUT_OF_BAND_BYTES))[1]


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
    body, buffers = payload.dumps([np.zeros(limits.OUT_OF_BAND_BYTES), np.zeros(limits.OUT_OF_BAND_BYTES)])
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


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "small"),
    [
        (5, True),
        (None, True),
        ("a" * 60_000, True),
        ("a" * 70_000, False),
        (b"a" * 70_000, False),
        (np.zeros(8_000), True),
        (np.zeros(9_000), False),
        (np.zeros((100, 300))[:, ::2], False),
        ([np.zeros(1_000) for _ in range(5)], True),
        ([np.zeros(1_000) for _ in range(9)], False),
        (list(range(10_000)), True),
        (list(range(40_000)), False),
        (lambda: 0, True),
        (threading.Lock(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_small(value: Any, small: bool) -> None:
    assert payload.is_small(value, 1 << 16) is small


def test_what_is_large_is_not_pickled_to_its_end() -> None:
    seen = []

    class Counted:
        def __reduce__(self) -> Any:
            seen.append(None)
            return str, (f"{len(seen)}" * 300,)

    assert not payload.is_small([Counted() for _ in range(10_000)], 1 << 16)
    assert len(seen) < 500


def test_arrays_larger_than_the_machines_memory(tmp_path: Path) -> None:
    """A sparse file, of which nothing is read."""
    size = 2 * physical_bytes()
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(size)
    with open(path, "r+b") as file:
        sparse = np.frombuffer(mmap.mmap(file.fileno(), 0), "u1")
    for value in (sparse, [sparse], {"x": sparse[10:]}):
        with pytest.raises(SerializeError, match=r"arrays of [0-9.]+ GiB cannot be sent: this machine has"):
            payload.dumps(value)
    half = sparse[: size // 4]
    assert payload.dumps(half)[1][0].nbytes == size // 4
    with pytest.raises(SerializeError, match=r"arrays of [0-9.]+ GiB cannot be sent"):
        payload.dumps([half, sparse[1 : size // 4], sparse[2 : size // 4]])


def test_an_array_that_repeats_one_number_more_often_than_there_is_memory_for() -> None:
    with open("/proc/sys/vm/overcommit_memory") as file:
        if file.read().strip() == "1":
            pytest.skip("this system promises any memory")
    virtual = np.broadcast_to(np.float64(1), (1 << 37,))
    with pytest.raises(SerializeError, match=r"argument 1 .*Unable to allocate 1\.00 TiB.*send it in pieces"):
        payload.dumps((len, (virtual,), {}), payload.CALL_LABELS)
