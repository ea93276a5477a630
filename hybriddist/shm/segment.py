"""Shared-memory segments: created, attached, named, reserved, swept. The only user of `multiprocessing.shared_memory`.

A segment is a file of the shared-memory file system that processes map. What this module does not know: what lies in
it.

How it works, and which trap each step avoids:

* *Names* are `hybriddist-<ospid>-<start time>-<pid namespace>-<random>`: unguessable, created exclusively, mode 0600.
  The first parts name the owner, so that `sweep` can tell the names of dead processes. Who has attached a segment
  unlinks the name at once; the memory lives on in the mappings.
* *Reserved.* Creating more than there is room for succeeds, and the first touch then kills the process with SIGBUS.
  `posix_fallocate` takes the pages now or fails cleanly: `SharedMemoryFull`.
* *No resource tracker.* Before Python 3.13 every process that merely attaches registers the segment with a tracker
  process, which destroys it when the attacher exits. Who creates has the registration suppressed (never undone: the
  tracker keeps a set, and taking our entry out takes the creator's). Who attaches or unlinks calls what `SharedMemory`
  itself calls for it, and need not import that: 6 ms of a worker's start. No tracker process is started.
* *Closing is dying.* `SharedMemory.close` raises while views are alive, and numpy arrays made the wrong way crash after
  it. Here the memory is unmapped when the last view of it dies, never by hand.
"""

from __future__ import annotations

import _posixshmem
import errno
import functools
import math
import mmap
import os
import re
import sys
from collections.abc import Callable
from threading import Lock
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from hybriddist import limits
from hybriddist.core.lease import physical_bytes
from hybriddist.errors import RemoteProtocolError, SharedMemoryFull, TransportBroken

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

PREFIX: Final = "hybriddist-"
MAX_NAME_BYTES: Final = 96
_NAME: Final = re.compile(r"hybriddist-(\d{1,10})-(\d{1,20})-(\d{1,10})-[0-9a-f]{8,32}")
_NAMES_FOLDER: Final = "/dev/shm"  # where Linux shows the names
_RESERVE_STEP_BYTES: Final = limits.MIB
"""Reserved at a time. A signal undoes the call that it interrupts: in one call a large segment under a profiler's timer
would never get done. 1 MiB takes 0.4 ms."""


class Segment:
    """A mapped segment.

    Attributes:
        name: its name, without a slash.
        memory: all of its bytes, writable, format "B". Views of it keep the memory mapped, whatever becomes of this
            object; after `close` it is an empty view.
    """

    __slots__ = ("memory", "name")

    def __init__(self, name: str, mapping: mmap.mmap) -> None:
        self.name = name
        self.memory = memoryview(mapping)

    @classmethod
    def create(cls, size: int, name: str | None = None) -> Segment:
        """Create, reserve and map a segment of ``size`` bytes, all zero.

        Args:
            size: in bytes, at least 1.
            name: from `new_name`; default: a new one.

        Raises:
            SharedMemoryFull: there is no room, or there is no shared memory here; nothing is left behind.
        """
        try:
            own_name = name or new_name()
        except OSError as error:  # no descriptor is left to look at our own start time
            raise _full(size, error) from error
        check_name(own_name)
        handle = None
        try:
            handle = _untracked()(own_name, create=True, size=size)
            _reserve(handle, size)
            return cls(own_name, _take_mapping(handle))
        except FileExistsError as error:
            # Not ours, so not to be unlinked. That somebody has guessed a random name is no case worth a second try.
            raise _full(size, error) from error
        except BaseException as error:
            # Also what was reserved so far must go at once, not with the last frame of the traceback.
            if handle is not None:
                handle.close()
            unlink(own_name)
            if isinstance(error, OSError):
                raise _full(size, error) from error
            raise

    @classmethod
    def attach(cls, name: str, size: int | None = None) -> Segment:
        """Map the segment that another process of this user created.

        Args:
            name: its name, from a peer; believed only if it looks like one of ours.
            size: the size it must have; default: any.

        Raises:
            RemoteProtocolError: the name is not one of ours, or what it names was not made by `create`.
            TransportBroken: there is no such segment here, or it cannot be mapped.
        """
        check_name(name)
        fd = -1
        try:
            fd = _posixshmem.shm_open("/" + name, os.O_RDWR, mode=0o600)
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or status.st_mode & 0o777 != 0o600:
                raise RemoteProtocolError(
                    f"the shared-memory segment {name} belongs to user {status.st_uid} and has mode "
                    f"{status.st_mode & 0o777:o}; expected are user {os.geteuid()} and mode 600"
                )
            if size is not None and status.st_size != size:
                raise RemoteProtocolError(f"the shared-memory segment {name} has {status.st_size} bytes, not {size}")
            return cls(name, mmap.mmap(fd, status.st_size))
        except (OSError, ValueError) as error:
            raise TransportBroken(f"cannot attach the shared-memory segment {name}: {error}") from error
        finally:
            if fd >= 0:
                os.close(fd)

    def unlink(self) -> None:
        """Remove the name; the memory stays with who has mapped it. Idempotent; removing nothing is no error."""
        unlink(self.name)

    def close(self) -> None:
        """Let the memory go; it is unmapped when no view of it is left. Idempotent, never raises."""
        self.memory = memoryview(bytearray())


