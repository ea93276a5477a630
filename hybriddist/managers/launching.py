"""From a manager's launch to members of the cluster.

::

    manager.launch (own thread) ─ notify ─► for each WorkerConfig, on a thread of its own:
        connect    by the manager's own streams, if it has such; else
        announce   read host and port from the worker's output, unless the config names them
        connect    shared memory inside the node, TCP else
        join       Join ─► Joined: ospid, addresses, the answer to the shared-memory probe
        further    if the config counts more than one: the new worker starts the others of its host (``further.py``)
    all done: every process is told the new list of members
    mesh       unless connections are lazy, the new workers connect with all others (``mesh.py``)
    failures are raised together

A failed launch costs its own worker only, and its pid, which is never used again. A launch may be given up in the
middle, by its time limit, by Ctrl-C, or by the end of the driver: then `notify` raises, so that the manager starts no
more, and what has not joined yet is killed.

What this module does not know: how a manager starts a worker, and how connections are made (``runtime/paths.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member
from hybriddist.core.messages import Mode
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    ClusterError,
    CompositeException,
    LaunchError,
    LaunchTimeout,
)
from hybriddist.managers.announcement import read_announcement
from hybriddist.managers.base import ClusterManager, WorkerConfig
from hybriddist.managers.driver import Cluster, output_of
from hybriddist.managers.failures import as_exception, launch_error, raised, words
from hybriddist.managers.further import FurtherManager, ask_for_further, number_of_further
from hybriddist.managers.mesh import connect_workers, idents_of
from hybriddist.managers.numeric import use_one_thread
from hybriddist.managers.removing import Removal
from hybriddist.managers.streams import connect_by
from hybriddist.runtime.signals import take_as_usual
from hybriddist.transport import Transport

_GIVEN_UP: Final = "this addprocs was given up"
_SHUT_DOWN: Final = "the cluster was shut down while workers were being added"


class Launch:
    """One `addprocs`."""

    def __init__(self, cluster: Cluster, manager: ClusterManager, params: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._manager = manager
        self._params = params
        self._deadline = Deadline(params.get("timeout"))
        self._lock = threading.RLock()  # taken as it is: see `Roster`
        self._changed = threading.Condition(self._lock)
        self._launching = True
        self._given_up = False
        self._launched: list[WorkerConfig] = []
        known = [each for config in list(cluster.configs.values()) for each in (config, config.io)]
        self._seen = {id(each): each for each in known if each is not None}
        """The configs that have come, and their io, by identity: kept, so that none gets the number of another."""
        self._begun = 0
        self._starting: dict[int, WorkerConfig] = {}
        self._pids: list[int] = []
        self._hosts: dict[int, str] = {}
        self._stages: dict[int, list[str]] = {}
        self._failures: list[tuple[int, Exception]] = []
        self._probe: Any = None
        self._probe_made = threading.Event()

    def run(self) -> list[int]:
        """Launch and join; the new pids, sorted.

        Raises:
            CompositeException: of the launch errors, with the good pids attached.
            TimeoutError: the overall time limit came; ``.pids`` has those that joined.
            ClusterError: the cluster was shut down meanwhile.
        """
        try:
            self._cluster.process.spawn(self._launch, "hybriddist-launch")
            # Meanwhile the first process starts: what takes time here is done in its shadow.
            try:
                self._probe = self._cluster.create_probe()
            finally:
                self._probe_made.set()
            self._cluster.tidy()
            with self._lock:
                self._changed.wait_for(lambda: self._given_up or self._settled(), self._deadline.remaining())
            return self._conclude()
        except (LaunchError, CompositeException):
            raise
        except BaseException:
            # Ctrl-C, above all: nobody will learn these pids, so none of the workers stays.
            self.give_up()
            Removal(self._cluster, self._pids).start()
            raise
        finally:
            if self._probe is not None:
                self._probe.close()

    def give_up(self) -> None:
        """Start no more workers, and end those that have not joined yet. Does not wait for their ends."""
        with self._lock:
            self._given_up = True
            starting = dict(self._starting)
            self._changed.notify_all()
        for pid, config in starting.items():
            # Whoever waits for its announcement, connection or answer hears of its end.
            manager = self._cluster.managers.get(pid, self._manager)
            self._cluster.process.spawn(partial(manager.kill, pid, config), f"hybriddist-kill-{pid}")

    # ---- the manager's thread ---------------------------------------------------------------------------------

    def _launch(self) -> None:
        failure: Exception | None = None
        try:
            take_as_usual()  # what a user's manager starts inherits what this thread keeps away
            try:
                self._manager.launch(self._params, self._launched, self._notify)
            finally:
                self._begin()  # what was appended without a word
        except BaseException as error:
            failure = as_exception(error)
        with self._lock:
            if failure is not None and not self._given_up:
                self._failures.append((len(self._launched), failure))
            self._launching = False
            self._changed.notify_all()

    def _notify(self) -> None:
        self._begin()
        if self._given_up:
            raise ClusterError(_GIVEN_UP)

    def _begin(self) -> None:
        """Bring in what the manager has launched since the last time."""
        for index in range(self._begun, len(self._launched)):
            config = self._launched[index]
            with self._lock:
                self._begun = index + 1
                wrong = self._wrong(config)
                if wrong is not None:
                    self._failures.append((index, wrong))
                    continue
                pid = self._register(config, self._manager)
            self._spawn(partial(self._bring_in, pid, config, index), pid, index)

    def _wrong(self, config: Any) -> Exception | None:
        """Why a manager should not have appended this."""
        start = f"{type(self._manager).__name__}.launch appended"
        if not isinstance(config, WorkerConfig):
            return TypeError(f"{start} {config!r} to launched, which takes a WorkerConfig for each worker")
        if id(config) in self._seen:
            return ValueError(f"{start} {config!r} twice; each worker has a WorkerConfig of its own")
        if id(config.io) in self._seen:
            return ValueError(f"{start} {config!r}, whose io is another worker's: each is read for one worker")
        self._seen[id(config)] = config
        if config.io is not None:
            self._seen[id(config.io)] = config.io
        return None

    def _register(self, config: WorkerConfig, manager: ClusterManager) -> int:
        """A worker is on its way: give it a pid. The caller holds the lock."""
        membership = self._cluster.process.membership
        pid = membership.allocate_pid()
        membership.add(Member(pid, transport=self._params.get("transport", "auto")))
        self._cluster.configs[pid] = self._starting[pid] = config
        self._cluster.managers[pid] = manager
        self._cluster.params[pid] = self._params
        return pid

    def _spawn(self, target: Callable[[], None], pid: int, index: int) -> None:
        try:
            self._cluster.process.spawn(target, f"hybriddist-launch-{pid}")
        except RuntimeError as error:  # the system allows no more threads
            self._settle(pid, index, LaunchError(f"the driver cannot take in more workers: {error}"))

    # ---- one worker's way into the cluster, on a thread of its own ----------------------------------------------

    def _bring_in(self, pid: int, config: WorkerConfig, index: int) -> None:
        name = self._hosts[pid] = "localhost"
        stage = self._stages[pid] = ["announce"]
        try:
            name = self._hosts[pid] = config.host or name  # as the user wrote it
            self._connect_and_join(pid, config, stage)
            self._bring_in_further(pid, config, index)
        except BaseException as error:
            self._settle(pid, index, launch_error(as_exception(error), name, stage[-1]))
        else:
            self._settle(pid, index, None)

    def _connect_and_join(self, pid: int, config: WorkerConfig, stage: list[str]) -> None:
        """Append each stage to ``stage`` when it begins."""
        if self._given_up:
            raise ClusterError(_GIVEN_UP)
        cluster = self._cluster
        process = cluster.process
        number_of_further(config, 1)  # raises if that is nonsense
        config.connect_idents = idents_of(config)
        deadline = self._deadline.sooner(process.settings.worker_timeout_seconds)
        manager = cluster.managers[pid]
        stage.append("connect")
        transport = connect_by(manager, pid, config, process, deadline)
        if transport is None:
            stage.append("announce")
            transport = self._dial(config, stage, deadline)
            word = ""
        else:
            word = str(manager.path_name)
            if config.io is not None:  # there is no announcement in it: all is the worker's output
                environ = config.environ = {} if config.environ is None else config.environ
                environ["output"] = cluster.output.attach(config.io, environ.get("stderr"))
        stage.append("join")
        self._probe_made.wait()
        cluster.join(pid, config, transport, self._probe, deadline, word)
        if config.enable_threaded_blas is None:  # a manager of the user's
            config.enable_threaded_blas = bool(self._params.get("enable_threaded_blas"))
            if not config.enable_threaded_blas:
                process.start_call(use_one_thread, process.peer(pid), (), {}, Mode.DO, 0, 0)  # before any other call

    def _dial(self, config: WorkerConfig, stage: list[str], deadline: Deadline) -> Transport:
        """By the library's own sockets."""
        cluster = self._cluster
        process = cluster.process
        host, port = config.host, config.port
        if config.io is not None:
            host, port = read_announcement(config, deadline, cluster.output)
            config.host, config.port = config.host or host, port
        stage.append("connect")
        addresses = [f"tcp:{host}:{port}"] if host else []
        unix_path = (config.environ or {}).get("unix_path")
        if unix_path:
            addresses.insert(0, f"unix:{unix_path}")
        preference = self._params.get("transport", "auto")
        return process.paths.dial(addresses, preference, process.cookie, deadline)

    def _bring_in_further(self, first: int, config: WorkerConfig, index: int) -> None:
        """The others of this worker's host, if its config says that there are to be others."""
        cluster = self._cluster
        process = cluster.process
        number = number_of_further(config, process.membership.require(first).cpus)
        if not number:
            return
        manager = FurtherManager(process, first, cluster.managers[first])
        further: dict[int, WorkerConfig] = {}
        with self._lock:
            for _ in range(number):
                another = WorkerConfig()
                another.host, another.userdata = config.host, config.userdata
                further[self._register(another, manager)] = another
        seconds = self._deadline.sooner(process.settings.worker_timeout_seconds).remaining() or 0.0
        started = ask_for_further(process, first, list(further), config, seconds)
        for pid, another in further.items():
            where = started[pid]
            self._hosts[pid] = another.host or "localhost"
            if isinstance(where, Exception):
                self._settle(pid, index, launch_error(where, self._hosts[pid], "announce"))
            else:
                another.host, another.port, another.ospid = where
                self._spawn(partial(self._bring_in, pid, another, index), pid, index)

    def _settle(self, pid: int, index: int, failure: Exception | None) -> None:
        """The end of a worker's way: it is a member, or it is ended."""
        with self._lock:
            if failure is None and not self._given_up:
                self._pids.append(pid)
                del self._starting[pid]
                self._changed.notify_all()
                return
        try:
            self._cluster.abandon(pid, ExitReason("it was never started"))
        except BaseException as problem:
            if failure is not None:
                failure.add_note(f"ending it failed too: {words(problem)}")
        with self._lock:
            if failure is not None:
                self._failures.append((index, failure))
            del self._starting[pid]
            self._changed.notify_all()

    # ---- the end ----------------------------------------------------------------------------------------------

    def _settled(self) -> bool:
        return not self._launching and not self._starting

    def _conclude(self) -> list[int]:
        with self._lock:
            failures = [error for _, error in sorted(self._failures, key=lambda entry: entry[0])]
            starting = dict(self._starting)
            late = not self._settled()
            if self._given_up:
                raise ClusterError(_SHUT_DOWN)
        flat: list[Exception] = []
        for failure in failures:
            flat.extend(failure.exceptions if isinstance(failure, CompositeException) else [failure])
        late = late or (self._deadline.expired() and any(isinstance(error, TimeoutError) for error in flat))
        if late:
            self.give_up()
        self._cluster.announce_members()
        process = self._cluster.process
        flat += self._without(self._lacking_idents())
        missing = connect_workers(
            process, sorted(self._pids), self._deadline.sooner(process.settings.worker_timeout_seconds)
        )
        if self._cluster.closed:
            raise ClusterError(_SHUT_DOWN)
        if late or (missing and self._deadline.expired()):
            raise self._too_late(flat, starting, "start" if late else "mesh")
        flat += self._without_connections(missing)
        pids = sorted(self._pids)
        if flat:
            if len(flat) == 1 and not isinstance(flat[0], LaunchError) and not pids:
                raise flat[0]  # most likely what the manager says of a wrong argument
            flat = [error if isinstance(error, LaunchError) else raised(error) for error in flat]
            raise CompositeException(f"{len(flat)} of the workers could not be started", flat, pids)
        return pids

    def _too_late(self, failures: list[Exception], starting: Mapping[int, WorkerConfig], stage: str) -> LaunchTimeout:
        """The overall limit: where the first of those that were not ready was, and what it had said."""
        where = [(e.host, e.stage, e.stderr_tail) for e in failures if isinstance(e, LaunchTimeout)]
        for pid, config in starting.items():
            output = output_of(config)
            tail = "" if output is None else output.stderr_tail()
            where.append((self._hosts.get(pid, "localhost"), self._stages.get(pid, ["announce"])[-1], tail))
        host, stage, tail = where[0] if where else ("localhost", stage, "")
        text = f"addprocs did not finish within {self._params.get('timeout')} seconds"
        error = LaunchTimeout(text, host=host, stage=stage, stderr_tail=tail)
        error.pids = sorted(self._pids)
        return error

    def _without_connections(self, missing: Mapping[int, Mapping[int, Exception]]) -> list[Exception]:
        """End the workers that cannot be reached as the cluster promises: all or nothing, as with any failed launch."""
        failures: dict[int, Exception] = {}
        for pid, reasons in missing.items():
            other, reason = next(iter(reasons.items()))
            whom = f"worker {other}" if len(reasons) == 1 else f"workers {', '.join(map(str, reasons))}"
            kind = LaunchTimeout if isinstance(reason, TimeoutError) else LaunchError
            text = f"worker {pid} cannot be connected with {whom}: {reason}"
            failure = kind(text, host=self._hosts[pid], stage="mesh")
            failure.__cause__ = reason
            failures[pid] = failure
        return self._without(failures)

    def _lacking_idents(self) -> dict[int, Exception]:
        """The workers that are to be connected with idents which nobody has, though all are there now."""
        membership = self._cluster.process.membership
        failures: dict[int, Exception] = {}
        found = True
        while found:  # a worker that cannot stay may be what another one waits for
            found = False
            for pid in self._pids:
                if pid in failures or membership.why_gone(pid) is not None:
                    continue
                missing = membership.missing_idents(pid, without=failures)
                if missing:
                    found = True
                    names = ", ".join(map(repr, missing))
                    text = f"worker {pid} is to be connected with {names}, and no worker has that ident"
                    text += f" (topology: {membership.topology})"
                    failures[pid] = LaunchError(text, host=self._hosts[pid], stage="mesh")
        return failures

    def _without(self, failures: Mapping[int, Exception]) -> list[Exception]:
        """Remove workers that have joined, but cannot be what they should be."""
        if failures:
            self._pids = [pid for pid in self._pids if pid not in failures]
            removal = Removal(self._cluster, list(failures))
            removal.start()
            removal.wait()
        return list(failures.values())
