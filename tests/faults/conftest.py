"""What the files here share; many need another driver, or another `transport`, and say so themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hybriddist as hd


@pytest.fixture(scope="module", params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the connections are made of; the template process goes with the module."""
    try:
        yield str(request.param)
    finally:
        hd.shutdown()
