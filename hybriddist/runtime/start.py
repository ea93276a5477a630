"""How a process becomes a worker: by a call, or by ``python -m hybriddist --worker``.

Everything that must be true before the first word with anybody is made so here; then ``runtime/worker.py`` takes over
and never comes back::

    cookie     argument, or the first line of stdin
    options    by the command's --options: the second line of stdin; else the environment's settings
    streams    stdout by lines; stderr into stdout, if wanted
    __main__   emptied (command only): it belongs to the users of the worker

What this module does not know: who started the process, and what a worker does. Forked workers come another way
(``runtime/template.py``).
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import threading
from typing import IO, Any, Final, NoReturn

from hybriddist import limits
from hybriddist.errors import ClusterError, ConnectError
from hybriddist.ids import DRIVER
from hybriddist.net.address import parse_bind_to
from hybriddist.runtime.context import known
from hybriddist.runtime.options import WorkerOptions
from hybriddist.settings import Settings

_MAX_OPTIONS_BYTES: Final = 1024 * 1024
"""The line of JSON; a module path and an environment take some kilobytes of it."""

_VISIBLE: Final = "hybriddist: warning: every user of this machine can see a cookie that is given as --worker=COOKIE"


def start_worker(
    out: IO[str] | None = None,
    cookie: str | None = None,
    close_stdin: bool = True,
    stderr_to_stdout: bool = True,
) -> NoReturn:
    """Make this process a worker. It listens on a loopback port, announces that, and waits for its driver.

    For the programs that cluster managers start. The announcement is the line ``hybriddist_worker:PORT#ADDR``; the
    driver must connect within ``HYBRIDDIST_WORKER_TIMEOUT`` seconds. The worker leaves when it is told to, when its
    connection to the driver ends, and when its stdin ends, if that is a pipe or a socket.

    Args:
        out: a text file for the announcement; stdout by default.
        cookie: the cluster's secret, 1 to 256 ASCII characters; by default the first line of stdin.
        close_stdin: whether calls find the null device as stdin.
        stderr_to_stdout: whether stderr becomes stdout, also for the programs that calls start.

    Raises:
        ValueError: the cookie, or a setting in the environment, is not valid.
        EOFError: stdin ended before the cookie came.
        ClusterError: this process is a member of a cluster already, or this is not its main thread.
        ConnectError: there is no port to listen on.
        SystemExit: the worker was told to leave.

    Source: Julia's Distributed, ``start_worker``.
    """
    process = known()
    if process is not None and (process.pid != DRIVER or process.peers):
        raise ClusterError("this process is a member of a cluster already")
    if threading.current_thread() is not threading.main_thread():
        raise ClusterError("a worker needs the main thread of its process")
    cookie = _read_cookie() if cookie is None else check_cookie(cookie)
    _run(own_options(close_stdin=close_stdin, stderr_to_stdout=stderr_to_stdout), cookie, out)


def start_from_command_line(cookie: str | None, bind_to: str | None, *, with_options: bool) -> NoReturn:
    """The command ``--worker[=COOKIE] [--bind-to ADDR[:PORT]] [--options]``; exit status 1 and a sentence if wrong."""
    try:
        _open_standard_descriptors()
        where = None if bind_to is None else parse_bind_to(bind_to)
        if where is not None and where.is_hint:
            raise ValueError("--bind-to takes a port as a hint only in a machine specification")
        if cookie is None:
            cookie = _read_cookie()
        else:
            check_cookie(cookie)
            print(_VISIBLE, file=sys.stderr, flush=True)
        if with_options:
            options = WorkerOptions.from_json(_read_line(_MAX_OPTIONS_BYTES, "the line of options"))
        else:
            options = own_options(close_stdin=True, stderr_to_stdout=True)
        if where is not None:
            options = options.changed(bind_host=where.host, bind_port=where.port)
        options.apply()
    except (ValueError, TypeError, EOFError, OSError) as error:
        sys.exit(f"hybriddist: no worker was started: {error}")
    empty_main()
    sys.argv[:] = [""]
    try:
        _run(options, cookie, None)
    except ConnectError as error:
        sys.exit(f"hybriddist: no worker was started: {error}")


def own_options(*, close_stdin: bool, stderr_to_stdout: bool) -> WorkerOptions:
    """The options of a worker that nobody sends any.

    Raises:
        ValueError: a setting in the environment is not valid.
    """
    settings = Settings.from_environment()
    return WorkerOptions(
        worker_timeout_seconds=settings.worker_timeout_seconds,
        silence_limit_seconds=settings.silence_limit_seconds,
        close_stdin=close_stdin,
        stderr_to_stdout=stderr_to_stdout,
    )


def check_cookie(cookie: str) -> str:
    """The cookie, if it can be one; the text of the error does not show it.

    Raises:
        TypeError, ValueError: it cannot.
    """
    if not isinstance(cookie, str):
        raise TypeError(f"the cookie is text, not {type(cookie).__name__}")
    if not 1 <= len(cookie) <= limits.MAX_COOKIE_CHARACTERS or not cookie.isascii() or not cookie.isprintable():
        raise ValueError(f"the cookie must be 1 to {limits.MAX_COOKIE_CHARACTERS} printable ASCII characters")
    return cookie


def _run(options: WorkerOptions, cookie: str, out: IO[str] | None) -> NoReturn:
    from hybriddist.runtime import worker

    set_up_streams(stderr_to_stdout=options.stderr_to_stdout)
    worker.run(options, cookie, out)


# ---- stdin ----------------------------------------------------------------------------------------------------------


def _read_cookie() -> str:
    return check_cookie(_read_line(limits.MAX_COOKIE_CHARACTERS, "the cookie"))


def _read_line(max_bytes: int, what: str) -> str:
    """One line of stdin; nothing behind it is taken, because that may be meant for calls."""
    # Without a buffer, readline asks for single bytes.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline(max_bytes + 2)
    if not line:
        raise EOFError(f"stdin ended before {what} came")
    text = line.rstrip(b"\r\n")
    if len(text) > max_bytes:
        raise ValueError(f"{what} on stdin is longer than {max_bytes} bytes")
    try:
        return text.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"{what} on stdin is not ASCII") from None


# ---- this process ---------------------------------------------------------------------------------------------------


def _open_standard_descriptors() -> None:
    """The null device for those that are closed: the first socket would else become stdin or stdout."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)  # the lowest number that is free: this one


def set_up_streams(*, stderr_to_stdout: bool) -> None:
    """Have what calls print arrive line by line, as on a terminal, in the order in which it was printed."""
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(line_buffering=True)
    if not stderr_to_stdout:
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    os.dup2(1, 2, inheritable=True)
    if isinstance(stdout, io.TextIOWrapper):
        # One object, or lines that are begun on both would be mixed. A traceback must not fail for want of a letter.
        stdout.reconfigure(errors="backslashreplace")
        sys.stderr = stdout


def empty_main() -> dict[str, Any]:
    """Make ``__main__`` what it is in a fresh interpreter, and return its globals.

    The module stays the same object. Functions that were defined in it lose their globals.
    """
    namespace = sys.modules["__main__"].__dict__
    namespace.clear()
    fresh = dict.fromkeys(("__doc__", "__loader__", "__package__", "__spec__"))
    namespace.update(fresh, __name__="__main__", __builtins__=builtins, __annotations__={})
    return namespace
