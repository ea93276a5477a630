"""What a test leaves behind: threads, child processes, descriptors, shared memory, orphans.

A `Footprint` is what this process holds at a moment. `settle` compares two of them, and gives what is new a little
time to go away, because a closed worker is not reaped and a joined thread is not gone in the same microsecond.
Attribution: only what is provably ours counts, since other runs and other users may be on the machine. Segments carry
the ospid of their owner in their name; processes that were started by this run, even by its grandchildren, carry the
run's id in their environment.
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

RUN_VARIABLE = "HD_TEST_RUN"
SEGMENTS = Path("/dev/shm")
SEGMENT_NAME = re.compile(r"hybriddist-(\d+)(?!\d)")
PROC = Path("/proc/self")
HAS_PROC = PROC.is_dir()
DESCRIPTORS = "/proc/self/fd" if HAS_PROC else "/dev/fd"

LASTING_THREADS = {
    "pytest_timeout": "the watchdog of this very test",
    "tqdm_monitor": "tqdm starts one for the life of the process",
}
"""Beginnings of names of threads that may stay, with the reason."""


def mark_run() -> str:
    """Give this process's descendants a run id of their own, and return it."""
    run = f"{os.getpid()}-{secrets.token_hex(4)}"
    os.environ[RUN_VARIABLE] = run
    return run


@dataclass(frozen=True)
class Footprint:
    """What this process holds now."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    descriptors: frozenset[int]
    segments: frozenset[str]

    @classmethod
    def take(cls) -> Footprint:
        """Look; it costs less than 0.1 ms."""
        tracker = _resource_tracker()
        return cls(
            frozenset(thread for thread in threading.enumerate() if not thread.name.startswith(tuple(LASTING_THREADS))),
            _children() - {tracker.pid},
            frozenset(filter(_is_open, map(int, os.listdir(DESCRIPTORS)))) - {tracker.descriptor},
            segments_of(os.getpid()),
        )

    def grown_since(self, before: Footprint) -> list[str]:
        """What is held now and was not before, as sentences."""
        found = [f"thread {thread.name} ({thread!r})" for thread in self.threads - before.threads]
        found += [f"child process {ospid}: {_command(ospid)}" for ospid in self.children - before.children]
        # The count, not the numbers: what was reopened under another number is no leak.
        if len(self.descriptors) > len(before.descriptors):
            found += [f"descriptor {fd}: {_target(fd)}" for fd in sorted(self.descriptors - before.descriptors)]
        found += [f"shared memory {name}" for name in self.segments - before.segments]
        return found


def settle(before: Footprint, timeout: float = 2.0) -> list[str]:
    """What stays beyond ``before`` for ``timeout`` seconds; empty as soon as nothing does."""
    found = Footprint.take().grown_since(before)
    if found:
        gc.collect()  # only now: on every test it would cost more than all the rest
        end = time.monotonic() + timeout
        while (found := Footprint.take().grown_since(before)) and time.monotonic() < end:
            time.sleep(0.005)
    return found


def segments_of(*ospids: int) -> frozenset[str]:
    """The names in shared memory whose owners are these processes, dead or alive."""
    try:
        names = os.listdir(SEGMENTS)
    except FileNotFoundError:  # macOS: shared memory has no folder
        return frozenset()
    return frozenset(name for name in names if (owner := SEGMENT_NAME.match(name)) and int(owner[1]) in ospids)


def orphans(run: str) -> dict[int, str]:
    """Processes of this run other than this one: ospid and command. Reads the whole process table: milliseconds."""
    if not HAS_PROC:
        return {}
    mark = f"{RUN_VARIABLE}={run}".encode()
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path("/proc", name, "environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            continue
        if int(name) != os.getpid() and mark in environment.split(b"\0"):
            found[int(name)] = _command(int(name))
    found.pop(_resource_tracker().pid, None)
    return found


def settle_orphans(run: str, before: dict[int, str], timeout: float = 2.0) -> list[str]:
    """Processes of this run that stay for ``timeout`` seconds. They are killed, so that later tests have the CPUs."""
    end = time.monotonic() + timeout
    while (found := {k: v for k, v in orphans(run).items() if k not in before}) and time.monotonic() < end:
        time.sleep(0.01)
    for ospid in found:
        try:
            os.kill(ospid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it went by itself
    return [f"process {ospid}: {command}" for ospid, command in found.items()]


@dataclass(frozen=True)
class _Tracker:
    pid: int = -1
    descriptor: int = -1


def _resource_tracker() -> _Tracker:
    """The helper process of `multiprocessing`, which by its design stays until the interpreter ends."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = module and module._resource_tracker
    if not tracker or tracker._pid is None:
        return _Tracker()
    return _Tracker(tracker._pid, -1 if tracker._fd is None else tracker._fd)


def _children() -> frozenset[int]:
    tasks = PROC / "task"
    try:
        found = [(tasks / tid / "children").read_text().split() for tid in os.listdir(tasks)]
    except OSError:  # no such file on this system, or a thread that has just ended
        import psutil

        return frozenset(child.pid for child in psutil.Process().children())
    return frozenset(int(ospid) for line in found for ospid in line)


def _is_open(fd: int) -> bool:
    """False for the descriptor by which the list itself was read."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _command(ospid: int) -> str:
    try:
        return Path(f"/proc/{ospid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or "(dead)"
    except OSError:
        return "(gone)"


def _target(fd: int) -> str:
    try:
        return os.readlink(f"{DESCRIPTORS}/{fd}")
    except OSError:
        return "(closed meanwhile)"
