"""What a new worker is told before it speaks with anyone: where to listen, where to look for modules, what to obey.

The options of a worker travel as one line of JSON: over the template's control socket to forked workers, over stdin
(after the line of the cookie) to launched commands. The cookie is never among them, because options may be printed
and logged. What this module does not know: how a worker is started (``managers``) and what it does with its options
(``runtime/worker.py``), except those that every start applies in the same way: directory, environment, ``sys.path``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Final

from hybriddist import limits

OPTIONS_FLAG: Final = "--options"
"""Beside ``--worker`` on the command line: a second line of stdin, after the cookie, holds the options.

Without the flag only the cookie's line is read: a worker that somebody starts by hand would wait for ever for
options that nobody sends.
"""


@dataclass(slots=True)
class WorkerOptions:
    """The options of one worker. All of it survives JSON; nothing in it is secret."""

    bind_host: str = "127.0.0.1"
    """The address to listen on for other processes; "" for the address by which other hosts reach this one."""

    bind_port: int = 0
    """A hint: the first port to try. 0: the worker's own rule."""

    unix_path: str | None = None
    """Where to listen for connections inside the node; who starts the worker chose a fresh name."""

    sys_path: list[str] | None = None
    """What `sys.path` becomes; ``None`` leaves it."""

    extra_path: list[str] = field(default_factory=list)
    """Put in front of `sys.path`: for a command whose interpreter has a library of its own."""

    cwd: str | None = None
    """The directory to work in; ``None`` stays."""

    env: dict[str, str | None] = field(default_factory=dict)
    """Changes of the environment: a value sets, ``None`` removes."""

    worker_timeout_seconds: float = limits.WORKER_TIMEOUT_SECONDS
    """How long a new worker waits for the driver before it leaves."""

    silence_limit_seconds: float = limits.SILENCE_LIMIT_SECONDS

    enable_threaded_blas: bool = False
    close_stdin: bool = True
    """Calls see an empty stdin (the null device); the leash keeps the real one."""

    stderr_to_stdout: bool = False

    def to_json(self) -> str:
        """One line of ASCII; names that are not UTF-8 survive as escaped surrogates."""
        import json  # 7 ms, and only those who start workers need it

        return json.dumps(asdict(self), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> WorkerOptions:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a JSON object, or one with fields that this version does not know.
        """
        import json

        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"worker options must be a JSON object, not {type(values).__name__}")
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown worker options: {', '.join(sorted(unknown))}")
        return cls(**values)

    def apply(self) -> None:
        """Make directory, environment and ``sys.path`` of this process what the options say.

        Raises:
            OSError: the directory cannot be entered.
        """
        if self.cwd is not None:
            os.chdir(self.cwd)
        for name, value in self.env.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.sys_path is not None or self.extra_path:
            import importlib

            base = sys.path if self.sys_path is None else self.sys_path
            sys.path[:] = [*self.extra_path, *(entry for entry in base if entry not in self.extra_path)]
            # A template may have listed these directories long before a module was written into one of them.
            importlib.invalidate_caches()
