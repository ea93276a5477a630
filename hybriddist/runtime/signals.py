"""Which thread a Ctrl-C strikes.

The kernel gives a signal for a process to whichever of its threads looks first, and Python then only notes it for the
main thread: a `time.sleep` there is begun anew, and the interrupt waits for its end (seen in half of the tries, with
a thread beside it that wakes every 1.5 ms). So the library's threads keep SIGINT away from themselves, and the main
thread is the only one it can strike. While a thread runs user code it takes signals as any thread does, because
programs that it starts inherit what it keeps away.
"""

from __future__ import annotations

import signal
import threading
from typing import Final

_KEPT_AWAY: Final = frozenset({signal.SIGINT})


def leave_to_main_thread() -> None:
    """From now on the calling thread takes no SIGINT; without effect on the main thread, whose it is."""
    if threading.get_ident() != threading.main_thread().ident:
        signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_AWAY)


def take_as_usual() -> None:
    """From now on the calling thread may take SIGINT."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT_AWAY)
