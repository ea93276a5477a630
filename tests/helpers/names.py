"""Names of parameters that are the same in every process: `pytest-xdist` compares them."""

from __future__ import annotations

import re


def name_of(thing: object) -> str:
    """Its repr without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
