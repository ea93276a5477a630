"""Every exception the library raises.

The tree::

    HybridDistError
    ├── RemoteException           code on a process raised        .pid .captured
    ├── ProcessExitedException    the process is gone             .pid .reason .exitcode .signal
    │                                                             .stderr_tail
    ├── LaunchError               a worker could not be started   .host .stage .stderr_tail
    │   ├── LaunchTimeout         (also TimeoutError) .pids
    │   └── HostKeyError          .fingerprint
    ├── ClusterError              illegal for the current membership
    │   ├── NotDriverError        addprocs or rmprocs away from process 1
    │   ├── NoSuchProcessError    (also LookupError) .pid
    │   ├── TopologyError         these two processes are not to be connected
    │   └── RemovalTimeout        (also TimeoutError) .pids
    ├── ProtocolError
    │   ├── LocalProtocolError    we asked for something illegal
    │   └── RemoteProtocolError   the peer sent something illegal
    │       ├── FrameTooLargeError
    │       ├── FrameCorruptError
    │       └── VersionMismatchError
    ├── AuthenticationError       the peer does not know the cookie
    ├── TransportError            (also OSError)
    │   ├── ConnectError          .address
    │   ├── TransportClosed       ended in good order
    │   ├── TransportBroken       failed
    │   ├── PeerSilent            nothing heard for the silence limit
    │   └── SharedMemoryFull
    ├── SerializationError
    │   ├── SerializeError        raised before anything is sent
    │   └── DeserializeError      the connection stays up
    ├── InvalidStateException     a closed channel, a second put  .state
    └── InternalError             our bug

    CompositeException            an ExceptionGroup: several failures in order of submission

Exceptions carry their facts as attributes and build their text in ``__str__``, so that handlers need not
parse text. All of them survive pickling. What this module does not know: how foreign exceptions are mapped to
these (one place in each skin does that), and how an exception is captured for the journey (``core/captured.py``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Self


NO_DESCRIPTORS: Final = {
    errno.EMFILE: "this process has no descriptors left: raise its limit (ulimit -n)",
    errno.ENFILE: "this host has no descriptors left: raise its limit (fs.file-max)",
}
"""By error number: what to do, which the system's own words do not tell."""


def with_advice(error: BaseException) -> str:
    """What an exception says; if descriptors have run out, what to do about it as well."""
    advice = NO_DESCRIPTORS.get(error.errno or 0) if isinstance(error, OSError) else None
    return str(error) if advice is None else f"{error}: {advice}"


class HybridDistError(Exception):
    """The root of the library's own exceptions."""


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    """Restore an exception from its fields without running its ``__init__`` (whose signature differs by class)."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def _others(error: BaseException, *fields: str) -> dict[str, Any] | None:
    """What is attached to an exception besides its fields: notes, the index of a map's item, the user's own."""
    return {name: value for name, value in error.__dict__.items() if name not in fields} or None


class _FieldError(HybridDistError):
    """An exception made of fields: keeps them through pickling, whatever the signature of ``__init__``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


class RemoteException(_FieldError):
    """Code on a process raised.

    Attributes:
        pid: the process on which it was raised.
        captured: the ``CapturedException``: ``.ex`` is the original exception (also this exception's
            ``__cause__``), ``.traceback_text`` the remote traceback as text.
    """

    def __init__(self, pid: int, captured: Any) -> None:
        super().__init__(pid, captured)
        self.pid = pid
        self.captured = captured
        self.__cause__ = captured.ex

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.pid, self.captured), _others(self, "pid", "captured"))

    def __str__(self) -> str:
        return f"On worker {self.pid}:\n{self.captured}"


