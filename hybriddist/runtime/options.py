"""What a new worker is told before it speaks with anyone: where to listen, where to look for modules, what to obey.

The options of a worker travel over the template's control socket to forked workers, and as one line of JSON over stdin
(after the line of the cookie) to launched commands. The cookie is never among them, because options may be printed
and logged. What this module does not know: how a worker is started (``managers``) and what it does with its options
(``runtime/worker.py``), except those that every start applies in the same way: directory, environment, ``sys.path``.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from hybriddist import limits

OPTIONS_FLAG: Final = "--options"
"""Beside ``--worker`` on the command line: a second line of stdin, after the cookie, holds the options.

Without the flag only the cookie's line is read: a worker that somebody starts by hand would wait for ever for
options that nobody sends.
"""


class WorkerOptions:
    """The options of one worker. All of it survives JSON; nothing in it is secret.

    A plain class, as all that a worker imports: `dataclasses` would cost its start 9 ms.

    Attributes:
        bind_host: the address to listen on for other processes; "" for the one by which other hosts reach this one.
        bind_port: the port to listen on; 0: the worker's own rule.
        unix_path: where to listen for connections inside the node; who starts the worker chose a fresh name.
        sys_path: what `sys.path` becomes; ``None`` leaves it.
        extra_path: put in front of `sys.path`: for a command whose interpreter has a library of its own.
        cwd: the directory to work in; ``None`` stays.
        env: changes of the environment: a value sets, ``None`` removes.
        worker_timeout_seconds: how long a new worker waits for the driver before it leaves.
        silence_limit_seconds: without a byte from another node for so long, it counts as lost.
        enable_threaded_blas: whether numeric libraries may use threads.
        close_stdin: calls see an empty stdin (the null device); the leash keeps the real one.
        stderr_to_stdout: whether the two are one stream.
    """

    def __init__(
        self,
        *,
        bind_host: str = "127.0.0.1",
        bind_port: int = 0,
        unix_path: str | None = None,
        sys_path: list[str] | None = None,
        extra_path: list[str] | None = None,
        cwd: str | None = None,
        env: dict[str, str | None] | None = None,
        worker_timeout_seconds: float = limits.WORKER_TIMEOUT_SECONDS,
        silence_limit_seconds: float = limits.SILENCE_LIMIT_SECONDS,
        enable_threaded_blas: bool = False,
        close_stdin: bool = True,
        stderr_to_stdout: bool = False,
    ) -> None:
        self.bind_host = bind_host
        self.bind_port = bind_port
        self.unix_path = unix_path
        self.sys_path = sys_path
        self.extra_path = [] if extra_path is None else extra_path
        self.cwd = cwd
        self.env = {} if env is None else env
        self.worker_timeout_seconds = worker_timeout_seconds
        self.silence_limit_seconds = silence_limit_seconds
        self.enable_threaded_blas = enable_threaded_blas
        self.close_stdin = close_stdin
        self.stderr_to_stdout = stderr_to_stdout

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerOptions) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"WorkerOptions({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def values(self) -> dict[str, Any]:
        """All options by name."""
        return dict(vars(self))

    def changed(self, **values: Any) -> WorkerOptions:
        """A copy in which these options are different."""
        return WorkerOptions(**{**vars(self), **values})

    def to_json(self) -> str:
        """One line of ASCII; names that are not UTF-8 survive as escaped surrogates."""
        import json  # 7 ms, and only those who start workers need it

        return json.dumps(self.values(), ensure_ascii=True, separators=(",", ":"))

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
        unknown = values.keys() - cls().values().keys()
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
