"""How many CPUs this process may use: the machine's, its affinity, and the quota of its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1. A quota of one and a half CPUs counts as two."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13: affinity, and the user's PYTHON_CPU_COUNT
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def cgroup_quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """CPUs' worth of time that the control groups of this process allow; ``None`` without a limit.

    Limits of all enclosing groups count. Both versions of the interface are read; in a container the paths that
    the kernel reports may not exist, and the root of the mount is the container's own group.

    Args:
        root: where the groups are mounted.
        membership: the file that names the groups of this process.
    """
    quotas: list[float] = []
    for line in _read(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            bases, limit = [root, root / "unified"], _version_2
        elif "cpu" in controllers.split(","):
            bases, limit = [root / controllers, root / "cpu"], _version_1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for base in bases:
            for group in (inside, *inside.parents):
                quota = limit(base / group)
                if quota is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _version_2(group: Path) -> float | None:
    quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
    return _ratio(quota, period)


def _version_1(group: Path) -> float | None:
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """ "max" (version 2) and -1 (version 1) mean no limit."""
    try:
        ratio = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None
    return ratio if ratio > 0 else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
