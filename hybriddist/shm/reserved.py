"""Slots of the arena in which user code computes its result, and when such a slot may be sent instead of a copy.

The receiver's array must be its own. So a slot is given away only if nobody here can see it any more: no array, slice,
or other view that the user's code has kept, in whatever way. That is not counted, it is tried. Every view, however
derived, keeps the exporter that it was made from alive (`core/lease.py`); so all that the library holds is let go, and
if the exporter then dies, nobody else holds anything::

    lend     exporter 1 <- user's arrays                      views: 1
    settle   exporter 1 <- user's arrays, exporter 2 <- frame  views: 2   the frame's buffer is replaced by a new view;
             exporter 1 dies, unless somebody has kept one     views: 1   with the old one the pickled array goes
    give     only the frame's is left: the token goes; two are left: a copy goes, as of any other array

The last exporter that dies sets the slot free, unless it was sent: then it is the receiver's. A buffer that was not
settled is never given away: whoever sends it has the value still.

A copy of this process that user code forks has views that are not counted here, so from then on slots that are reserved
are not given away (`distrust`).

What this module does not know: how slots are found (`arena.py`), and what a frame is.
"""

from __future__ import annotations

from functools import partial
from threading import RLock
from typing import Any

from hybriddist.core.lease import Lessor
from hybriddist.shm.slots import FREE, SENT, Slab


class _Reservation:
    """A slot, and how many exporters of its memory are alive."""

    __slots__ = ("departing", "length", "number", "slab", "trusted", "views")

    def __init__(self, slab: Slab, number: int, length: int) -> None:
        self.slab = slab
        self.number = number
        self.length = length
        self.departing = False
        """Whether one of the exporters is that of a frame."""
        self.trusted = True
        self.views: list[bool] = []
        """An item for each exporter. A list, because `pop` is atomic: of those that die only one is the last."""


class Reservations:
    """The reserved slots of one arena. The finalisers of views take no lock, and may run at any moment on any thread.

    Args:
        lessor: makes the views.

    Attributes:
        by_address: what is reserved now. A finaliser may take something out at any moment.
    """

    def __init__(self, lessor: Lessor) -> None:
        self._lessor = lessor
        self.by_address: dict[int, _Reservation] = {}
        self._lock = RLock()  # no frame's view begins while it is found out whether a buffer is one

    def lend(self, slab: Slab, number: int, length: int) -> memoryview:
        """A writable view of a slot in state RESERVED."""
        reservation = _Reservation(slab, number, length)
        address = self._lessor.address(slab.memory) + slab.offset(number)
        self.by_address[address] = reservation
        return self._view(reservation, address, length, departing=False)

    def settle(self, buffers: list[Any]) -> None:
        """Replace buffers of a frame that begin with a reserved slot by views of it that hold nothing of the user's."""
        for index in range(len(buffers)):  # no variable for the buffer, which would keep it
            address = self._lessor.address(buffers[index])
            reservation = self.by_address.get(address)
            if reservation is not None and len(buffers[index]) <= reservation.length:
                with self._lock:
                    view = self._view(reservation, address, len(buffers[index]), departing=True)
                buffers[index] = view

    def give(self, buffer: Any) -> int | None:
        """The token of the slot that a settled buffer lies in, which is the receiver's from now on; None: copy it."""
        address = self._lessor.address(buffer)
        with self._lock:
            reservation = self.by_address.get(address)
            # First the number: while it is one, that is the exporter of the buffer in hand, the frame's or the user's.
            if (
                reservation is None
                or len(reservation.views) != 1
                or not reservation.departing
                or not reservation.trusted
                or len(buffer) > reservation.length
            ):
                return None
            del self.by_address[address]
            reservation.slab.states[reservation.number] = SENT
            return reservation.slab.token(reservation.number)

    def distrust(self) -> None:
        """Somebody who is not counted may see all that is reserved now."""
        for reservation in list(self.by_address.values()):
            reservation.trusted = False

    def _view(self, reservation: _Reservation, address: int, length: int, *, departing: bool) -> memoryview:
        # An item below which no exporter's is: whoever takes it is the last.
        reservation.views.append(bool(reservation.views))
        reservation.departing = departing
        slab = reservation.slab
        on_release = partial(self._end_view, reservation, address, departing)
        return self._lessor.lease(slab.memory, slab.offset(reservation.number), length, on_release)

    def _end_view(self, reservation: _Reservation, address: int, departing: bool) -> None:
        """A finaliser."""
        if departing:
            reservation.departing = False
        if not reservation.views.pop() and self.by_address.get(address) is reservation:
            # First forgotten, then free: who takes it then may be lent the same address.
            del self.by_address[address]
            reservation.slab.states[reservation.number] = FREE
