"""Read where a new worker listens: the line ``hybriddist_worker:PORT#ADDR`` on its stdout.

The command that starts a worker may print other lines first (banners, messages of modules); they are passed on to the
driver's stdout. Four things end the wait without an address, and each has its text: the command ended, it printed too
much (what comes then is dropped), it announced something that is no address, the time is over. What this module does
not know: who started the command, and who connects afterwards.
"""

from __future__ import annotations

import re
from threading import Condition
from typing import Final, NoReturn

from hybriddist.deadline import Deadline
from hybriddist.errors import LaunchError, LaunchTimeout
from hybriddist.limits import MAX_CHARACTERS_BEFORE_HEADER, MAX_LINES_BEFORE_HEADER
from hybriddist.managers.base import WorkerConfig
from hybriddist.runtime.child import Child, ExitStatus
from hybriddist.runtime.output import OutputRelay, WorkerOutput

COMMAND_ENDED: Final = "Unable to read host:port string from worker. Launch command exited with error?"
TOO_MANY_LINES: Final = "Unexpected output from worker launch command. Host:port string not found."
MALFORMED: Final = "The launch command announced a worker with {!r}, which is not hybriddist_worker:PORT#ADDR."
TIMED_OUT: Final = "Timed out waiting to read host:port string from worker."

_HEADER: Final = re.compile(r"hybriddist_worker:([0-9]{1,5})#(\S+)\s*")
_MEANT_AS_HEADER: Final = re.compile(r"hybriddist_worker:[^#\s]*#")
_SHOWN_CHARACTERS: Final = 100

_SETTLE_SECONDS: Final = 1.0
"""After the end of a command: for its exit status and its last lines, which come by other ways."""


def parse_announcement(line: str) -> tuple[str, int] | None:
    """Host and port of the announcement; ``None`` for any other line."""
    match = _HEADER.fullmatch(line)
    if match is None or not 0 < int(match[1]) < 65536:
        return None
    return match[2], int(match[1])


def read_announcement(config: WorkerConfig, deadline: Deadline, relay: OutputRelay) -> tuple[str, int]:
    """Wait until the worker announces itself on ``config.io``, which the relay owns from now on.

    ``config.environ["output"]`` is afterwards the worker's `WorkerOutput`; ``config.environ["stderr"]``, if there is
    one, is relayed as well. A launch that fails leaves nothing behind: process, leash and pipes are ended here.

    Args:
        config: what the manager's `launch` appended. Its ``process`` may be a `Child`: then its end is noticed at
            once, also where something else holds the pipe open.
        deadline: for the announcement. What is in the pipe is read even if it has expired already, so that workers
            waited for in turn may share one deadline.
        relay: the cluster's relay of output.

    Returns:
        host and port.

    Raises:
        LaunchError: the command ended, printed too much, or announced something else than a host and a port.
        LaunchTimeout: the deadline came.
    """
    environ = config.environ = {} if config.environ is None else config.environ
    watch = _Watch()
    child = config.process if isinstance(config.process, Child) else None
    output = environ["output"] = relay.attach(config.io, environ.get("stderr"), watch.see)
    if child is not None:
        child.on_exit(watch.exited)
    if not watch.wait(deadline) or not watch.decided():
        # The deadline came, or the command ended: its last lines may still be in the pipe.
        relay.drain(output, _SETTLE_SECONDS)
    watch.done = True
    if watch.address is not None:
        return watch.address
    _fail(config, child, watch, output, relay)


def _fail(
    config: WorkerConfig, child: Child | None, watch: _Watch, output: WorkerOutput, relay: OutputRelay
) -> NoReturn:
    status = None
    if watch.malformed is not None:
        text = MALFORMED.format(watch.malformed[:_SHOWN_CHARACTERS])
    elif watch.too_many:
        text = TOO_MANY_LINES
    elif watch.ended:
        text = COMMAND_ENDED
        status = child.wait(Deadline(_SETTLE_SECONDS)) if child is not None else None
    else:
        text = TIMED_OUT
    if child is not None:
        child.kill()
        child.release()
    relay.detach(output)
    relay.drain(output, _SETTLE_SECONDS)  # until all that it had written is printed, or dropped
    if watch.dropped:
        relay.say(output, "... more lines dropped")
        relay.drain(output, _SETTLE_SECONDS)
    error = LaunchTimeout if text is TIMED_OUT else LaunchError
    message = text if status is None else f"{text} ({status})"
    raise error(message, host=config.host or "localhost", stage="announce", stderr_tail=output.stderr_tail())


class _Watch:
    """What has been seen so far; filled by the relay's thread and by who learns of the exit."""

    def __init__(self) -> None:
        self.address: tuple[str, int] | None = None
        self.too_many = False
        self.malformed: str | None = None
        self.ended = False
        self.done = False
        self.dropped = False
        self._lines = 0
        self._characters = 0
        self._changed = Condition()

    def see(self, stream: str, line: str | None) -> bool:
        """Look at a line; take it if it is the announcement, or one of the many of a command that has been given up."""
        if self.too_many and line is not None:
            self.dropped = True
            return True
        if stream != "stdout" or self.done or self.decided():
            return False
        with self._changed:
            if line is None:
                self.ended = True
            else:
                self._lines += 1
                self._characters += len(line)
                self.address = parse_announcement(line)
                if self.address is None:
                    self.malformed = line if _MEANT_AS_HEADER.match(line) else None
                    self.too_many = (
                        self._lines > MAX_LINES_BEFORE_HEADER or self._characters > MAX_CHARACTERS_BEFORE_HEADER
                    )
            self._changed.notify_all()
            return self.address is not None

    def exited(self, _status: ExitStatus) -> None:
        """The process has ended (its output may still be in the pipe)."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def decided(self) -> bool:
        """Whether no later line can change the outcome."""
        return self.address is not None or self.malformed is not None or self.too_many

    def wait(self, deadline: Deadline) -> bool:
        """Wait for news. False if the deadline came first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.decided() or self.ended, deadline.remaining())
