"""Stands in for the worker in tests of launching: it runs the code in the variable FAKE_WORKER, and announces itself.

The code finds ``options`` and ``cookie``. A fake worker has a real leash.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from hybriddist.runtime.folders import Seat
from hybriddist.runtime.leash import take_stdin
from hybriddist.runtime.options import WorkerOptions

NAME = "tests.runtime.fake_worker:run"


def run(options: WorkerOptions) -> NoReturn:
    cookie = sys.stdin.buffer.readline().decode().rstrip("\n")
    seat = None if options.unix_path is None else Seat(options.unix_path)
    leash = take_stdin(close_stdin=options.close_stdin, seat=seat)
    assert leash is not None
    leash.arm()
    exec(os.environ.get("FAKE_WORKER", ""), {"options": options, "cookie": cookie})
    print("hybriddist_worker:9123#127.0.0.1", flush=True)
    while True:
        signal.pause()


def still_runs(ospid: int) -> bool:
    """Whether the process is there and not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{ospid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


if __name__ == "__main__":  # as a command: the options are stdin's second line
    cookie_line, options_line = sys.stdin.buffer.raw.read(100_000).split(b"\n")[:2]  # type: ignore[attr-defined]
    worker_options = WorkerOptions.from_json(options_line)
    worker_options.apply()
    exec(os.environ.get("FAKE_WORKER", ""), {"options": worker_options, "cookie": cookie_line.decode()})
    worker_leash = take_stdin(close_stdin=True)
    assert worker_leash is not None
    worker_leash.arm()
    print("hybriddist_worker:9124#127.0.0.1", flush=True)
    while True:
        signal.pause()
