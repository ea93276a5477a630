"""A program on a terminal: what it shows, typed lines, and Ctrl-C as the terminal makes it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import pytest

# The program's session gets the terminal, so that Ctrl-C goes to its foreground group, as in a shell.
_BEGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """Runs a command; to be closed.

    Args:
        command: the program and its arguments.
        environment: all of it.
        folder: the working directory.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str | os.PathLike[str]) -> None:
        self._fd, theirs = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, *command], stdin=theirs, stdout=theirs, stderr=theirs,
                env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs)
        self.text = ""
        """All that it has shown, with plain line ends."""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Read until a pattern is shown, after what was waited for before."""
        end = time.monotonic() + timeout
        while not (found := re.compile(pattern).search(self.text, self._seen)):
            if time.monotonic() > end or not self._read(0.1):
                pytest.fail(f"{pattern!r} did not come:\n{self.text}")
        self._seen = found.end()
        return found

    def wait(self, timeout: float = 20.0) -> int:
        """Read to the end; the exit status."""
        end = time.monotonic() + timeout
        while self._read(0.05) and time.monotonic() < end:
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        """Read what is there; False at the end."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how a terminal tells of the end
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
