"""Objects to bytes and back: the only place where anything is unpickled.

A payload is a *body* (a pickle, protocol 5) and *buffers* (the memory of large arrays), which travel beside it without
being copied into it. Pickling goes the cheapest way that is right::

    C pickler ──ok──► names __main__? ──no──► an array that could go out of band, or is read-only? ──no──► done
        │ failed            │ yes                                 │ yes
        ▼                   ▼                                     ▼
        by value (core/byvalue.py, cloudpickle)             once more, arrays taken apart (core/ndarrays.py)
        │ failed
        ▼
        SerializeError, which says what failed and where it sits (core/culprit.py)

References count while they travel: each that is in a pickle is a claim of the receiver's (`core/references.py`). They
are rebuilt by functions of ours with "revive" in their names. A value that cannot be rebuilt here has claims as any
other: what `loads` did not come to is read once more by a walker, which makes nothing and runs no code of the value,
and given up (`decline`). In place of ``revive`` of a module the walker calls ``claim`` of the same module, which says
what was claimed.

Only the plain values of the first line are common, so only they are fast: 0.7 µs for a small tuple. Plain arrays that
are a call's arguments or its result do not come that far (`core/plain.py`). What this module does not know:
messages, connections, and whose bytes these are. It must never be given bytes of a peer that has not proved the cookie.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from hybriddist import limits
from hybriddist.core import plain
from hybriddist.core.lease import physical_bytes
from hybriddist.core.ndarrays import BufferCollector
from hybriddist.errors import DeserializeError, SerializeError
from hybriddist.transport import Buffer

CALL_LABELS: Final = ("the function", "argument", "keyword argument")
"""For `dumps` of ``(function, args, kwargs)``: how an error names the parts."""

ARGUMENTS_LABELS: Final = ("argument", "keyword argument")
"""For `dumps` of ``(args, kwargs)``."""

FUNCTION_LABELS: Final = CALL_LABELS[:1]
"""For `dumps` of a function alone."""

_HEADER_ROOM: Final = 64
"""Bytes of a frame's head that are not the body."""

NUMBERS: Final = frozenset({int, float, bool, complex, type(None)})
"""What needs no second thought: most results of small calls."""

_NAMES_SOMETHING: Final = pickle.STACK_GLOBAL
"""In a pickle without this byte nothing is imported. In one with it, something may be; that costs 1 µs more."""

_REVIVE: Final = "revive"
"""Part of the names of all functions that rebuild references, and what else may have some in its own pickle."""

_CLAIM: Final = "claim"
"""In its place, in the name of the function that says what was claimed."""

_PICKLE: Final = pickle.PROTO[0]
"""What every pickle begins with, and nothing else that is sent."""

_dumps = pickle.dumps
_loads = pickle.loads


def dumps(value: Any, labels: Sequence[str] = (), again: Callable[[], object] = bool) -> tuple[bytes, list[memoryview]]:
    """Pickle a value.

    Args:
        value: anything picklable by pickle or cloudpickle.
        labels: what the items of a tuple of a call's parts are called in the text of an error; the first is what
            anything else is called.
        again: called before the value is pickled once more, in another way: objects in it are asked for their parts a
            second time.

    Returns:
        The body, and the buffers that travel beside it: contiguous memoryviews of format "B" over the value's own
        memory, so they show later changes of it until they are written or copied.

    Raises:
        SerializeError: the value cannot be pickled; the cause is chained. Nothing has been sent or changed.
    """
    if value.__class__ in NUMBERS:
        return _dumps(value, 5), []
    encoded = plain.dump(value)
    if encoded is not None:
        return encoded or _dumps_by_value(value, labels)
    collector = BufferCollector()
    try:
        body = _dumps(value, 5, buffer_callback=collector)
    except KeyboardInterrupt:
        raise
    except BaseException:
        # Not an error yet: the C pickler knows no lambdas, modules and the like.
        again()
        return _dumps_by_value(value, labels)
    # One search finds the other name of the script too, "__mp_main__".
    if b"_main__" in body:
        again()
        return _dumps_by_value(value, labels)
    # numpy's `_reconstruct` and `_mareconstruct` are how arrays that went into the pickle are rebuilt. (A search runs
    # at 1.5 GB/s: noticed only with huge bytes objects, which it makes twice as slow to pickle.)
    if (collector.saw_readonly or len(body) > limits.OUT_OF_BAND_BYTES) and (
        "numpy" in sys.modules and (collector.saw_readonly or b"reconstruct" in body)
    ):
        again()
        return _dumps_by_value(value, labels, arrays_only=True)
    return _checked(body, collector.buffers)


