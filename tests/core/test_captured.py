"""Exceptions on their journey: something arrives whatever the exception is."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist.core import captured as captured_module
from hybriddist.core import payload
from hybriddist.core.captured import CapturedException, capture, dump, load
from hybriddist.errors import DeserializeError, ProcessExitedException, RemoteException


def raised(make: Callable[[], BaseException]) -> BaseException:
    """The exception after it was raised and caught."""
    try:
        raise make()
    except BaseException as error:
        return error


def travel(exception: BaseException) -> CapturedException:
    body, buffers = dump(capture(exception))
    return load(body, [bytearray(buffer) for buffer in buffers])


def fail_deep_down() -> None:
    {}["missing"]


# ---- what arrives -----------------------------------------------------------------------------------------------


def test_type_text_and_traceback_arrive() -> None:
    try:
        fail_deep_down()
    except KeyError as error:
        got = travel(error)
    assert type(got.ex) is KeyError
    assert got.ex.args == ("missing",)
    assert got.ex.__traceback__ is None
    assert "fail_deep_down" in got.traceback_text
    assert str(got).startswith("KeyError: 'missing'\n\nTraceback (most recent call last):\n")


@pytest.mark.parametrize(
    "exception",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(5),
        asyncio.CancelledError("stop"),
        GeneratorExit(),
        OSError(2, "No such file", "name"),
        FileNotFoundError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ImportError("no", name="module"),
        SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
        ProcessExitedException(3, "killed", signal=9, stderr_tail="last"),
        ValueError(),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_exceptions_arrive_as_they_were(exception: BaseException) -> None:
    got = travel(raised(lambda: exception)).ex
    assert type(got) is type(exception)
    assert got.args == exception.args
    assert str(got) == str(exception)
    for field in ("code", "value", "errno", "filename", "start", "name", "lineno", "signal"):
        assert getattr(got, field, None) == getattr(exception, field, None)


class OwnSignature(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Stubborn(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


def raised_by(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@settings(max_examples=50)
@given(st.binary(max_size=60), st.data())
def test_bytes_that_are_no_captured_exception(noise: bytes, data: st.DataObject) -> None:
    body, _ = dump(capture(ValueError("text")))
    cut = data.draw(st.integers(0, len(body) - 1))
    others = [payload.dumps(other)[0] for other in (5, ("", []), ("", [()]), {})]
    for spoilt in (b"\x00" + noise, body[:cut], *others):
        got = load(spoilt)
        assert isinstance(got.ex, DeserializeError)
        assert "On worker 3" in str(RemoteException(3, got))


# ---- traceback texts --------------------------------------------------------------------------------------------


def test_our_own_frames_below_the_users_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "_OUR_FOLDER", str(Path("/ours") / ""))
    ours: dict[str, Any] = {}
    exec(compile("def execute(f): return f()", "/ours/execution.py", "exec"), ours)
    call = ours["execute"]
    text = capture(outer_error(call)).traceback_text
    assert text.count("/ours/execution.py") == 1  # the one that the user's code called
    assert text.index("in users") < text.index("/ours/execution.py") < text.index("in fail_deep_down")


def outer_error(call: Callable[..., Any]) -> BaseException:
    def users() -> None:
        call(fail_deep_down)

    error = raised_by(lambda: call(users))
    # Without the frames of the test itself: as in a worker, where the first is ours.
    trace = error.__traceback__
    while trace is not None and "/ours" not in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    return error.with_traceback(trace)


# ---- nested -----------------------------------------------------------------------------------------------------


def test_a_remote_exception_is_passed_on_with_its_first_capture() -> None:
    first = travel(raised_by(fail_deep_down))

    def users() -> None:
        raise RemoteException(3, first)

    passed = travel(raised_by(users))
    outer = RemoteException(2, passed)
    assert str(outer).startswith("On worker 2:\nOn worker 3:\nKeyError: 'missing'\n\nTraceback")
    assert "fail_deep_down" in str(outer)
    assert "users" in passed.traceback_text
    assert isinstance(passed.ex, RemoteException)
    assert passed.ex.pid == 3
    assert isinstance(passed.ex.__cause__, KeyError)
    assert str(outer).count("KeyError: 'missing'") == 2  # the headline and the traceback's last line


def test_remote_exceptions_survive_pickling_nested() -> None:
    error = RemoteException(2, travel(RemoteException(3, travel(OwnSignature(1, reason="r")))))
    error.__cause__.add_note("kept")  # type: ignore[union-attr]
    copies = [pickle.loads(pickle.dumps(error)), payload.loads(*payload.dumps(error)), travel(error).ex]
    for copy in copies:
        assert str(copy) == str(error)
        assert isinstance(copy, RemoteException)
        inner = copy.captured.ex
        assert copy.__cause__ is inner
        assert inner.__cause__ is inner.captured.ex
        assert isinstance(inner.__cause__, OwnSignature)
    unpicklable = RemoteException(2, CapturedException(Stubborn("s"), "trace"))
    copy = pickle.loads(pickle.dumps(unpicklable))
    assert "Stubborn: s" in str(copy)
    assert "trace" in str(copy)


def test_a_captured_exception_prints_like_python_does() -> None:
    error = RemoteException(2, travel(raised_by(fail_deep_down)))
    text = "".join(traceback.format_exception(error))
    assert "KeyError: 'missing'" in text
    assert "On worker 2:" in text
    assert "CapturedException(KeyError)" in repr(error.captured)
