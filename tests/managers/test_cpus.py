"""CPUs by affinity and by the quotas of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybriddist.managers import cpus
from hybriddist.managers.cpus import cgroup_quota, usable_cpus


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def membership(root: Path, text: str) -> Path:
    file = root / "membership"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("limit", "quota"), [("max 100000", None), ("150000 100000", 1.5), ("", None), ("nonsense", None), ("5 0", None)]
)
def test_version_2(tmp_path: Path, limit: str, quota: float | None) -> None:
    group(tmp_path, "user/job", cpu__max=limit)
    assert cgroup_quota(tmp_path, membership(tmp_path, "0::/user/job\n")) == quota


def test_enclosing_groups_count(tmp_path: Path) -> None:
    group(tmp_path, "user", cpu__max="200000 100000")
    group(tmp_path, "user/job", cpu__max="800000 100000")
    assert cgroup_quota(tmp_path, membership(tmp_path, "0::/user/job\n")) == 2.0


def test_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    group(tmp_path, "", cpu__max="300000 100000")
    assert cgroup_quota(tmp_path, membership(tmp_path, "0::/docker/0123abcd\n")) == 3.0


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("limit", "quota"), [("-1", None), ("50000", 0.5)])
def test_version_1(tmp_path: Path, mount: str, limit: str, quota: float | None) -> None:
    group(tmp_path, f"{mount}/job", cpu__cfs_quota_us=limit, cpu__cfs_period_us="100000")
    text = "9:name=systemd:/\n4:memory:/job\n3:cpuset:/job\n2:cpu,cpuacct:/job\n"
    assert cgroup_quota(tmp_path, membership(tmp_path, text)) == quota


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None
    assert cgroup_quota(tmp_path, membership(tmp_path, "garbage\n\n:\n")) is None


@pytest.mark.parametrize(("quota", "count"), [(None, 4), (0.5, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_the_smaller_of_both(monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _ospid: {0, 1, 2, 3}, raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: quota)
    assert usable_cpus() == count


def test_here() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