def loads(body: Buffer, buffers: Iterable[Buffer] = ()) -> Any:
    """Undo `dumps`. Executes what the pickle says: only for bytes of a proven peer.

    Args:
        body: the body.
        buffers: the buffers; the arrays of the value keep them and use their memory.

    Raises:
        DeserializeError: for whatever goes wrong, be it a `SystemExit` raised by the code of an object; the cause is
            chained. The references in it are given up: it must not be tried again.
    """
    revived: list[None] = []
    try:
        if body[0] != _PICKLE:
            return plain.rebuild(body[0], _loads(body[1:]), buffers)
        if type(body) is not bytes or _NAMES_SOMETHING in body:
            unpickler = _Unpickler(io.BytesIO(body), buffers=buffers)
            unpickler.revived = revived
            return unpickler.load()
        return _loads(body, buffers=buffers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        decline(body, buffers, len(revived))
        raise DeserializeError(_explain(error, len(body))) from error


def claims(body: Buffer, buffers: Iterable[Buffer] = ()) -> list[Any]:
    """What a value's receiver claims: the `Claim` of each reference in it. Rebuilds nothing."""
    return [claim for group in walk(body, buffers)[1] for claim in group]


def decline(body: Buffer, buffers: Iterable[Buffer] = (), revived: int = 0) -> None:
    """Give up the references in a value that is not rebuilt here. To be called once, as `loads` is.

    Args:
        revived: so many, the first ones, were rebuilt: their handles see to them.
    """
    if _REVIVE.encode() in bytes(body):
        for group in walk(body, buffers)[1][revived:]:
            for claim in group:
                claim.decline()


def walk(body: Buffer, buffers: Iterable[Buffer]) -> tuple[Any, list[Sequence[Any]]]:
    """Read a pickle without rebuilding what is in it.

    Returns:
        The value with nothing but plain values in it, None if it is broken; and for each call of a reviving function,
        in their order, what it claims.
    """
    groups: list[Sequence[Any]] = []
    try:
        if body[0] != _PICKLE:
            return plain.rebuild(body[0], _loads(body[1:]), buffers), groups
        walker = _Walker(io.BytesIO(body), buffers=buffers)
        walker.groups = groups
        return walker.load(), groups
    except Exception:
        return None, groups  # it is broken: what came before that counts


def is_small(value: Any, limit: int) -> bool:
    """Whether the pickle of a value, large buffers included, has at most ``limit`` bytes.

    Looks no further than that: the size of a long list is known as soon as it is too large. What the C pickler cannot
    pickle counts as small; whoever sends it will be told why it cannot be sent.
    """
    if value.__class__ in NUMBERS:
        return True
    ruler = _Ruler(limit)
    try:
        pickle.Pickler(ruler, 5, buffer_callback=ruler.see_buffer).dump(value)
    except _TooLarge:
        return False
    except Exception:
        return True
    return True


class _TooLarge(Exception):
    """More bytes than the limit."""


class _Ruler:
    """A file that only counts."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def write(self, data: Any) -> int:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self._left -= size
        if self._left < 0:
            raise _TooLarge
        return int(size)

    def see_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Counted, and left out of the pickle."""
        self.write(buffer.raw())
        return False


class _Unpickler(pickle.Unpickler):
    """Imports packages from the top down, because several threads unpickle at once.

    A plain import of ``numpy._core.numeric`` takes the lock of that module first and that of ``numpy`` then; a thread
    that is just importing ``numpy`` takes them the other way round. Python resolves that by handing out a module that
    is half done, and numpy does not recover from it: the first arrays sent to a new worker would break it for ever.
    """

    revived: list[None]
    """One for each call of a reviving function that has returned."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name not in sys.modules:
            end = module_name.find(".")
            while end >= 0:
                importlib.import_module(module_name[:end])
                end = module_name.find(".", end + 1)
        found = super().find_class(module_name, global_name)
        if _REVIVE not in global_name or not _is_ours(module_name):
            return found
        revived = self.revived  # not `self`: the function is in its memo, and would keep all that was unpickled

        def revive(*args: Any) -> Any:
            handle = found(*args)
            revived.append(None)
            return handle

        return revive


class _InertType(type):
    """Does whatever a pickle does with what it has named or made, and nothing by it."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __setitem__(cls, _: Any, __: Any) -> None: ...

    __setstate__ = append = extend = add = __call__


class _Inert(metaclass=_InertType):
    """Stands for every function, class and object of a pickle that is only walked through."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return cls


class _Walker(pickle.Unpickler):
    """Reads a pickle for the claims in it. Nothing is imported for it, and none of the code that it names runs."""

    groups: list[Sequence[Any]]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if _REVIVE not in global_name or not _is_ours(module_name):
            return _Inert
        claim = getattr(importlib.import_module(module_name), global_name.replace(_REVIVE, _CLAIM), None)
        groups = self.groups

        def revive(*args: Any) -> Any:
            groups.append(() if claim is None else claim(*args))
            return _Inert

        return revive


def _is_ours(module_name: str) -> bool:
    return module_name.startswith("hybriddist.")


# ---- the slow ways ----------------------------------------------------------------------------------------------


def _dumps_by_value(value: Any, labels: Sequence[str], *, arrays_only: bool = False) -> tuple[bytes, list[memoryview]]:
    from hybriddist.core import byvalue

    try:
        body, buffers = byvalue.dumps(value, arrays_only=arrays_only)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise SerializeError(_describe_failure(value, labels, error)) from error
    return _checked(body, buffers)


def _checked(body: bytes, buffers: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """What was pickled, if it is of a size that can be sent and received."""
    if len(body) > limits.MAX_HEAD_BYTES - _HEADER_ROOM:
        raise SerializeError(
            f"the pickle has {len(body)} bytes, and the limit is {limits.MAX_HEAD_BYTES}. Put the data into numpy "
            "arrays, whose memory is not part of the pickle, or send it in pieces"
        )
    if buffers:
        size = sum(map(len, buffers))
        if size > plain.MOST_BYTES and size > physical_bytes():
            raise SerializeError(
                f"arrays of {size / limits.GIB:.1f} GiB cannot be sent: this machine has "
                f"{physical_bytes() / limits.GIB:.1f} GiB of memory, in which the receiver's copy would have to lie. "
                "Send them in pieces, or pass the name of a file, or a SharedArray of it (file=)"
            )
    return body, buffers


def _describe_failure(value: Any, labels: Sequence[str], error: BaseException) -> str:
    """What could not be pickled, where it sits, why, and what to do."""
    from hybriddist.core import byvalue, culprit

    reason = safe_text(error)
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return (
            f"a value of type {type_name(value)} is nested too deeply to be pickled ({reason}). Send it in a flat "
            "form, or raise sys.setrecursionlimit here"
        )
    found = culprit.locate(value, byvalue.Reducer(BufferCollector()), labels)
    thing, place = found if found is not None else (value, "")
    what = f"{place} (a {type_name(thing)})" if place else f"a value of type {type_name(thing)}"
    if found is None:
        what += ", or something in it"
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return (
            f"cannot pickle {what}: {reason}. An array that is not contiguous is copied first, and there is no memory "
            "for that: send it in pieces, or what it is made of"
        )
    return (
        f"cannot pickle {what}: {reason}. Make it where it is needed (inside the function that runs there), "
        "or leave it out of the object that holds it (__getstate__)"
    )


def _explain(error: BaseException, size: int) -> str:
    """Why a value cannot be rebuilt here, and what to do."""
    text = f"cannot rebuild a received value ({size} bytes of pickle): {safe_text(error)}"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{text}. Install the module for {sys.executable}, or put its file where the driver's sys.path leads: the "
            "driver lends the modules of its project to workers, and workers lend none"
        )
    if isinstance(error, AttributeError):
        return (
            f"{text}. If the name is in __main__, define it there first (everywhere); if it is in a module, the two "
            "processes have different versions of it"
        )
    return text


def type_name(thing: Any) -> str:
    """The thing's type as a traceback prints it: in full, unless it is a builtin or of the script. Never raises."""
    kind = type(thing)
    module = type.__getattribute__(kind, "__module__")
    name = type.__getattribute__(kind, "__qualname__")
    return str(name) if module in ("builtins", "__main__") else f"{module}.{name}"


def safe_text(error: BaseException, limit: int = 2000) -> str:
    """``Type: message`` of an exception, whatever its `__str__` does."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        text = f"<its text cannot be had: {type_name(failure)}>"
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n... {len(text) - limit} characters left out ...\n{text[-limit // 2 :]}"
    return f"{type_name(error)}: {text}" if text else type_name(error)
