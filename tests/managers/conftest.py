"""Fixtures for tests of managers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.managers.launcher import Launcher


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """An exename that runs shell code, whatever its arguments are."""

    def command(code: str) -> list[str]:
        script = tmp_path / "command.sh"
        script.write_text(code)
        return ["/bin/sh", str(script)]

    return command
