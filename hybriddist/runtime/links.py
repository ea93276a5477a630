"""How a process gets its connections, and what happens when one ends.

A proven transport (``runtime/paths.py``) becomes a `Peer` by an introduction::

    connector                                   acceptor (a worker; the driver never listens)
      Join (driver) or Identify (worker)  ───►  now the peer has a pid
      ◄──────────────────────────────── Joined  (the answer to Join)

Of two workers the higher pid connects. A lower one asks for it through the driver, so that there is never more than
one connection of a pair.
"""

from __future__ import annotations

import socket
from _thread import allocate_lock
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.handshake import Role
from hybriddist.core.membership import Member
from hybriddist.core.messages import Identify, Join, Joined, Left
from hybriddist.core.protocol import Protocol
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    ConnectError,
    HybridDistError,
    InternalError,
    LocalProtocolError,
    ProcessExitedException,
    RemoteException,
    RemoteProtocolError,
    TransportError,
)
from hybriddist.ids import DRIVER
from hybriddist.runtime.cancelling import stop_maps_of
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.doorman import Doorman, Listener
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.meeting import bring_together
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.roster import Roster
from hybriddist.runtime.waiting import receive_rest
from hybriddist.transport import Transport

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

_REASON_SECONDS = 1.0
"""How long a worker waits for the driver's word on why another worker is gone, before it says "connection lost"."""


