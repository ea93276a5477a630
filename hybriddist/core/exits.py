"""Why a process is gone: what its exception will say."""

from __future__ import annotations

import signal as signals

from hybriddist.errors import ProcessExitedException
from hybriddist.records import Record


class ExitReason(Record):
    """The end of a process.

    Attributes:
        text: a sentence for people.
        exitcode: its exit code, where known.
        signal: the signal that ended it, where known.
        stderr_tail: its last lines on stderr.
    """

    text: str
    exitcode: int | None = None
    signal: int | None = None
    stderr_tail: str = ""

    @classmethod
    def removed(cls) -> ExitReason:
        """It left because it was asked to."""
        return cls("it was removed")

    @classmethod
    def lost(cls) -> ExitReason:
        """Its connection ended, and nobody knows more."""
        return cls("connection lost")

    @classmethod
    def ended(cls, exitcode: int | None, signal: int | None, stderr_tail: str = "") -> ExitReason:
        """It ended with an exit code or by a signal."""
        if signal is not None:
            return cls(f"killed by signal {signal} ({_name(signal)})", None, signal, stderr_tail)
        if exitcode is not None:
            return cls(f"it exited with code {exitcode}", exitcode, None, stderr_tail)
        return cls.lost()._replace(stderr_tail=stderr_tail)

    def or_better(self, earlier: ExitReason) -> ExitReason:
        """The one of two reasons that knows more; the earlier one if they know the same."""
        return self if self._knowledge() > earlier._knowledge() else earlier

    def _knowledge(self) -> int:
        known = self.exitcode is not None or self.signal is not None
        return 2 * known + bool(self.stderr_tail) + (self.text != "connection lost")

    def exception(self, pid: int) -> ProcessExitedException:
        """The exception for whoever wanted something of process ``pid``."""
        return ProcessExitedException(
            pid, self.text, exitcode=self.exitcode, signal=self.signal, stderr_tail=self.stderr_tail
        )


def _name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"