class Budget:
    """How many bytes the arenas of one process may take together. Safe for several threads at once.

    Args:
        limit_bytes: default: a share (`limits.ARENA_BYTES_SHARE`) of the shared-memory file system.
        warn: called once, when a buffer finds no room: in the file system, or in the budget because that file system
            is small. It must not block: whoever sends calls it, with the connection's lock.
        taken: called whenever something is taken; likewise.
    """

    def __init__(
        self,
        limit_bytes: int | None = None,
        warn: Callable[[SharedMemoryFull], None] | None = None,
        taken: Callable[[], None] | None = None,
    ) -> None:
        self.limit_bytes = int(capacity()[0] * limits.ARENA_BYTES_SHARE) if limit_bytes is None else limit_bytes
        self.taken_bytes = 0
        self._warnings = [] if warn is None else [warn]
        """What is still to be called: taken out by whoever is first, since `pop` is atomic."""
        self._taken = taken
        self._lock = Lock()

    def take(self, count: int) -> bool:
        """Take ``count`` bytes; False, and nothing taken, if that is too much."""
        with self._lock:
            fits = self.taken_bytes + count <= self.limit_bytes
            if fits:
                self.taken_bytes += count
        if fits and self._taken is not None:
            self._taken()
        return fits

    def give(self, count: int) -> None:
        """Give ``count`` taken bytes back."""
        with self._lock:
            self.taken_bytes -= count

    def tell(self, error: SharedMemoryFull) -> None:
        """There was no room in the file system."""
        try:
            warn = self._warnings.pop()
        except IndexError:
            return
        warn(error)

    def refuse(self, count: int) -> None:
        """There was no room for ``count`` bytes in the budget, and nothing that could be given back for them.

        That is told unless the machine itself has no room for them: then there is no advice.
        """
        if self._warnings and count < physical_bytes():
            self.tell(_over_budget(count, self.limit_bytes))


def new_name() -> str:
    """A name for a segment of this process, not used before."""
    ospid = os.getpid()
    if sys.platform != "linux":
        # macOS allows 30 characters, and shows no names that could be swept.
        return f"{PREFIX}{ospid}-0-0-{os.urandom(4).hex()}"
    return f"{PREFIX}{ospid}-{_start_time(ospid)}-{_pid_namespace()}-{os.urandom(12).hex()}"


def is_name(name: str) -> bool:
    """Whether ``name`` looks like one that `new_name` made."""
    return name.isascii() and _NAME.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Whether this process has made the name, and not the one that it is a forked copy of."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match[1]) == os.getpid()


def check_name(name: str) -> None:
    """Raise `RemoteProtocolError` unless `is_name`."""
    if not is_name(name):
        raise RemoteProtocolError(f"{name[:100]!r} is not the name of a shared-memory segment of this library")


def unlink(name: str) -> None:
    """Remove the name of a segment that may or may not exist."""
    check_name(name)
    try:
        _posixshmem.shm_unlink("/" + name)
    except FileNotFoundError:
        pass  # the other side was first


