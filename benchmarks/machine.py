"""On what the figures were measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def facts() -> dict[str, str]:
    """Machine, system and versions, for the head of the table and the JSON file."""
    import numpy

    import hybriddist

    # Other processes that run while we measure: a load near the number of CPUs makes the figures worthless.
    load = f"{os.getloadavg()[0]:.2f}"
    return {
        "machine": f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "load": load,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": numpy.__version__,
        "hybriddist": str(getattr(hybriddist, "__version__", "unknown")),
    }
