"""The check that every test is under can itself fail: each kind of leak is made, found, and taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers import leaks
from tests.helpers.polling import poll_for


def found_at_once(before: leaks.Footprint) -> str:
    return "\n".join(leaks.settle(before, timeout=0))


def test_nothing_is_found_where_nothing_is_left() -> None:
    before = leaks.Footprint.take()
    with open(os.devnull):
        pass
    assert leaks.settle(before) == []


def test_a_thread_is_found() -> None:
    before, stop = leaks.Footprint.take(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten", daemon=True)
    thread.start()
    assert "thread forgotten" in found_at_once(before)
    stop.set()
    thread.join()
    assert leaks.settle(before) == []


def test_a_descriptor_is_found() -> None:
    before = leaks.Footprint.take()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert f"descriptor {descriptor}" in found_at_once(before)
    os.close(descriptor)
    assert leaks.settle(before) == []


def test_a_child_is_found_alive_and_dead() -> None:
    before = leaks.Footprint.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert f"child process {child.pid}" in found_at_once(before)
    assert child.stdin is not None
    child.stdin.close()
    # WNOWAIT: it has ended, and nobody has asked for its exit code yet.
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None
    assert f"child process {child.pid}" in found_at_once(before)
    child.wait()
    assert leaks.settle(before) == []


@pytest.mark.skipif(not leaks.SEGMENTS.is_dir(), reason="shared memory has no folder on this system")
def test_a_segment_of_ours_is_found_and_those_of_others_are_not() -> None:
    before = leaks.Footprint.take()
    ours = leaks.SEGMENTS / f"hybriddist-{os.getpid()}-leak-check"
    others = leaks.SEGMENTS / f"hybriddist-{os.getpid()}0-leak-check"
    for path in (ours, others):
        path.touch()
    try:
        assert found_at_once(before) == f"shared memory {ours.name}"
    finally:
        for path in (ours, others):
            path.unlink()
    assert leaks.settle(before) == []


@pytest.mark.skipif(not leaks.HAS_PROC, reason="no /proc on this system")
def test_an_orphan_is_found_and_killed(run_id: str) -> None:
    script = """if True:
        import subprocess, sys
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        print(grandchild.pid)
        grandchild.returncode = 0  # no warning: it is left on purpose
    """
    before = leaks.orphans(run_id)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    ospid = int(done.stdout)
    poll_for(Path(f"/proc/{ospid}/environ").read_bytes)  # it is started, but perhaps not in its new program yet
    assert [line.partition(":")[0] for line in leaks.settle_orphans(run_id, before, timeout=0)] == [f"process {ospid}"]
    poll_for(lambda: ospid not in leaks.orphans(run_id), what="the orphan's end")
