"""Further workers of a host: `WorkerConfig.count` says how many, and the first worker of the host starts them.

::

    driver ── start_further([7, 8]) ──► worker 6 ── python -m hybriddist --worker, twice; the cookie through stdin
           ◄── where each listens ────           └─ relays what they print, labelled
    driver ── connects to 7 and 8 as to any other

They are children of the first one, and leave with it. The driver signals them through it, as only a parent knows that
a number still means its child.

What this module does not know: how the first worker was started, and how the driver takes workers in.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hybriddist.core.messages import Mode
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, LaunchError, ProcessExitedException, RemoteException, with_advice
from hybriddist.limits import TERM_EXIT_SECONDS
from hybriddist.managers import interpreter
from hybriddist.managers.announcement import read_announcement
from hybriddist.managers.base import ClusterManager, Operation, WorkerConfig
from hybriddist.net.address import Address
from hybriddist.runtime.child import PopenChild
from hybriddist.runtime.context import this_process
from hybriddist.runtime.options import OPTIONS_FLAG, WorkerOptions
from hybriddist.runtime.output import OutputRelay
from hybriddist.runtime.process import Process

ANSWER_SECONDS: Final = 5.0
"""For the first worker's answer, beyond what it is given to do."""

Started = tuple[str, int, int]
"""Host, port, ospid."""


def number_of_further(config: WorkerConfig, cpus: int) -> int:
    """How many workers are to be started beside the first one.

    Args:
        cpus: of the host, for "auto".

    Raises:
        ValueError: ``config.count`` is neither a positive number nor "auto".
    """
    count = config.count
    if count is None:
        return 0
    if count == "auto":
        return max(cpus, 1) - 1
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f'count in a WorkerConfig is a number of workers from 1 up, or "auto", not {count!r}')
    return count - 1


# ---- on the first worker --------------------------------------------------------------------------------------------


class _Family:
    """What a worker keeps of those that it has started."""

    def __init__(self) -> None:
        self.relay = OutputRelay()
        self.children: dict[int, PopenChild] = {}


def start_further(
    pids: Sequence[int], command: Sequence[str] | None, flags: Sequence[str], seconds: float
) -> dict[int, Started | LaunchError]:
    """Runs on the first worker of a host: start others beside it, and read where they listen.

    Args:
        pids: those that they will have.
        command: the interpreter; None: this one, with its options.
        flags: for the interpreter.
        seconds: for all of their announcements.
    """
    process = this_process()
    if not isinstance(process.owner, _Family):
        process.owner = _Family()
    family: _Family = process.owner
    deadline = Deadline(seconds)
    configs: dict[int, WorkerConfig] = {}
    results: dict[int, Started | LaunchError] = {}
    for pid in pids:
        try:
            configs[pid] = _spawn(process, command, flags)
        except OSError as error:
            results[pid] = LaunchError(f"a further worker cannot be started: {with_advice(error)}")
    for pid, config in configs.items():
        try:
            host, port = read_announcement(config, deadline, family.relay)
        except LaunchError as error:
            results[pid] = error
            continue
        assert config.environ is not None  # `read_announcement` put the output there
        family.relay.assign(config.environ["output"], pid)
        family.children[pid] = config.process
        results[pid] = (host, port, config.process.ospid)
    return results


def _spawn(process: Process, command: Sequence[str] | None, flags: Sequence[str]) -> WorkerConfig:
    import subprocess

    addresses = [
        Address.parse(where) for kind, _, where in (each.partition(":") for each in process.addresses) if kind == "tcp"
    ]
    options = WorkerOptions(
        bind_host=addresses[0].host if addresses else "127.0.0.1",
        worker_timeout_seconds=process.settings.worker_timeout_seconds,
        silence_limit_seconds=process.settings.silence_limit_seconds,
    )
    environment = dict(os.environ)
    if command is None:
        command = [interpreter.executable(), *interpreter.flags()]
        options.sys_path = interpreter.module_path()
    options.extra_path = interpreter.own_path()
    interpreter.add_package_path(environment, options.extra_path)
    popen = subprocess.Popen(
        [*command, *flags, "-m", "hybriddist", "--worker", OPTIONS_FLAG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
        start_new_session=True,
    )
    config = WorkerConfig()
    config.process = PopenChild(popen)
    config.io, config.environ = popen.stdout, {"stderr": popen.stderr}
    assert popen.stdin is not None
    try:
        popen.stdin.write(f"{process.cookie}\n{options.to_json()}\n".encode("ascii"))
    except BrokenPipeError:
        pass  # it has ended already: its announcement, which is missing, tells the story
    return config


def signal_further(pid: int, number: int) -> None:
    """Runs on the first worker of a host: send a signal to another one that it has started."""
    family = this_process().owner
    child = family.children.get(pid) if isinstance(family, _Family) else None
    if child is not None:
        child.send_signal(number)


# ---- on the driver --------------------------------------------------------------------------------------------------


def ask_for_further(
    process: Process, first: int, pids: Sequence[int], config: WorkerConfig, seconds: float
) -> Mapping[int, Started | Exception]:
    """Have worker ``first`` start others; for each pid where it listens, or why it does not."""
    try:
        command = interpreter.words(config.exename, "exename")
        flags = interpreter.words(config.exeflags, "exeflags", split=True) or []
        deadline = Deadline(seconds + ANSWER_SECONDS)
        results: dict[int, Started | Exception] = _ask(
            process, first, start_further, (list(pids), command, flags, seconds), deadline
        )
    except Exception as error:
        return dict.fromkeys(pids, error)
    return results


def _ask(process: Process, first: int, function: Any, args: tuple[Any, ...], deadline: Deadline) -> Any:
    """Call the first worker of a host; it may be stopped, or stuck, and then somebody else must not wait for it."""
    peer = process.peer(first)
    completion = process.start_call(function, peer, args, {}, Mode.FETCH, 0, 0)
    if not process.wait(completion, peer, deadline):
        raise TimeoutError(f"worker {first}, which started the further workers of its host, does not answer")
    return process.value_of(completion, peer)


class FurtherManager(ClusterManager):
    """The manager of further workers: asks their first one to signal them; the rest is their first manager's."""

    def __init__(self, process: Process, first: int, original: ClusterManager) -> None:
        self._process = process
        self._first = first
        self._original = original

    def __repr__(self) -> str:
        return f"{self._original!r} (through worker {self._first})"

    def launch(self, params: Mapping[str, Any], launched: list[WorkerConfig], notify: Callable[[], None]) -> None:
        raise NotImplementedError("further workers are started by the first one")

    def manage(self, pid: int, config: WorkerConfig, op: Operation) -> None:
        if op == "interrupt":
            self._signal(pid, signal.SIGINT)
        else:
            self._original.manage(pid, config, op)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        self._signal(pid, signal.SIGTERM)
        if not self._process.membership.wait_gone(pid, TERM_EXIT_SECONDS):
            self._signal(pid, signal.SIGKILL)

    def _signal(self, pid: int, number: int) -> None:
        try:
            _ask(self._process, self._first, signal_further, (pid, int(number)), Deadline(ANSWER_SECONDS))
        except (ProcessExitedException, ConnectError):
            pass  # the first one is gone, and took its children with it
        except (RemoteException, TimeoutError) as error:
            print(f"hybriddist: worker {pid} was not signalled: {error}", file=sys.stderr)
