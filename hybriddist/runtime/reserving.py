"""Memory for the result of the call that a thread is at: in the connection to whoever asked.

What this module does not know: how the result gets there (`replies.py`), and what lies in the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


def reserve(process: Process, length: int) -> memoryview | None:  # shielded
    """Memory from which ``length`` bytes go to whoever asked without a copy; None: there is none, or nobody asked."""
    receiver = process.receiver
    errand = receiver.errand if receiver.is_main() else process.executor.errand()
    peer = None if errand is None else errand[0]
    if peer is None or peer.lost is not None:
        return None
    memory = peer.transport.reserve(length)
    if process.guard.pending:
        process.guard.deliver()
    return memory
