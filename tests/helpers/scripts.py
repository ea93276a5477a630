"""Run a piece of Python in a process of its own, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[2]


class ScriptRunner:
    """Called with code, it runs it and returns the completed process, whatever its exit code.

    Args:
        folder: where scripts are written, and the working directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(
        self,
        code: str,
        *args: object,
        timeout: float = 30.0,
        how: Literal["script", "-c", "-"] = "script",
        options: tuple[str, ...] = (),
        input: str = "",
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` (indentation is removed) with ``args`` in ``sys.argv``.

        Args:
            timeout: seconds; beyond it the stacks of all threads are printed and the test fails.
            how: as a script file, as ``-c CODE``, or on stdin (then ``input`` follows the code).
            options: of the interpreter, before the code.
            env: variables on top of the test's own.
            python: the interpreter.
        """
        code = textwrap.dedent(code)
        self._count += 1
        what = how
        if how == "script":
            script = self._folder / f"script_{self._count}.py"
            script.write_text(code)
            what = str(script)
        command = [python, "-X", "faulthandler", *options, *(["-c", code] if how == "-c" else [what]), *map(str, args)]
        environment = {**os.environ, **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(code + input if how == "-" else input, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes all stacks
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            pytest.fail(f"still running after {timeout} s\n-- stdout\n{out}\n-- stderr\n{err}")
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)