def capacity() -> tuple[int, int]:
    """Bytes of the shared-memory file system: (total, free). (0, 0): there is none."""
    if sys.platform != "linux":
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available
    try:
        status = os.statvfs(_NAMES_FOLDER)
    except OSError:
        return 0, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def sweep() -> list[str]:
    """Remove the segments of this user whose owner is gone, and return their names.

    A name is left alone if its owner cannot be judged from here: a process of another pid namespace.
    """
    try:
        names = os.listdir(_NAMES_FOLDER)
    except OSError:
        return []  # A system that does not show the names.
    swept = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or int(match[3]) != _pid_namespace() or str(_start_time(int(match[1])) or "") == match[2]:
            continue
        path = os.path.join(_NAMES_FOLDER, name)
        try:
            if os.lstat(path).st_uid == os.geteuid():
                os.unlink(path)
                swept.append(name)
        except FileNotFoundError:
            continue  # Another process sweeps too.
    return swept


def _start_time(ospid: int) -> int | None:
    """When the process began, in the system's ticks; None if it is gone. A zombie is gone: it maps nothing."""
    try:
        with open(f"/proc/{ospid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may contain anything.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in b"ZX" else int(fields[19])


def _pid_namespace() -> int:
    """Containers may share /dev/shm and not the numbering of processes: ospids of another one mean nothing here."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _reserve(handle: SharedMemory, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return  # macOS: it has no such call, and its shared memory is swapped, not limited by a file system.
    for start in range(0, size, _RESERVE_STEP_BYTES):
        os.posix_fallocate(handle._fd, start, min(_RESERVE_STEP_BYTES, size - start))  # type: ignore[attr-defined]


def _take_mapping(handle: SharedMemory) -> mmap.mmap:
    """The mapping, out of the handle, which would close it under the views. It has a descriptor of its own."""
    parts: Any = handle
    mapping: mmap.mmap = parts._mmap
    parts._buf.release()
    parts._buf = parts._mmap = None
    handle.close()
    return mapping


def _full(size: int, error: OSError) -> SharedMemoryFull:
    total, free = capacity()
    mib = limits.MIB
    text = f"no shared memory for {size / mib:.1f} MiB: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
        text += f". {_NAMES_FOLDER} has {total / mib:.0f} MiB, {free / mib:.1f} MiB of them free"
        text += f". {advice(total, size)}"
    return SharedMemoryFull(text)


def _over_budget(size: int, limit: int) -> SharedMemoryFull:
    total, mib = capacity()[0], limits.MIB
    return SharedMemoryFull(
        f"no shared memory for {size / mib:.1f} MiB: what a process sends may take {limit / mib:.0f} MiB of the "
        f"{total / mib:.0f} MiB of {_NAMES_FOLDER}. {advice(total, size)}"
    )


def advice(total: int, wanted: int) -> str:
    """How to have a file system in which there is room: twice as large, and not below 2 GiB."""
    enough = max(2 * total, wanted / limits.ARENA_BYTES_SHARE, 2 * limits.GIB)
    size = f"{math.ceil(enough / limits.GIB)}g"
    return f"Enlarge it: 'docker run --shm-size={size}', or 'mount -o remount,size={size} {_NAMES_FOLDER}'"


def end_handle(handle: SharedMemory) -> None:
    """The finaliser of our handles. It must not be interrupted: Python ignores what finalisers raise."""
    try:
        handle.close()
    except OSError:
        pass  # closed already


def prepare() -> None:
    """Import what it takes to create a segment, before a process is copied that would else do it in each copy."""
    _untracked()


@functools.cache
def _untracked() -> type[SharedMemory]:
    """`SharedMemory` without the resource tracker. Made when first needed; a constant, though a late one."""
    from multiprocessing import shared_memory

    base: Any = shared_memory.SharedMemory

    if sys.version_info >= (3, 13):

        class Untracked(base):  # type: ignore[misc]
            def __init__(self, name: str, create: bool = False, size: int = 0) -> None:
                super().__init__(name, create, size, track=False)

            __del__ = end_handle

        return Untracked

    # Own copies of the two methods, whose global name `resource_tracker` means one that does nothing. Replacing the
    # name in the module itself, even for a moment, would hit other threads that create segments of their own. (`unlink`
    # is called where the mapping fails.)
    silent = SimpleNamespace(register=lambda name, kind: None, unregister=lambda name, kind: None)
    names = {**vars(shared_memory), "resource_tracker": silent}
    init, unlink = base.__init__, base.unlink
    return type(
        "Untracked",
        (base,),
        {
            "__init__": FunctionType(init.__code__, names, "__init__", init.__defaults__),
            "unlink": FunctionType(unlink.__code__, names, "unlink", unlink.__defaults__),
            "__del__": end_handle,
        },
    )
