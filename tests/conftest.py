"""Fixtures for all tests, and the check that each leaves nothing behind.

Around every test: no new thread, child process, descriptor, or segment (`tests/helpers/leaks.py`). A test that shares
a running cluster with the others of its module (the `cluster` fixture, or the marker `leaks_by_module`) is checked at
the module's end instead: a live cluster opens connections and segments when they are first needed, and rightly keeps
them. At each module's end, orphans are looked for as well: processes started by this run, whoever their parent is now.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import leaks
from tests.helpers.scripts import ScriptRunner

# No deadline for an example and no check of speed: the machine may be busy with something else.
hypothesis.settings.register_profile(
    "default here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("default here")


def pytest_collection_finish() -> None:
    """Thousands of collected tests stay to the end. Without them a collection of garbage, of which there is one in many
    tests, takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def run_id() -> str:
    """A name no other run has, for whatever a test creates outside of its own folder; descendants carry it."""
    return leaks.mark_run()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_module(run_id: str) -> Iterator[None]:
    """Check, after the module's own fixtures are torn down, that all is as before they were set up."""
    processes = leaks.orphans(run_id)
    before = leaks.Footprint.take()
    yield
    found = leaks.settle(before) + leaks.settle_orphans(run_id, processes)
    if found:
        pytest.fail("left behind by this module:\n  " + "\n  ".join(found))


@pytest.fixture(autouse=True)
def nothing_left_by_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that the test left nothing; set up first and so torn down last of the test's own fixtures."""
    if "cluster" in request.fixturenames or request.node.get_closest_marker("leaks_by_module"):
        yield
        return
    before = leaks.Footprint.take()
    yield
    found = leaks.settle(before)
    if found:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(found))


@pytest.fixture
def run_python(tmp_path: Path) -> ScriptRunner:
    """``run_python(code, *args, timeout=30)``: run code in a process of its own with the package importable."""
    return ScriptRunner(tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[int]]:
    """Two local workers, shared by the tests of a module: their pids."""
    import hybriddist as hd

    try:
        yield hd.addprocs(2)
    finally:
        hd.shutdown()