class ProcessExitedException(_FieldError):
    """The process is gone, and with it what was asked of it.

    Attributes:
        pid: the process that is gone.
        reason: a sentence: exit code, signal, or "connection lost".
        exitcode: its exit code, where known.
        signal: the number of the signal that ended it, where known.
        stderr_tail: its last lines on stderr (text, possibly empty).
    """

    def __init__(
        self,
        pid: int,
        reason: str = "connection lost",
        *,
        exitcode: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        super().__init__(pid, reason)
        self.pid = pid
        self.reason = reason
        self.exitcode = exitcode
        self.signal = signal
        self.stderr_tail = stderr_tail

    def __str__(self) -> str:
        text = f"worker {self.pid} is gone: {self.reason}"
        if self.stderr_tail:
            text += "\nits last lines on stderr:\n" + self.stderr_tail
        return text


class LaunchError(_FieldError):
    """A worker could not be started.

    Attributes:
        host: the host as the user wrote it ("localhost" for local workers).
        stage: the step that failed, such as "start", "announce", "connect", "join", "mesh",
            "authenticate".
        stderr_tail: the last lines that the launched command wrote (text, possibly empty).
    """

    def __init__(self, message: str, *, host: str = "localhost", stage: str = "start", stderr_tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.stage = stage
        self.stderr_tail = stderr_tail

    def __str__(self) -> str:
        text = f"{self.message} (host {self.host}, stage {self.stage})"
        if self.stderr_tail:
            text += "\nits last lines:\n" + self.stderr_tail
        return text


class LaunchTimeout(LaunchError, TimeoutError):
    """A worker did not get through a stage of its launch in time, or all of `addprocs` was not done in time.

    Attributes:
        pids: when `addprocs` itself was not done in time: the workers that did join; they stay.
    """

    pids: Sequence[int] = ()


class HostKeyError(LaunchError):
    """A host's ssh key is unknown or has changed. ``fingerprint`` is what the host showed."""

    def __init__(self, message: str, *, host: str, fingerprint: str = "") -> None:
        super().__init__(message, host=host, stage="authenticate")
        self.fingerprint = fingerprint


class ClusterError(HybridDistError):
    """Illegal for the current membership of the cluster."""


class NotDriverError(ClusterError):
    """Only process 1 can add and remove workers."""

    def __init__(self, message: str = "Only process 1 can add and remove workers") -> None:
        super().__init__(message)


class NoSuchProcessError(_FieldError, ClusterError, LookupError):
    """No process with this id ever was. ``pid`` is the id asked for."""

    def __init__(self, pid: int, hint: str = "") -> None:
        super().__init__(pid)
        self.pid = pid
        self.hint = hint

    def __str__(self) -> str:
        return f"no process with id {self.pid} exists" + (f" ({self.hint})" if self.hint else "")


class TopologyError(ClusterError):
    """The cluster's topology does not connect these two processes."""


class RemovalTimeout(_FieldError, ClusterError, TimeoutError):
    """``rmprocs`` gave up waiting. ``pids`` are the workers that were still there."""

    def __init__(self, pids: Sequence[int], seconds: float) -> None:
        super().__init__(list(pids), seconds)
        self.pids = list(pids)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"rmprocs: pids {self.pids} not terminated after {self.seconds} seconds."


class ProtocolError(HybridDistError):
    """Somebody broke the rules of the wire. Never raised itself: see the two children."""


class LocalProtocolError(ProtocolError):
    """We asked for something the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow; its connection is ended."""


class FrameTooLargeError(RemoteProtocolError):
    """A frame declared more than the limits allow; nothing was allocated for it."""


class FrameCorruptError(RemoteProtocolError):
    """A frame's checksum does not match its bytes."""


class VersionMismatchError(RemoteProtocolError):
    """The two sides run incompatible versions of the protocol or of Python."""


class AuthenticationError(HybridDistError):
    """The peer could not prove that it knows the cluster's cookie."""


class TransportError(HybridDistError, OSError):
    """A way between two processes failed or ended."""


class ConnectError(TransportError):
    """No connection could be made. ``address`` names where to."""

    def __init__(self, message: str, address: str = "") -> None:
        super().__init__(message)
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.address), _others(self, "address"))


class TransportClosed(TransportError):
    """The connection has ended in good order, between two frames."""


class TransportBroken(TransportError):
    """The connection failed: the peer died, the network broke, or a frame was cut short."""


class PeerSilent(TransportError):
    """Nothing was heard from the peer for the silence limit."""


class SharedMemoryFull(TransportError):
    """The shared-memory file system has no room for what was asked."""


class SerializationError(HybridDistError):
    """A value could not be made into bytes or made from bytes."""


class SerializeError(SerializationError):
    """A value cannot be pickled. Raised at the caller; nothing was sent."""


class DeserializeError(SerializationError):
    """Received bytes cannot be unpickled. The connection stays up."""


class InvalidStateException(HybridDistError):
    """The object is in the wrong state: a closed channel, a future that already has its value.

    Attributes:
        state: "closed" (a channel), "set" (a future that was to get a second value), "released" (a reference that was
            finalized, or whose value or channel is gone); None where no one of these words fits.
    """

    def __init__(self, *args: object, state: str | None = None) -> None:
        super().__init__(*args)
        self.state = state


class InternalError(HybridDistError):
    """A bug in this library; please report it."""


class CompositeException(ExceptionGroup[Exception]):
    """Several failures, in order of submission. ``exceptions`` holds them.

    Iterating gives the failures; ``len`` counts them. ``addprocs`` attaches ``pids``: the workers that did start.
    """

    pids: list[int]

    def __new__(cls, message: str, exceptions: Sequence[Exception], pids: Sequence[int] = ()) -> Self:
        self = super().__new__(cls, message, exceptions)
        self.pids = list(pids)
        return self

    def __init__(self, message: str, exceptions: Sequence[Exception], pids: Sequence[int] = ()) -> None:
        super().__init__(message, exceptions)

    def derive(self, excs: Sequence[Exception]) -> CompositeException:  # type: ignore[override]
        """Keep the class and the pids when ``except*`` splits the group."""
        return CompositeException(self.message, excs, self.pids)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, list(self.exceptions), self.pids), _others(self, "pids"))

    def __iter__(self) -> Any:
        return iter(self.exceptions)

    def __len__(self) -> int:
        return len(self.exceptions)

    def __str__(self) -> str:
        first = self.exceptions[0]
        shown = f"{self.message}: {first}"
        if not isinstance(first, RemoteException):  # its text names the type of what was raised there
            name = type(first).__name__
            shown = f"{self.message}: {name}: {first}" if str(first) else f"{self.message}: {name}"
        more = len(self.exceptions) - 1
        return shown + (f"\n...and {more} more exception{'s' if more > 1 else ''}." if more else "")
