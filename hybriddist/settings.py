"""What the environment says: the only reader of ``HYBRIDDIST_*`` variables.

``HYBRIDDIST_WORKER_TIMEOUT``
    Seconds from the launch of a worker to its join, and how long a new worker waits for the driver (60).
``HYBRIDDIST_SILENCE_LIMIT``
    Seconds without a byte from another node before it counts as lost (30). The driver's value goes to its workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from hybriddist import limits
from hybriddist.records import Record


class Settings(Record):
    """Settings of one process, in seconds."""

    worker_timeout_seconds: float = limits.WORKER_TIMEOUT_SECONDS
    silence_limit_seconds: float = limits.SILENCE_LIMIT_SECONDS

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environment`` (default: ``os.environ``).

        Raises:
            ValueError: a variable is not a positive number; the text names it.
        """
        variables = os.environ if environment is None else environment
        return cls(
            worker_timeout_seconds=_positive(variables, "HYBRIDDIST_WORKER_TIMEOUT", limits.WORKER_TIMEOUT_SECONDS),
            silence_limit_seconds=_positive(variables, "HYBRIDDIST_SILENCE_LIMIT", limits.SILENCE_LIMIT_SECONDS),
        )


def _positive(variables: Mapping[str, str], name: str, default: float) -> float:
    text = variables.get(name)
    if text is None or not text.strip():
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds, not {text!r}")
    return value
