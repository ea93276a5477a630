"""What a process asks of others: its half of calls and requests, up to the value.

What this module does not know: how a thread waits for the answer (``process.py``), and what is done there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from hybriddist.core import captured as captured_module
from hybriddist.core import payload
from hybriddist.core.definitions import Definitions
from hybriddist.core.messages import ANSWERED, Call, Cancel, Define, Forget, Mode, Outcome, Request, new
from hybriddist.errors import RemoteException, TransportError
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.shared_functions import place
from hybriddist.runtime.waiting import wait_for_room

if TYPE_CHECKING:
    from hybriddist.runtime.blocks import Blocks
    from hybriddist.runtime.claims import References
    from hybriddist.runtime.links import Links
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process

# Plain numbers: looking up a member of an enumeration costs as much as a dictionary.
_VALUE = int(Outcome.VALUE)
_FETCH = int(Mode.FETCH)

_ROW = 1 << 16

LOST = -1
"""Outcome of a completion whose content is the exception to raise: the peer is gone."""


class Asking:
    """The part of a `Process` that sends calls and requests."""

    pid: int
    references: References
    blocks: Blocks
    links: Links

    def __init__(self) -> None:
        self.definitions = Definitions(self.references.encode_for_all, self._place)
        self._ids = itertools.count(1)
        self._rows = itertools.count(1)
        """Each is a row of `_ROW` negative call ids, taken at once for the calls of one message."""

    def start_call(
        self, function: Any, peer: Peer, args: tuple[Any, ...], kwargs: dict[str, Any], mode: int, whence: int, id_: int
    ) -> Completion:
        """Send a `Call`; its completion ends with a `Result` in modes FETCH and WAIT, and never in the others.

        Raises:
            SerializeError: something cannot be pickled; nothing was sent.
            ProcessExitedException: the process is gone.
        """
        key = 0
        try:
            key = self.function_key(peer, function)
            if mode == _FETCH and self.blocks.sent:
                args, bits = self.blocks.strip(args, peer.pid)
                if bits:
                    whence, id_ = -bits, self.pid
            if not key:
                body, buffers = self.encode((function, args, kwargs), peer.pid, payload.CALL_LABELS)
            elif args or kwargs:
                body, buffers = self.encode((args, kwargs), peer.pid, payload.ARGUMENTS_LABELS)
            else:
                body, buffers = b"", ()
            if whence < 0:
                self.blocks.count_stripped(args, -whence, peer.pid)
            call_id = next(self._ids)
            completion = Completion()
            if mode & ANSWERED:
                peer.pending[call_id] = completion
            try:
                peer.send(new(Call, (call_id, mode, key, whence, id_, body, buffers)))
            except BaseException as error:
                self._withdraw(peer, (call_id,), error)
                raise
        except TransportError:
            raise self.links.gone(peer) from None
        finally:
            if key:
                peer.functions_out.release(key)
        return completion

    def start_each(
        self,
        function: Any,
        peer: Peer,
        items: Sequence[tuple[Any, ...]],
        completions: Sequence[Completion],
        flags: int = 0,
    ) -> None:
        """Send several calls in one message. They run one after the other; each completion ends with a `Result`.

        Args:
            flags: a sum of `EachFlag`.

        Raises:
            SerializeError, ProcessExitedException: as `start_call`; nothing was sent.
        """
        key = 0
        try:
            key = self.function_key(peer, function)
            body, buffers = self.encode(items if key else (function, items), peer.pid)
            count = len(items)
            first = next(self._rows) * -_ROW
            pending = peer.pending
            for number, completion in enumerate(completions, first):
                pending[number] = completion
            try:
                peer.send(new(Call, (first, Mode.EACH, key, flags, count, body, buffers)))
            except BaseException as error:
                self._withdraw(peer, range(first, first + count), error)
                raise
        except TransportError:
            raise self.links.gone(peer) from None
        finally:
            if key:
                peer.functions_out.release(key)

    def _withdraw(self, peer: Peer, call_ids: Iterable[int], error: BaseException) -> None:
        """The sending of calls has ended with an error: nobody will ask for their ends."""
        for call_id in call_ids:
            peer.pending.pop(call_id, None)
        if isinstance(error, Exception):
            return
        try:  # a Ctrl-C came while they were sent: they have gone, most likely
            for call_id in call_ids:
                peer.post(Cancel(call_id))
        except TransportError:
            pass  # they end with the connection

    def function_key(self, peer: Peer, function: Any) -> int:
        """The key by which a call may name ``function``, 0 if it has to carry it. Sends what has to go before.

        A key is to be released (`FunctionSender.release`) once the call is sent.

        Raises:
            SerializeError: it cannot be pickled; nothing was sent.
        """
        functions = peer.functions_out
        with peer.functions_lock:
            key = functions.key_for(function)
            if key is not None and functions.has_forgotten:
                self._forget(peer)
        if key is None:
            # Without the lock: pickling may run code of the user's, which may call or wait for others that do.
            definition = self.definitions.define(function)
            with peer.functions_lock:
                key, is_new = functions.adopt(function, definition)
                try:
                    if functions.has_forgotten:
                        self._forget(peer)  # before: the other end need not keep two large ones
                    if is_new and definition is not None:
                        if definition.place is None:
                            peer.send(Define(key, definition.body, definition.buffers))
                        else:
                            body, buffers, _ = self.references.encode(definition.place[0], peer.pid)
                            peer.send(Define(key, body, buffers, is_handle=True))
                except BaseException:
                    if key:
                        functions.withdraw(key)
                    raise
        return key

    def _place(self, body: bytes, buffers: Sequence[memoryview]) -> Any:
        return place(cast("Process", self), body, buffers)

    def check_function(self, peer: Peer, function: Any) -> None:
        """See whether a function can be sent.

        Raises:
            SerializeError: it cannot.
        """
        key = self.function_key(peer, function)
        if key:
            peer.functions_out.release(key)
        else:
            payload.dumps(function, payload.FUNCTION_LABELS)

    def _forget(self, peer: Peer) -> None:
        for old in peer.functions_out.take_forgotten():
            peer.send(Forget(old))

    def start_request(
        self, peer: Peer, operation: int, rrid: RRID, body: Any = b"", buffers: Any = (),
        completion: Completion | None = None,
    ) -> Completion:  # fmt: skip
        """Ask the holder of a reference for an operation; its completion ends with a `Result`.

        Raises:
            ProcessExitedException: the process is gone; nothing was sent.
            KeyboardInterrupt: if ``completion`` is pending, the request was sent, and may bring what is to be kept.
        """
        call_id = next(self._ids)
        if completion is None:
            completion = Completion()
        request = new(Request, (call_id, operation, rrid.whence, rrid.id, body, buffers))
        peer.pending[call_id] = completion
        try:
            # Not `send`: at its beginning a Ctrl-C could strike, before anything is sent.
            if not peer._send_now(request):
                wait_for_room(peer)
        except TransportError:
            peer.pending.pop(call_id, None)
            raise self.links.gone(peer) from None
        except Exception:
            peer.pending.pop(call_id, None)
            raise
        return completion

    def cancel_call(self, peer: Peer, completion: Completion) -> bool:
        """Tell the other side that a call or request need not be answered; False if it has been, or cannot be told.

        What has not begun then ends with CANCELLED; whoever waits for it still has to wait for that.
        """
        return bool(self.cancel_calls(peer, (completion,)))

    def cancel_calls(self, peer: Peer, completions: Iterable[Completion]) -> int:
        """Likewise for several; how many the other side was told of."""
        wanted = {id(completion) for completion in completions}
        told = 0
        try:
            for call_id, pending in list(peer.pending.items()):
                if id(pending) in wanted:
                    peer.post(Cancel(call_id))
                    told += 1
        except TransportError:
            pass  # it ends with the connection
        return told

    def abandon(self, peer: Peer, completion: Completion, error: BaseException) -> bool:
        """End a request here: its answer is not wanted any more. False if it has come already."""
        for call_id, pending in list(peer.pending.items()):
            if pending is completion and peer.pending.pop(call_id, None) is not None:
                completion.complete(LOST, error)
                return True
        return False

    def value_of(self, completion: Completion, peer: Peer) -> Any:
        """What a finished call or request brought: its value, or the exception raised here.

        Raises:
            RemoteException: the call raised there.
            ProcessExitedException: the process is gone.
            DeserializeError: the value cannot be unpickled here.
        """
        result = completion.content
        if completion.outcome == _VALUE:
            body = result.body
            return payload.loads(body, result.buffers) if body else None
        if completion.outcome == LOST:
            raise result
        if completion.outcome == Outcome.CANCELLED:
            from concurrent.futures import CancelledError

            raise CancelledError
        raise RemoteException(peer.pid, captured_module.load(result.body, result.buffers))

    def encode_item(self, value: Any, pid: int) -> tuple[bytes, Any, bool]:
        """As `encode`; and whether there are references in it."""
        references = self.references
        if not references.encoding and not references.likely:
            before = references.pickled
            body, buffers = payload.dumps(value)
            if references.pickled == before:
                return body, buffers, False
        return references.encode(value, pid)

    def encode(self, value: Any, pid: int, labels: Sequence[str] = ()) -> tuple[bytes, Any]:
        """Pickle a value for process ``pid``; references inside are credited to it."""
        references = self.references
        if not references.encoding and not references.likely:
            before = references.pickled
            encoded = payload.dumps(value, labels)
            if references.pickled == before:
                return encoded
        return references.encode(value, pid, labels)[:2]


def decline_value(completion: Completion) -> None:
    """Give up the references in what a call or request has brought: nobody takes it. Never blocks."""
    if completion.outcome == _VALUE and completion.content is not None:
        payload.decline(completion.content.body, completion.content.buffers)