class Links:
    """The connections of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._doormen: list[Doorman] = []
        self._unproven: dict[int, socket.socket] = {}
        self._connecting: dict[int, Completion] = {}
        self._awaited: dict[int, Completion] = {}
        self._joining: dict[Peer, Completion] = {}
        self._buried: dict[Peer, Completion] = {}
        self._lock = allocate_lock()
        self.dialer: Callable[[Member, Deadline], Transport | None] | None = None
        """Makes connections by the manager of this worker (``managers/streams.py``); None: it has no manager."""
        self.arrived = Completion()
        """Done when the driver's Join has come: what a new worker waits for."""

    # ---- accepting --------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Accept connections from ``listener`` from now on."""
        doorman = Doorman(self.welcome, listener)
        self._doormen.append(doorman)
        self._process.poller.add(listener.fileno(), doorman)

    def welcome(self, sock: socket.socket, accept: Callable[[Deadline], Transport] | None = None) -> None:
        """Greet an accepted connection on a thread of its own; too many that have proved nothing: the oldest goes.

        Args:
            accept: greets in some other way than `Paths.accept`; ``sock`` is what is shut to end it.
        """
        with self._lock:
            self._unproven[id(sock)] = sock
            crowded = len(self._unproven) > limits.MAX_UNPROVEN_CONNECTIONS
            oldest = self._unproven.pop(next(iter(self._unproven))) if crowded else None
        if oldest is not None:
            _shut(oldest)
        try:
            self._process.spawn(lambda: self._greet_and_attach(sock, accept), "hybriddist-greeter")
        except RuntimeError:  # the system allows no more threads: whoever it is hears that at once
            with self._lock:
                self._unproven.pop(id(sock), None)
            sock.close()

    def _greet_and_attach(self, sock: socket.socket, accept: Callable[[Deadline], Transport] | None) -> None:
        deadline = Deadline(limits.HANDSHAKE_SECONDS)
        try:
            if accept is not None:
                transport = accept(deadline)
            else:
                transport = self._process.paths.accept(sock, self._process.cookie, deadline)
        except (HybridDistError, OSError):
            # Whoever it was hears nothing, least of all why.
            sock.close()
            return
        finally:
            with self._lock:
                self._unproven.pop(id(sock), None)
        self.accept(transport)

    def accept(self, transport: Transport) -> None:
        """Let somebody introduce himself on a proven transport."""
        self._attach(Peer(self._process, transport, Protocol(Role.ACCEPTOR, None)))

    # ---- connecting -------------------------------------------------------------------------------------------

    def connect(self, pid: int) -> Peer:
        """The connection to another process of the cluster, made now; concurrent callers share one attempt.

        Raises:
            NoSuchProcessError, ProcessExitedException, TopologyError, ConnectError.
        """
        process = self._process
        other = member(process, pid)
        process.membership.check_topology(process.pid, pid)
        with self._lock:
            attempt = self._connecting.get(pid)
            mine = attempt is None
            if attempt is None:
                attempt = self._connecting[pid] = Completion()
        if not mine:
            attempt.wait(Deadline(process.settings.worker_timeout_seconds))
            if attempt.outcome:
                raise copy(attempt.content) from attempt.content
            return self._connected(pid)
        failure: BaseException | None = None
        try:
            if pid not in process.peers:
                if DRIVER in (process.pid, pid):  # the driver makes its connections itself, once
                    raise self.exit_error(pid)
                self._connect_workers(other)
            return self._connected(pid)
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._lock:
                del self._connecting[pid]
            # Whoever waited hears the same. An interrupt is the first one's alone: the others find no connection.
            attempt.complete(-1 if isinstance(failure, Exception) else 0, failure)
            del failure  # or it would hold this frame, and the frame it

    def _connect_workers(self, member: Member) -> None:
        process, pid = self._process, member.pid
        try:
            if process.pid > pid:
                self._dial_worker(member)
            else:
                self._ask_for(pid)
        except ProcessExitedException:
            raise
        except (HybridDistError, OSError) as error:
            # Most likely because it is gone: then the driver is about to say so, and that is the better answer.
            if process.membership.wait_gone(pid, _REASON_SECONDS):
                raise self.exit_error(pid) from error
            if isinstance(error, RemoteException):
                raise ConnectError(f"process {pid} could not connect to process {process.pid}: {error}") from error
            raise

    def _connected(self, pid: int) -> Peer:
        peer = self._process.peers.get(pid)
        if peer is None:
            self._process.membership.require(pid)
            raise ConnectError(f"process {pid} could not be reached from process {self._process.pid}", str(pid))
        return peer

    def _ask_for(self, pid: int) -> None:
        """Have the higher worker connect to this one; done when it has said who it is."""
        identified = self._awaited[pid] = Completion()
        try:
            self._process.fetch_call(bring_together, DRIVER, (self._process.pid, pid), {})
            if pid not in self._process.peers:
                identified.wait(Deadline(self._process.settings.worker_timeout_seconds))
        finally:
            self._awaited.pop(pid, None)

    def _dial_worker(self, member: Member) -> None:
        deadline = Deadline(self._process.settings.worker_timeout_seconds)
        transport = self._dial_streams(member, deadline)
        if transport is None:
            transport = self._process.paths.dial(member.addresses, member.transport, self._process.cookie, deadline)
        peer = Peer(self._process, transport, Protocol(Role.CONNECTOR, None), member.pid)
        # The introduction goes first, so before any other thread can find the peer and send something.
        peer.send(Identify(payload.dumps({"pid": self._process.pid, "to": member.pid})[0]))
        self._process.peers[member.pid] = peer
        self._attach(peer)

    def _dial_streams(self, member: Member, deadline: Deadline) -> Transport | None:
        """By the member's manager, if it is reached that way; None: it has an address."""
        if not member.streams:
            return None
        if self.dialer is not None:
            return self.dialer(member, deadline)
        if member.addresses:
            return None
        raise ConnectError(
            f"process {member.pid} is reached only by connections of its manager ({member.streams}), and process "
            f"{self._process.pid} has none: its program calls init_worker(cookie, manager)",
            member.streams,
        )

    def _attach(self, peer: Peer, first: Any = None) -> None:
        """Let a peer's frames flow."""
        process = self._process
        self._buried[peer] = Completion()
        if first is not None:
            peer.send(first)
        process.poller.add(peer.transport.fileno(), peer)
        if process.leaving.is_set():  # it may have come too late to be closed with the others
            peer.lose(TransportError("this process is leaving"))
        try:
            peer.on_ready()
        except Exception:  # a bug of ours; nobody else would close the connection
            peer.lose(InternalError("internal error while receiving"))
            raise

    # ---- joining ----------------------------------------------------------------------------------------------

    def join(self, pid: int, transport: Transport, fields: dict[str, Any], deadline: Deadline) -> tuple[Peer, Any]:
        """The driver's side: make the process behind ``transport`` member ``pid``.

        Returns:
            The peer, and what the worker says of itself.

        Raises:
            TimeoutError, ProcessExitedException.
        """
        process = self._process
        peer = Peer(process, transport, Protocol(Role.CONNECTOR, None), pid)
        answer = self._joining[peer] = Completion()
        try:
            process.peers[pid] = peer
            self._attach(peer, Join(payload.dumps(fields)[0]))
            process.start()
            process.wait(answer, peer, deadline)
            if not answer.done:
                peer.lose(TransportError("no answer to Join"))
                raise TimeoutError(f"worker {pid} did not answer in time")
            if answer.outcome:
                raise answer.content
            return peer, answer.content
        finally:
            self._joining.pop(peer, None)

    def joining(self, peer: Peer, fields: dict[str, Any]) -> None:
        """The worker's side: the driver's Join has come."""
        process = self._process
        if self.arrived.done:
            raise RemoteProtocolError("a second process says it is the driver")
        peer.pid = DRIVER
        process.pid = fields["pid"]
        process.references.become(process.pid)
        process.membership = Roster(process.pid)
        process.membership.replace(fields["members"])
        process.peers[DRIVER] = peer
        peer.post(Joined(payload.dumps(process.describe(fields))[0]))
        self.arrived.complete(0, fields)

    def joined(self, peer: Peer, fields: dict[str, Any]) -> None:
        """The driver's side: a worker has answered."""
        answer = self._joining.get(peer)
        if answer is None:
            raise RemoteProtocolError(f"process {peer.pid} joins twice")
        answer.complete(0, fields)

    def identified(self, peer: Peer, fields: dict[str, Any]) -> None:
        """A worker has connected to this one and says who it is."""
        pid, to = (fields.get("pid"), fields.get("to")) if isinstance(fields, dict) else (None, None)
        own = self._process.pid
        if not isinstance(pid, int) or to != own or pid <= own or pid in self._process.peers:
            raise RemoteProtocolError(f"process {pid!r} connects to {to!r}, but this is {own}")
        peer.pid = pid
        self._process.peers[pid] = peer
        awaited = self._awaited.get(pid)
        if awaited is not None and not awaited.done:
            awaited.complete(0, None)

    # ---- the end of a connection ------------------------------------------------------------------------------

    def bury(self, peer: Peer, error: BaseException) -> None:
        """A connection has ended: find the reason, tell everybody who waits. Runs on a thread of its own."""
        process = self._process
        if isinstance(error, TransportError) and not process.leaving.is_set():
            receive_rest(peer)
        peer.abort()
        try:
            if peer.pid and not process.leaving.is_set():
                if process.pid != DRIVER and peer.pid == DRIVER:
                    process.driver_gone()
                reason = self._reason(peer)
                if process.peers.get(peer.pid) is peer:
                    del process.peers[peer.pid]
                if reason is not None:
                    process.store.drop_process(peer.pid)
                    process.references.drop_process(peer.pid)
        finally:  # whatever happens, nobody waits for ever
            self.over(peer)
            answer = self._joining.get(peer)
            if answer is not None and not answer.done:
                answer.complete(-1, self.exit_error(peer.pid, str(error)))

    def over(self, peer: Peer) -> None:
        """A connection has ended, and why is as well known as it will ever be: tell everybody who waits."""
        peer.fail_pending(lambda: self.exit_error(peer.pid))
        stop_maps_of(peer)
        buried = self._buried.pop(peer, None)
        if buried is not None:
            buried.complete(0, None)

    def _reason(self, peer: Peer) -> ExitReason | None:
        membership = self._process.membership
        if self._process.on_exit is not None:
            return self._process.on_exit(peer.pid, peer)
        membership.wait_gone(peer.pid, _REASON_SECONDS)
        return membership.why_gone(peer.pid)

    def left(self, pid: int, reason: ExitReason) -> None:
        """The driver says that a process is gone."""
        self._process.membership.gone(pid, reason)
        awaited = self._awaited.get(pid)
        if awaited is not None and not awaited.done:
            awaited.complete(-1, None)  # it will not say who it is any more
        peer = self._process.peers.get(pid)
        if peer is not None:
            peer.lose(TransportError(reason.text))
        else:
            self._process.store.drop_process(pid)
            self._process.references.drop_process(pid)

    def announce_left(self, pid: int, reason: ExitReason) -> None:
        """The driver's side: tell every worker that a process is gone."""
        body = payload.dumps({"pid": pid, "reason": reason})[0]
        for peer in list(self._process.peers.values()):
            if peer.pid != pid and peer.lost is None:
                try:
                    peer.post(Left(body))
                except (TransportError, LocalProtocolError):
                    pass  # it is going itself, or still joining: then it gets the whole list soon

    def gone(self, peer: Peer) -> Exception:
        """The exception for whoever finds the connection ended; waits for the reason to be known."""
        buried = self._buried.get(peer)
        if buried is not None:
            buried.wait(Deadline(2 * _REASON_SECONDS))
        return self.exit_error(peer.pid)

    def exit_error(self, pid: int, otherwise: str = "connection lost") -> ProcessExitedException:
        """The exception that tells of the end of ``pid``."""
        reason = self._process.membership.why_gone(pid)
        return ProcessExitedException(pid, otherwise) if reason is None else reason.exception(pid)

    def close(self) -> None:
        """Accept nothing more."""
        for doorman in self._doormen:
            self._process.poller.remove(doorman.listener.fileno(), doorman)
            doorman.listener.close()
        self._doormen.clear()
        with self._lock:
            unproven = list(self._unproven.values())
        for sock in unproven:
            _shut(sock)
        for peer in list(self._buried):
            if peer not in self._process.peers.values():  # those are closed in good order
                peer.abort()
                self.over(peer)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed by the other side or by its greeter
