"""From a manager's launch to members of the cluster.

::

    manager.launch (own thread) ─ notify ─► for each WorkerConfig, on a thread of its own:
        announce   read host and port from the worker's output, unless the config names them
        connect    manager.connect, or the library's own: shared memory inside the node, TCP else
        join       Join ─► Joined: ospid, addresses, the answer to the shared-memory probe
    all done: every process is told the new list of members; failures are raised together

A failed launch costs its own worker only, and its pid, which is never used again.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    CompositeException,
    HybridDistError,
    LaunchError,
    LaunchTimeout,
    ProcessExitedException,
)
from hybriddist.managers.announcement import read_announcement
from hybriddist.managers.base import ClusterManager, WorkerConfig

if TYPE_CHECKING:
    from hybriddist.cluster import Cluster


class Launch:
    """One `addprocs`."""

    def __init__(self, cluster: Cluster, manager: ClusterManager, params: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._manager = manager
        self._params = params
        self._deadline = Deadline(params.get("timeout"))
        self._changed = threading.Condition()
        self._launching = True
        self._threads: list[threading.Thread] = []
        self._pids: list[int] = []
        self._failures: list[tuple[int, Exception]] = []
        self._probe: Any = None

    def run(self) -> list[int]:
        """Launch and join; the new pids, sorted.

        Raises:
            CompositeException: of the launch errors, with the good pids attached.
            TimeoutError: the overall time limit came; ``.pids`` has those that joined.
        """
        launched: list[WorkerConfig] = []
        self._probe = self._cluster.create_probe()
        try:
            threading.Thread(target=self._launch, args=(launched,), name="hybriddist-launch", daemon=True).start()
            seen = 0
            while True:
                with self._changed:
                    ready = self._changed.wait_for(
                        lambda: len(launched) > seen or not self._launching, self._deadline.remaining()
                    )
                    more = len(launched) > seen
                    if not ready or (not more and not self._launching):
                        break
                if more:
                    self._begin(launched[seen], seen)
                    seen += 1
            for thread in self._threads:
                thread.join(self._deadline.remaining())
        finally:
            if self._probe is not None:
                self._probe.close()
        return self._conclude()

    def _launch(self, launched: list[WorkerConfig]) -> None:
        failure: Exception | None = None
        try:
            self._manager.launch(self._params, launched, self._notify)
        except Exception as error:
            failure = error
        with self._changed:
            if failure is not None:
                self._failures.append((len(launched), failure))
            self._launching = False
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _begin(self, config: WorkerConfig, index: int) -> None:
        membership = self._cluster.process.membership
        pid = membership.allocate_pid()
        membership.add(Member(pid, transport=self._params.get("transport", "auto")))
        thread = self._cluster.process.spawn(lambda: self._bring_in(pid, config, index), f"hybriddist-launch-{pid}")
        self._threads.append(thread)

    def _bring_in(self, pid: int, config: WorkerConfig, index: int) -> None:
        """One worker's way into the cluster."""
        cluster = self._cluster
        deadline = self._deadline.sooner(cluster.process.settings.worker_timeout_seconds)
        stage = "announce"
        try:
            cluster.configs[pid] = config
            cluster.managers[pid] = self._manager
            host, port = config.host, config.port
            if config.io is not None:
                host, port = read_announcement(config, deadline, cluster.output)
                config.host, config.port = config.host or host, port
            stage = "connect"
            addresses = [f"tcp:{host}:{port}"] if host else []
            unix_path = (config.environ or {}).get("unix_path")
            if unix_path:
                addresses.insert(0, f"unix:{unix_path}")
            transport = cluster.process.links.dial(addresses, self._params.get("transport", "auto"), deadline)
            stage = "join"
            cluster.join(pid, config, transport, self._params, self._probe, deadline)
        except Exception as error:
            self._fail(pid, config, index, self._launch_error(error, config, stage))
            return
        with self._changed:
            self._pids.append(pid)

    def _launch_error(self, error: Exception, config: WorkerConfig, stage: str) -> LaunchError:
        if isinstance(error, LaunchError):
            return error
        host = config.host or "localhost"
        tail = error.stderr_tail if isinstance(error, ProcessExitedException) else ""
        kind = LaunchTimeout if isinstance(error, TimeoutError) else LaunchError
        made = kind(f"the worker was started but could not be used: {error}", host=host, stage=stage, stderr_tail=tail)
        made.__cause__ = error
        return made

    def _fail(self, pid: int, config: WorkerConfig, index: int, error: Exception) -> None:
        self._cluster.drop(pid, ExitReason("it was never started"))
        try:
            self._manager.kill(pid, config)
            self._manager.manage(pid, config, "finalize")
        except HybridDistError as problem:
            error.add_note(f"ending it failed too: {problem}")
        with self._changed:
            self._failures.append((index, error))

    def _conclude(self) -> list[int]:
        with self._changed:
            pids = sorted(self._pids)
            failures = [error for _, error in sorted(self._failures, key=lambda entry: entry[0])]
            late = self._launching or any(thread.is_alive() for thread in self._threads)
        self._cluster.announce_members()
        flat: list[Exception] = []
        for failure in failures:
            flat.extend(failure.exceptions if isinstance(failure, CompositeException) else [failure])
        if late:
            error = LaunchTimeout(f"addprocs did not finish within {self._params.get('timeout')} seconds")
            error.pids = pids  # type: ignore[attr-defined]
            raise error
        if flat:
            if len(flat) == 1 and not isinstance(flat[0], LaunchError):
                raise flat[0]
            raise CompositeException(f"{len(flat)} of the workers could not be started", flat, pids)
        return pids


def removal_reason(config: WorkerConfig, *, expected: bool, timeout: float) -> ExitReason:
    """Why a worker's connection ended, from its exit status where there is one within ``timeout`` seconds."""
    child = config.process
    status = child.wait(Deadline(timeout)) if hasattr(child, "exit_status") else None
    if status is None:
        return ExitReason.removed() if expected else ExitReason.lost()
    reason = ExitReason.ended(status.exitcode, status.signal)
    return replace(reason, text=f"it was removed ({reason.text})") if expected else reason


