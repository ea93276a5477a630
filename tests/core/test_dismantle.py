"""Exceptions taken apart and put together: all that can travel does, and the rest is explained."""

from __future__ import annotations

import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hybriddist import limits
from hybriddist.core.captured import CapturedException, capture, dump, load
from hybriddist.core.dismantle import StandIn
from hybriddist.errors import CompositeException, DeserializeError


def raised(make: Callable[[], BaseException]) -> BaseException:
    """The exception after it was raised and caught."""
    try:
        raise make()
    except BaseException as error:
        return error


def travel(exception: BaseException) -> CapturedException:
    body, buffers = dump(capture(exception))
    return load(body, [bytearray(buffer) for buffer in buffers])


def raised_by(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


class OwnSignature(Exception):
    """Its `__init__` does not take its `args`: the usual pickling fails or doubles the text."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Doubling(ValueError):
    def __init__(self, text: str) -> None:
        super().__init__(f"error: {text}")


class WithLock(Exception):
    def __init__(self, text: str, lock: Any = None) -> None:
        super().__init__(text, lock)
        self.lock = threading.Lock()
        self.number = 5


def test_constructors_with_their_own_signature_are_no_obstacle() -> None:
    got = travel(raised(lambda: OwnSignature(5, reason="why"))).ex
    assert isinstance(got, OwnSignature)
    assert (str(got), got.code) == ("5: why", 5)
    assert str(travel(Doubling("once")).ex) == "error: once"


def test_arrays_in_exceptions_travel_beside_the_body() -> None:
    array = np.arange(limits.OUT_OF_BAND_BYTES)
    body, buffers = dump(capture(ValueError("data", array)))
    assert [buffer.nbytes for buffer in buffers] == [array.nbytes]
    got = load(body, [bytearray(buffer) for buffer in buffers]).ex
    assert (got.args[1] == array).all()
    got.args[1][0] = 1


def test_causes_contexts_and_notes_arrive() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise OSError(5, "second")  # noqa: B904
        except OSError as error:
            error.add_note("a note")
            raise ValueError("third") from error

    got = travel(raised_by(fail))
    second = got.ex.__cause__
    assert isinstance(second, OSError)
    assert second.__notes__ == ["a note"]
    assert isinstance(second.__context__, KeyError)
    assert got.ex.__suppress_context__
    assert not second.__suppress_context__
    for text in ("first", "second", "third", "direct cause", "a note"):
        assert text in got.traceback_text


def test_groups_arrive_with_what_their_members_have() -> None:
    inner = ValueError("inner")
    inner.__cause__ = ZeroDivisionError("its cause")
    inner.add_note("of the inner")
    got = travel(ExceptionGroup("several", [ExceptionGroup("nested", [inner, KeyError("k")]), TypeError("t")])).ex
    assert isinstance(got, ExceptionGroup)
    nested = got.exceptions[0]
    assert isinstance(nested, ExceptionGroup)
    assert [type(e) for e in nested.exceptions] == [ValueError, KeyError]
    assert isinstance(nested.exceptions[0].__cause__, ZeroDivisionError)
    assert nested.exceptions[0].__notes__ == ["of the inner"]
    composite = CompositeException("failed", [ValueError("v"), Doubling("d")], pids=[2, 3])
    got = travel(composite).ex
    assert isinstance(got, CompositeException)
    assert got.pids == [2, 3]
    assert [str(e) for e in got] == ["v", "error: d"]


class OwnGroup(ExceptionGroup[Exception]):
    """Pickled by its attributes, and `derive` is not its own."""


class UnpicklableGroup(ExceptionGroup[Exception]):
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class BrokenGroup(UnpicklableGroup):
    def derive(self, excs: Any) -> Any:
        raise RuntimeError("nor this")


def test_groups_keep_their_class_where_that_is_possible() -> None:
    group = OwnGroup("mine", [OwnSignature(1, reason="r")])
    group.extra = [1]  # type: ignore[attr-defined]
    got: Any = travel(group).ex
    assert type(got) is OwnGroup
    assert (got.extra, str(got.exceptions[0])) == ([1], "1: r")
    for cls in (UnpicklableGroup, BrokenGroup):
        got = travel(cls("theirs", [ValueError("v")])).ex
        assert type(got) is ExceptionGroup
        assert (got.message, str(got.exceptions[0])) == ("theirs", "v")
    assert isinstance(travel(BaseExceptionGroup("b", [KeyboardInterrupt()])).ex, BaseExceptionGroup)


def test_groups_with_too_many_members_are_cut() -> None:
    nested = ExceptionGroup("inner", [ValueError(1)])
    got = travel(ExceptionGroup("outer", [*map(ValueError, range(98)), nested, *map(ValueError, range(50))])).ex
    assert isinstance(got, ExceptionGroup)
    assert len(got.exceptions) == 99
    assert "too many" in str(got.exceptions[98].exceptions[0])


def test_loops_of_causes_end() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    got = travel(first).ex
    assert got.__cause__ is not None
    assert got.__cause__.__cause__ is got


def test_endless_chains_are_cut() -> None:
    last: BaseException = ValueError(0)
    for n in range(1, 1000):
        error = ValueError(n)
        error.__context__ = last
        last = error
    got: BaseException | None = travel(last).ex
    depth = 0
    while got is not None:
        got, depth = got.__context__, depth + 1
    assert depth == 100


# ---- what does not travel ---------------------------------------------------------------------------------------


def test_parts_that_cannot_be_pickled_are_left_out() -> None:
    got = travel(raised(lambda: WithLock("text", threading.Lock()))).ex
    assert isinstance(got, WithLock)
    assert got.args == ("text", "<_thread.lock>")
    assert got.number == 5
    assert not hasattr(got, "lock")
    assert "attribute 'lock' is missing" in got.__notes__[0]


class Stubborn(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise SystemExit("no pickle")


class Traitor(Exception):
    """Pickles as something else."""

    def __reduce__(self) -> Any:
        return int, ("5",)


def explode(*args: Any) -> Any:
    raise ValueError("not here")


class Exploding(Exception):
    def __reduce__(self) -> Any:
        return explode, self.args


@pytest.mark.parametrize("cls", [Stubborn, Hostile])
def test_a_stand_in_travels_for_what_cannot_be_pickled(cls: type[Exception]) -> None:
    cause = raised(lambda: KeyError("the cause"))
    error = raised(lambda: cls("some text"))
    error.__cause__ = cause
    got = travel(error)
    assert isinstance(got.ex, StandIn)
    assert got.ex.type_name.endswith(cls.__name__)
    assert isinstance(got.ex.__cause__, KeyError)
    assert "could not be pickled" in got.ex.__notes__[-1]
    assert cls.__name__ in str(got)
    assert "the cause" in got.traceback_text
    if cls is Stubborn:
        assert "some text" in str(got)


@pytest.mark.parametrize("cls", [Exploding, Traitor])
def test_what_cannot_be_rebuilt_here_is_explained(cls: type[Exception]) -> None:
    got = travel(raised(lambda: cls("some text")))
    assert isinstance(got.ex, CompositeException)
    original, reason = got.ex
    assert isinstance(original, StandIn)
    assert original.text == "some text"
    assert "Traceback" in original.__notes__[0]
    assert isinstance(reason, DeserializeError)
    assert cls.__name__ in str(got)
    assert "some text" in str(got)


def test_a_class_that_is_missing_here_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_on_the_worker")
    exec("class Special(ValueError): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    body, buffers = dump(capture(raised(lambda: module.Special("it failed"))))
    monkeypatch.delitem(sys.modules, module.__name__)
    got = load(body, buffers)
    assert isinstance(got.ex, CompositeException)
    assert "only_on_the_worker.Special: it failed" in str(got)
    assert isinstance(got.ex.exceptions[1].__cause__, ModuleNotFoundError)


def test_one_member_that_cannot_travel_does_not_take_the_group_along() -> None:
    got = travel(ExceptionGroup("several", [ValueError("v"), Stubborn("s"), Exploding("e")])).ex
    assert isinstance(got, ExceptionGroup)
    assert got.message == "several"
    assert [type(e) for e in got.exceptions] == [ValueError, StandIn, CompositeException]


def test_long_texts_are_cut_in_the_middle() -> None:
    got = travel(raised(lambda: ValueError("begin" + "x" * 10 * limits.MAX_ERROR_TEXT + "end")))
    assert len(got.traceback_text) <= limits.MAX_ERROR_TEXT
    assert got.traceback_text.startswith("Traceback")
    assert got.traceback_text.rstrip().endswith("end")
    assert "left out here" in got.traceback_text


@pytest.mark.parametrize("notes", [5, "text", ["fine", 5, Hostile()], [Hostile()]])
def test_hostile_notes(notes: Any) -> None:
    error = raised(lambda: ValueError("text"))
    error.__notes__ = notes
    got = travel(error)
    assert isinstance(got.ex, ValueError)
    assert "ValueError: text" in str(got)


class Interrupting(Exception):
    """Its own code raises what else only Ctrl-C does."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


def test_an_interrupt_while_a_text_is_made_stays_one() -> None:
    """Where a Ctrl-C can be: on a thread of the user's."""
    error = raised(Interrupting)
    for ways in (lambda: dump(CapturedException(error, ""), interruptible=True), lambda: pickle.dumps(capture(error))):
        with pytest.raises(KeyboardInterrupt):
            ways()


def test_elsewhere_an_interrupt_is_the_exceptions_own() -> None:
    """Whoever waits for the end of the call gets one."""
    assert "Interrupting" in str(travel(raised(Interrupting)))


class Fields(Exception):
    """Its `__getattr__` was made for names that it knows."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__("some fields")
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        return self.fields[name]


class Untouchable(Exception):
    def __getattribute__(self, name: str) -> Any:
        sys.exit(3)


def test_attributes_of_any_name() -> None:
    error = raised(lambda: Fields({"code": 5}))
    error.__cause__ = ValueError("the cause")
    got = travel(error)
    assert type(got.ex) is Fields
    assert got.ex.code == 5
    assert type(got.ex.__cause__) is ValueError
    assert "in raised" in got.traceback_text
    error.__notes__ = ["a note"]
    assert travel(error).ex.__notes__ == ["a note"]
    error.lock = threading.Lock()  # so that it comes with a note on what is missing
    assert "incomplete" in travel(error).ex.__notes__[1]


def test_attributes_of_no_name() -> None:
    got = travel(raised(lambda: Untouchable("the text")))
    assert isinstance(got.ex, StandIn)
    assert "Untouchable: the text" in str(got)


def test_too_large_for_a_frame_becomes_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the two could go alone.
    error = ValueError(*(str(n) * 5000 for n in range(20)))
    error.__cause__ = ValueError(*(str(n) * 5000 for n in range(20, 40)))
    monkeypatch.setattr(limits, "MAX_HEAD_BYTES", 250_000)
    got = travel(error)
    assert isinstance(got.ex, StandIn)
    assert got.ex.type_name == "ValueError"
