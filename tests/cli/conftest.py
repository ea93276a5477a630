"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class CommandLine:
    """Called with words, it runs ``python -m hybriddist`` with them; ``folder`` is the working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, *words: object, input: str = "", timeout: float = 30.0, flags: tuple[str, ...] = (), **variables: str
    ) -> CompletedProcess[str]:
        return self.python(*flags, "-m", "hybriddist", *words, input=input, timeout=timeout, env=variables)

    def python(
        self, *words: object, input: str = "", timeout: float = 30.0, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        """Python itself, in the same surroundings."""
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, input=input, timeout=timeout, env=self.environment(env), cwd=self.folder, text=True,
            capture_output=True,
        )  # fmt: skip

    def start(self, *words: object, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        """Start it; the streams are pipes unless ``streams`` says otherwise."""
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        command = [sys.executable, "-m", "hybriddist", *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(env), bufsize=0, **{**pipes, **streams}
        )  # fmt: skip

    def environment(self, variables: Mapping[str, str] | None) -> dict[str, str]:
        """The test's own, with the package on the module path, and ``variables``."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, **(variables or {})}


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """``command_line(*words, input="")``: run ``python -m hybriddist``, whatever its exit status."""
    return CommandLine(tmp_path)
