"""Exceptions taken apart for the journey, and put together again.

An exception is not pickled whole, for three reasons. Pickling drops ``__cause__`` and ``__context__``. One part that
cannot travel would take the others with it. And the usual way back, calling the class with the exception's ``args``,
fails or garbles the text for every class whose ``__init__`` has a signature of its own; here the object is made without
running that ``__init__``, and then given its ``args`` and attributes::

    exception ─► parts [(body, type, text, cause, context, members of the group), ...] ─► plain values, picklable
    parts ─► each body alone, or a stand-in ─► causes, contexts and members linked again ─► exception

What this module does not know: tracebacks and how the parts travel (`core/captured.py`).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.errors import CompositeException, DeserializeError, HybridDistError, RemoteException, SerializeError
from hybriddist.records import Record

_MOST_PARTS: Final = 100
"""Exceptions linked to one: causes, contexts, members of groups. More only come from loops that chain for ever."""


class StandIn(HybridDistError):
    """Stands for an exception that could not travel.

    Attributes:
        type_name: the original's type, in full.
        text: the original's own text.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


# ---- taking apart -----------------------------------------------------------------------------------------------


class _Part(Record):
    """One exception of a chain or group. Plain values only, so that it can be read whatever is in ``body``."""

    body: bytes | None
    """The exception's pickle, or None: it could not be pickled, for the reason in the last note."""

    buffers: list[Any]
    type_name: str
    text: str
    notes: list[str]
    suppress_context: bool
    cause: int
    """Index of another part, or -1."""

    context: int
    members: list[int]
    group_message: str | None
    """Of an exception group, whose body has only what it is besides its members; else None."""


def take_apart(exception: BaseException) -> list[tuple[Any, ...]]:
    """The parts of an exception and of those linked to it, itself first. Raises what only hostile classes raise."""
    found = [exception]
    index = {id(exception): 0}

    def place(other: BaseException | None) -> int:
        if other is None:
            return -1
        if id(other) not in index:
            if len(found) >= _MOST_PARTS:
                return -1
            index[id(other)] = len(found)
            found.append(other)
        return index[id(other)]

    parts = []
    for each in found:  # grows while it is read
        links: dict[str, Any] = {"suppress_context": own_attribute(each, "__suppress_context__")}
        if not isinstance(each, RemoteException):  # its cause is the captured exception that it carries anyway
            links |= {name: place(own_attribute(each, f"__{name}__")) for name in ("cause", "context")}
        if isinstance(each, BaseExceptionGroup):
            links["members"] = [place(member) for member in each.exceptions]
        parts.append(_part(each, **links))
    return parts


def _part(
    exception: BaseException,
    *,
    suppress_context: bool = False,
    cause: int = -1,
    context: int = -1,
    members: list[int] | None = None,
) -> tuple[Any, ...]:
    text = shorten(message(exception))
    notes = list(_notes(exception))
    body: bytes | None
    buffers: list[memoryview]
    try:
        body, buffers = payload.dumps(_portable(exception))
    except SerializeError as error:
        body, buffers, note = _dump_the_rest(exception, message(error))
        notes.append(note)
    # As a tuple: the class of a NamedTuple would be looked up for each part.
    return tuple(
        _Part(
            body,
            [pickle.PickleBuffer(buffer) for buffer in buffers],
            payload.type_name(exception),
            text,
            notes,
            suppress_context,
            cause,
            context,
            members or [],
            shorten(exception.message) if isinstance(exception, BaseExceptionGroup) else None,
        )
    )


def _portable(exception: BaseException) -> Any:
    """What is pickled for an exception, so that nothing is lost that could travel."""
    plain = _is_plain(type(exception))
    if not isinstance(exception, BaseExceptionGroup):
        return _Rebuilt(exception) if plain else exception
    if plain:
        return type(exception), dict(exception.__dict__)
    try:
        # A group with its own pickling has its own way to make one like it, too.
        return None, exception.derive([StandIn("member", "")])
    except Exception as error:
        raise SerializeError(f"its derive() failed: {headline(error)}") from error


