"""Names for processes and references."""

from __future__ import annotations

from typing import Final, NamedTuple

DRIVER: Final = 1
"""The pid of the driver: the process that adds and removes workers."""


class RRID(NamedTuple):
    """The identity of a remote reference, unique in the cluster.

    ``whence`` is the pid of the process that created the reference, ``id`` a number unique there. Where the value
    lives is not part of the identity (``reference.where``).
    """

    whence: int
    id: int
