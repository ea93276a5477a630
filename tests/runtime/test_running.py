"""Calls as a process runs them for others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hybriddist.core.messages import Call, Mode
from hybriddist.errors import TransportClosed
from hybriddist.runtime.running import Each


def test_an_item_is_not_begun_when_its_map_is_over() -> None:
    """It may be received when all else of the connection's end has been done already: nobody comes back to stop it."""
    peer: Any = SimpleNamespace(each=[], lost=None)
    each = Each(peer, Call(-8, Mode.EACH, 0, 0, 3, b"", ()), None)
    begun: list[int] = []
    each._function = begun.append
    each.call_if_wanted(-8, (1,))
    each.drop(-7)
    each.call_if_wanted(-7, (2,))
    peer.lost = TransportClosed("the process has ended")
    each.call_if_wanted(-6, (3,))
    assert begun == [1]
