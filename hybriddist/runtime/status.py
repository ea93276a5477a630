"""What a process says of itself, readable by all, also when it is gone: its last words.

::

    worker 3   set_status("at item 7") ── call to the driver, answered ──►  driver: kept as bytes, one for each process
    anybody    get_status(3)           ── call to the driver           ──►  the bytes, unpickled where they are wanted

The driver is told before `set_status` returns, so what was said just before a death is not lost, and what one thread
says comes in order. What this module does not know: who is told of ends (``managers/events.py``).

Source: DistributedNext, ``setstatus`` and ``getstatus``.
"""

from __future__ import annotations

from typing import Any

from hybriddist import limits
from hybriddist.core.packed import pack, unpack
from hybriddist.errors import NoSuchProcessError, RemoteException
from hybriddist.ids import DRIVER
from hybriddist.runtime.context import this_process
from hybriddist.runtime.current import current


def set_status(value: Any) -> None:
    """Say how this process is; the last word is kept by the driver, also after this process's end.

    Blocks until the driver has it: a round trip.

    Args:
        value: small plain data, at most `limits.MAX_STATUS_BYTES` as a pickle. A copy is kept; references in it are
            dead for whoever reads them. ``None`` as before the first call.

    Raises:
        SerializeError: it cannot be pickled.
        ValueError: it is too large.
        ProcessExitedException: the driver is gone.

    Example::

        hd.set_status("loading")
        hd.get_status(hd.myid())  # 'loading'

    Source: DistributedNext, ``setstatus``.
    """
    process = current()
    packed = pack(value)
    if len(packed) > limits.MAX_STATUS_BYTES:
        raise ValueError(
            f"a status is at most {limits.MAX_STATUS_BYTES} bytes as a pickle, not {len(packed)}: "
            "results belong into a Future"
        )
    if process.pid == DRIVER:
        process.membership.set_status(DRIVER, packed)
    else:
        process.fetch_call(keep_status, DRIVER, (process.pid, packed), {})


def get_status(pid: int) -> Any:
    """What process ``pid`` said last with `set_status`; ``None`` if it never said anything. Asks the driver.

    Of a process that is gone these are its last words. They can be read as long as the driver lives, also in the
    ``"exited"`` functions of `on_worker`.

    Raises:
        TypeError: ``pid`` is not an integer.
        NoSuchProcessError: there is no such process, and never was.
        DeserializeError: the status cannot be unpickled here.

    Source: DistributedNext, ``getstatus``.
    """
    process = current()
    if process.pid == DRIVER:
        packed = process.membership.status(pid)
    else:
        try:
            packed = process.fetch_call(kept_status, DRIVER, (pid,), {})
        except RemoteException as error:
            told = error.captured.ex
            if isinstance(told, NoSuchProcessError | TypeError):
                raise told from None
            raise
    return None if packed is None else unpack(packed)


def keep_status(pid: int, packed: bytes) -> None:
    """Runs on the driver: a process says how it is."""
    this_process().membership.set_status(pid, packed)


def kept_status(pid: int) -> bytes | None:
    """Runs on the driver: what a process said last.

    Raises:
        TypeError, NoSuchProcessError.
    """
    return this_process().membership.status(pid)
