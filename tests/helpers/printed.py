"""What the driver prints, for tests that look at it while more is being printed."""

from __future__ import annotations

import io
import sys

from tests.helpers.polling import poll_for


class Printed:
    """What the driver prints in a ``with`` block. (Pytest's capture loses what is written while it is being read.)"""

    def __enter__(self) -> Printed:
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._streams = io.StringIO(), io.StringIO()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._before

    @property
    def out(self) -> str:
        return self._streams[0].getvalue()

    @property
    def err(self) -> str:
        return self._streams[1].getvalue()

    def wait_for(self, text: str, stream: str = "out") -> None:
        poll_for(lambda: text in getattr(self, stream), what=repr(text))