def _is_plain(cls: type[BaseException]) -> bool:
    """Whether pickling is left to BaseException: class, args, attributes. Then we can do it better."""
    return (
        cls.__reduce__ is BaseException.__reduce__
        and cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__setstate__ is BaseException.__setstate__
    )


class _Rebuilt:
    """Pickles a plain exception so that it is rebuilt without its class's ``__init__``."""

    __slots__ = ("args", "attributes", "kind")

    def __init__(self, exception: BaseException) -> None:
        self.kind = type(exception)
        self.args = exception.args
        self.attributes = dict(exception.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (self.kind, self.args, self.attributes)


def _dump_the_rest(exception: BaseException, reason: str) -> tuple[bytes | None, list[memoryview], str]:
    """Pickle the exception without what cannot be pickled in it; so it still meets its `except` clause.

    Returns:
        Body (None if nothing helps) and buffers, and a note on what is missing.
    """
    if not _is_plain(type(exception)) or isinstance(exception, BaseExceptionGroup):
        return None, [], shorten(f"It could not be pickled: {reason}")
    rest = _Rebuilt(exception)
    lost = [name for name, value in rest.attributes.items() if not _can_be_pickled(value)]
    for name in lost:
        del rest.attributes[name]
    rest.args = tuple(arg if _can_be_pickled(arg) else f"<{payload.type_name(arg)}>" for arg in exception.args)
    try:
        body, buffers = payload.dumps(rest)
    except SerializeError as error:  # the class itself
        return None, [], shorten(f"It could not be pickled: {message(error)}")
    missing = "".join(f" The attribute {name!r} is missing." for name in lost)
    return body, buffers, shorten(f"It came here incomplete.{missing} {reason}")


def _can_be_pickled(value: Any) -> bool:
    try:
        payload.dumps(value)
    except SerializeError:
        return False
    return True


def rebuild(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """An exception from its class, args and attributes, without running Python code of the class.

    The builtin class it derives from does run: a `StopIteration` has its value from there.
    """
    base: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    error: BaseException = base.__new__(cls, *args)
    try:
        base.__init__(error, *args)
    except (TypeError, ValueError, IndexError):
        error.args = args  # they are not what the builtin class takes: nobody called its __init__ with them
    error.__dict__.update(attributes)
    return error


# ---- putting together -------------------------------------------------------------------------------------------


def put_together(raw_parts: list[tuple[Any, ...]], traceback_text: str) -> BaseException:
    """Undo `take_apart`.

    Args:
        raw_parts: what it made.
        traceback_text: attached to the stand-in, if the exception itself cannot be rebuilt.
    """
    parts = [_Part(*raw) for raw in raw_parts]
    made: list[BaseException | None] = [None] * len(parts)
    # Not a function in here that calls itself: that is a cycle, and would keep the exceptions until it is collected.
    make = partial(_made, parts, made, traceback_text)
    for index, part in enumerate(parts):
        exception = make(index)
        if part.cause >= 0:
            exception.__cause__ = make(part.cause)
        if part.context >= 0:
            exception.__context__ = make(part.context)
        if not isinstance(exception, RemoteException):  # its constructor has set its cause
            exception.__suppress_context__ = part.suppress_context
        own_notes = own_attribute(exception, "__notes__")
        if len(part.notes) > (
            len(own_notes) if isinstance(own_notes, list | tuple) else 0
        ):  # one tells what is missing
            object.__setattr__(exception, "__notes__", list(part.notes))  # `add_note` asks for the attribute first
    return make(0)


def _made(parts: Sequence[_Part], made: list[BaseException | None], traceback_text: str, index: int) -> BaseException:
    """The exception of the part with this index, made if it was not yet."""
    found = made[index]
    if found is None:
        part = parts[index]
        if part.group_message is not None:
            members = [_made(parts, made, traceback_text, member) for member in part.members if member > 0]
            found = _make_group(part, members or [StandIn("Exception", "left out, since there are too many")])
        else:
            found = _make(part, "" if index else traceback_text)
        made[index] = found
    return found


def pickles(raw_parts: list[tuple[Any, ...]]) -> Iterator[tuple[bytes, list[Any]]]:
    """The pickles in what `take_apart` made, with their buffers."""
    for part in (_Part(*raw) for raw in raw_parts):
        if part.body is not None:
            yield part.body, part.buffers


def _make(part: _Part, traceback_text: str) -> BaseException:
    """The exception of one part, or what stands for it."""
    original = StandIn(part.type_name, part.text)
    if part.body is None:
        return original
    try:
        exception = payload.loads(part.body, part.buffers)
        if isinstance(exception, BaseException):
            return exception
        error = DeserializeError(f"the pickle of a {part.type_name} became a {payload.type_name(exception)}")
    except DeserializeError as failure:
        error = failure
        drop_frames(error)
    if traceback_text:
        original.add_note(traceback_text)
    return CompositeException(f"a {part.type_name} arrived that cannot be rebuilt here", [original, error])


def _make_group(part: _Part, members: list[BaseException]) -> BaseException:
    """A group of its members; of its own class, if that can be had here."""
    text = part.group_message or part.type_name
    note = ""
    if part.body is not None:
        try:
            cls, rest = payload.loads(part.body, part.buffers)
            group = rest.derive(members) if cls is None else rebuild(cls, (part.group_message, members), rest)
            if isinstance(group, BaseException):
                return group
        except Exception as error:
            note = f"This was a {part.type_name}: {headline(error)}"
    group = BaseExceptionGroup(text, members)
    if note:
        group.add_note(shorten(note))
    return group


# ---- texts ------------------------------------------------------------------------------------------------------


def message(exception: BaseException) -> str:
    """`str()` of an exception that may not have one."""
    try:
        return str(exception)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        return f"<its text cannot be had: {payload.type_name(failure)}>"


def drop_frames(exception: BaseException) -> None:
    """Let an exception that is kept, and those that led to it, let go of the frames in which they were raised.

    Frames hold their variables, and their callers theirs: the arrays of a failed call, say, for as long as somebody
    keeps its `Future`. Most likely they hold where the exception is kept as well: a cycle, with all that is in it,
    that only the collector of garbage would find, some time.
    """
    for each in chain(exception):
        BaseException.with_traceback(each, None)


def chain(exception: BaseException) -> Iterator[BaseException]:
    """An exception, those that led to it, and the members of groups."""
    left: list[Any] = [exception]
    seen = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [own_attribute(each, "__cause__"), own_attribute(each, "__context__")]
            if issubclass(type(each), BaseExceptionGroup):  # `isinstance` may ask the exception
                left += own_attribute(each, "exceptions")


def own_attribute(exception: BaseException, name: str) -> Any:
    """An attribute that Python gives to exceptions, or None. Not by `getattr`: a class may have its own `__getattr__`,
    made for other names, that raises what it likes."""
    try:
        return object.__getattribute__(exception, name)
    except AttributeError:
        return None


def headline(exception: BaseException) -> str:
    """``Type: text``."""
    text = message(exception)
    return f"{payload.type_name(exception)}: {text}" if text else payload.type_name(exception)


def _notes(exception: BaseException) -> Iterator[str]:
    notes = own_attribute(exception, "__notes__")
    if isinstance(notes, list | tuple):
        yield from (shorten(note) for note in notes[:_MOST_PARTS] if type(note) is str)


def shorten(text: str, limit: int = limits.MAX_ERROR_TEXT) -> str:
    """Leave out the middle: the beginning says where, the end what."""
    if len(text) <= limit:
        return text
    notice = f"\n... {len(text) - limit} characters or more are left out here ...\n"
    half = (limit - len(notice)) // 2
    return text[:half] + notice + text[-half:]
