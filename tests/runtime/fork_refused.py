"""A runner whose template finds that the system allows no more processes."""

from __future__ import annotations

import errno
import os

from tests.runtime.fake_worker import run

NAME = f"{__name__}:run"
__all__ = ["NAME", "run"]


def _refuse() -> int:
    raise OSError(errno.EAGAIN, "refused")


def refuse_forks() -> None:
    """Called by the template's import of this module, in no other process."""
    os.fork = _refuse


if os.environ.get("FORK_REFUSED"):
    refuse_forks()
