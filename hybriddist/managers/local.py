"""Start workers on this node.

Without ``exename`` a worker is a fork of a warm template process (``runtime/nursery.py``), which takes a millisecond
or two; with ``exename`` it is a command of its own: ``[*exename, *exeflags, "-m", "hybriddist", "--worker",
"--options"]``. Both get the same: a pipe as stdin, through which the cookie comes and whose end is the leash; pipes as
stdout and stderr; a session of their own; the driver's environment, directory and module path of this moment.

What this module does not know: how the announcement is read (``managers/announcement.py``), what a worker does, and
how the cluster connects to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO, Final

from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException, LaunchError, with_advice
from hybriddist.limits import TERM_EXIT_SECONDS
from hybriddist.managers import interpreter
from hybriddist.managers.announcement import COMMAND_ENDED
from hybriddist.managers.base import ClusterManager, Operation, WorkerConfig, default_addprocs_params
from hybriddist.managers.cpus import usable_cpus
from hybriddist.runtime import folders
from hybriddist.runtime.child import Child, PopenChild
from hybriddist.runtime.nursery import DEFAULT_RUNNER, Birth, Nursery, TemplateDied
from hybriddist.runtime.options import OPTIONS_FLAG, WorkerOptions
from hybriddist.runtime.output import OutputRelay
from hybriddist.settings import Settings

_AHEAD: Final = 8
"""So many workers are asked for before the first is there; each has six descriptors open meanwhile."""

_KILLED_SECONDS: Final = 5.0
"""From SIGKILL to the end of a process; only a process stuck in the kernel takes longer."""


class LocalContext:
    """What a cluster keeps for its local managers, from one `addprocs` to the next.

    Args:
        cookie: asked for the cluster's secret at each launch; it is kept in no other place here.
        relay: of the cluster's output; it shows what template processes print.
        socket_directory: where workers put their sockets for connections inside the node (0700, the cluster's own);
            ``None``: they don't listen there.
        settings: the driver's settings, which its workers get.
        runner: "module:function" for forked workers; tests put their own here.
    """

    def __init__(
        self,
        cookie: Callable[[], str],
        relay: OutputRelay,
        socket_directory: str | None = None,
        settings: Settings | None = None,
        runner: str = DEFAULT_RUNNER,
    ) -> None:
        self.cookie = cookie
        self._relay = relay
        self.socket_directory = socket_directory
        self.settings = Settings.from_environment() if settings is None else settings
        self._runner = runner
        self._lock = Lock()
        self._nurseries: dict[tuple[Any, ...], Nursery] = {}

    def nursery(self, flags: list[str], environment: Mapping[str, str]) -> Nursery:
        """A living nursery whose workers start as a fresh interpreter with these flags and environment would.

        Raises:
            LaunchError: the interpreter cannot be started.
        """
        executable = interpreter.executable()
        key = (executable, *flags, None, *interpreter.start_sensitive(environment))
        with self._lock:
            nursery = self._nurseries.get(key)
            if nursery is None or not nursery.alive:
                path, folder = interpreter.module_path(), self.socket_directory
                nursery = Nursery(executable, flags, environment, path, self._relay, self._runner, folder)
                self._nurseries[key] = nursery
            return nursery

    def close(self) -> None:
        """End the template processes. Workers that are still there are killed after a second."""
        with self._lock:
            nurseries = list(self._nurseries.values())
            self._nurseries.clear()
        for nursery in nurseries:
            nursery.close()

    def let_go(self) -> None:
        """In a forked copy of the driver: leave the template processes to it."""
        for nursery in self._nurseries.values():
            nursery.let_go()


@dataclass(slots=True)
class _Launch:
    """One call of `LocalManager.launch`, checked."""

    command: list[str] | None
    flags: list[str]
    environment: dict[str, str]
    options: WorkerOptions
    deadline: Deadline


class LocalManager(ClusterManager):
    """Workers on this node.

    Args:
        n: how many; by default as many as there are usable CPUs.
        restrict: listen on the loopback address only; else on the address by which other hosts reach this one.
    """

    def __init__(self, n: int | None = None, restrict: bool = True) -> None:
        self.n = usable_cpus() if n is None else n
        self.restrict = restrict
        self._context: LocalContext | None = None

    def __repr__(self) -> str:
        return "LocalManager()"

    def attach(self, context: LocalContext, params: Mapping[str, Any]) -> None:
        """Give it what the cluster keeps for it, before `launch`, and start the template process that it will need.

        A template takes several times longer to start than all else that has to be done before it can be used.

        Raises:
            TypeError, ValueError: a parameter is of the wrong kind; nothing was started.
        """
        self._context = context
        launch = self._check(params, context)
        if launch.command is None and self.n > 0:
            with contextlib.suppress(LaunchError):  # `launch` meets the same error, and tells it for each worker
                _nursery(launch, context)

    def default_addprocs_params(self) -> dict[str, Any]:
        return default_addprocs_params()

    def launch(self, params: Mapping[str, Any], launched: list[WorkerConfig], notify: Callable[[], None]) -> None:
        """Start the workers.

        Raises:
            TypeError, ValueError: a parameter is of the wrong kind; nothing was started.
            CompositeException: of a `LaunchError` for each worker that could not be started.
        """
        if self._context is None:
            raise RuntimeError("a LocalManager launches only through addprocs")
        launch = self._check(params, self._context)
        failures: list[Exception] = []
        starts: deque[_Start] = deque()
        try:
            for number in range(self.n):
                starts.append(_Start(launch, self._context))
                # The template forks the next while the one before begins to live.
                while starts and (len(starts) > _AHEAD or number == self.n - 1):
                    start = starts.popleft()
                    try:
                        start.finish()
                    except LaunchError as error:
                        failures.append(error)
                        continue
                    launched.append(start.config)
                    notify()
        finally:
            for start in starts:
                start.give_up()
        if failures:
            raise CompositeException("workers could not be started", failures)

    def manage(self, pid: int, config: WorkerConfig, op: Operation) -> None:
        child = config.process
        if not isinstance(child, Child):  # one of another manager's making, or a further one that a worker started
            return
        if op == "interrupt":
            child.send_signal(signal.SIGINT)
        elif op in ("deregister", "finalize"):
            child.release()
            unix_path = (config.environ or {}).get("unix_path")
            if unix_path is not None and child.exit_status is not None:
                folders.clean_up(unix_path)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """SIGTERM, two seconds later SIGKILL. Returns when the worker is gone."""
        child: Child = config.process
        child.terminate()
        if child.wait(Deadline(TERM_EXIT_SECONDS)) is None:
            child.kill()
            child.wait(Deadline(_KILLED_SECONDS))

    # ---- starting -----------------------------------------------------------------------------------------------

    def _check(self, params: Mapping[str, Any], context: LocalContext) -> _Launch:
        """Turn the parameters into what is to be done. Raises before anything is started."""
        threaded = bool(params.get("enable_threaded_blas"))
        given = interpreter.check_environment(params.get("env"))
        environment = {**os.environ, **given}
        if not threaded:
            environment.update({name: "1" for name in interpreter.BLAS_VARIABLES if name not in given})
        command = interpreter.words(params.get("exename"), "exename")
        directory = params.get("dir")
        options = WorkerOptions(
            bind_host="127.0.0.1" if self.restrict else "",
            cwd=interpreter.working_directory(directory),
            worker_timeout_seconds=context.settings.worker_timeout_seconds,
            silence_limit_seconds=context.settings.silence_limit_seconds,
            enable_threaded_blas=threaded,
        )
        if command is None:
            options.sys_path = interpreter.module_path(given.get("PYTHONPATH"))
        else:
            options.extra_path = interpreter.own_path()
            interpreter.add_package_path(environment, options.extra_path)
        return _Launch(
            command,
            interpreter.words(params.get("exeflags"), "exeflags", split=True) or [],
            environment,
            options,
            Deadline(params.get("timeout")).sooner(context.settings.worker_timeout_seconds),
        )


class _Start:
    """One worker on its way. A failure is told by `finish`.

    A template that has died since the last call is replaced, once. Each attempt has pipes of its own, so that a
    worker which the dead one may have forked at the last moment finds its leash ended.
    """

    def __init__(self, launch: _Launch, context: LocalContext) -> None:
        self._launch = launch
        self._context = context
        self._options = options = launch.options.changed()
        if context.socket_directory is not None:
            options.unix_path = os.path.join(context.socket_directory, secrets.token_hex(8))
        self.config = config = WorkerConfig()
        config.environ = {"unix_path": options.unix_path}
        config.bind_addr = options.bind_host or None
        config.enable_threaded_blas = options.enable_threaded_blas
        self._birth: Birth | None = None
        self._pipes = contextlib.ExitStack()
        self._failure: Exception | None = None
        try:
            self._begin()
        except (LaunchError, OSError) as error:
            self._failure = error

    def finish(self) -> None:
        """Wait until it is there; then `config` is complete.

        Raises:
            LaunchError: it could not be started.
        """
        try:
            self._finish()
        except TemplateDied as error:
            raise LaunchError(f"{COMMAND_ENDED} ({error.message})", stderr_tail=error.stderr_tail) from error
        except LaunchError:  # first: the one that says the time is over is an OSError too
            raise
        except OSError as error:
            raise LaunchError(f"a worker cannot be started: {with_advice(error)}{self._hint(error)}") from error
        self.config.ospid = self.config.process.ospid

    def _hint(self, error: OSError) -> str:
        command = self._launch.command
        if not isinstance(error, FileNotFoundError) or command is None or len(command[0].split()) < 2:
            return ""
        words = command[0].split() + command[1:]
        return f"; as a string exename is a single word: give a list, exename={words!r}, or flags as exeflags="

    def give_up(self) -> None:
        """Nobody wants it any more: it leaves, when it finds its leash ended."""
        if self._birth is not None:
            self._birth.give_up()
        self._pipes.close()

    def _begin(self) -> None:
        directory = self._launch.options.cwd
        if directory is not None and not os.path.isdir(directory):
            problem = "is not a directory" if os.path.exists(directory) else "does not exist"
            raise LaunchError(f"the workers' directory {directory!r} {problem}")
        if self._launch.command is None:
            self._ask()

    def _finish(self) -> None:
        if self._launch.command is not None and self._failure is None:
            _spawn(self._launch, self._options, self.config, self._context.cookie())
            return
        try:
            if self._failure is not None:
                raise self._failure
            self._wait()
        except TemplateDied:
            self._ask()
            self._wait()

    def _ask(self) -> None:
        self._pipes.close()
        launch, options = self._launch, self._options
        nursery = _nursery(launch, self._context)
        wanted = launch.environment
        options.env = {name: value for name, value in wanted.items() if nursery.env.get(name) != value}
        options.env.update({name: None for name in nursery.env if name not in wanted})
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            stdin, leash = _pipe(theirs, ours, "to child")
            out, stdout = _pipe(theirs, ours, "from child")
            err, stderr = _pipe(theirs, ours, "from child")
            leash.write(self._context.cookie().encode("ascii") + b"\n")  # the pipe is empty: this never blocks
            self._birth = nursery.ask(options, (stdin.fileno(), out.fileno(), err.fileno()), leash)
            self._pipes = ours.pop_all()
        self.config.io, self.config.environ = stdout, {"unix_path": options.unix_path, "stderr": stderr}

    def _wait(self) -> None:
        assert self._birth is not None  # it was asked for
        try:
            self.config.process = self._birth.wait(self._launch.deadline)
        except BaseException:
            self._pipes.close()
            raise
        self._pipes.pop_all()  # they are the config's from now on


def _nursery(launch: _Launch, context: LocalContext) -> Nursery:
    return context.nursery([*interpreter.flags(), *launch.flags], launch.environment)


def _spawn(launch: _Launch, options: WorkerOptions, config: WorkerConfig, cookie: str) -> None:
    """Start a command of its own, and tell it by stdin what it must know."""
    import subprocess

    assert launch.command is not None  # the caller looked
    assert config.environ is not None  # it was just made
    config.exename, config.exeflags = launch.command, launch.flags
    process = subprocess.Popen(
        [*launch.command, *launch.flags, "-m", "hybriddist", "--worker", OPTIONS_FLAG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=options.cwd,
        env=launch.environment,
        start_new_session=True,
    )
    config.process = PopenChild(process)
    config.io, config.environ["stderr"] = process.stdout, process.stderr
    assert process.stdin is not None
    # A command that has ended already reads nothing: its announcement, which is missing, tells the story.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{cookie}\n{options.to_json()}\n".encode("ascii"))


def _pipe(theirs: contextlib.ExitStack, ours: contextlib.ExitStack, way: str) -> tuple[BinaryIO, BinaryIO]:
    """A pipe as two unbuffered files: the child's end and ours."""
    reading, writing = os.pipe()
    reader: Any = open(reading, "rb", buffering=0)  # noqa: SIM115 - the stacks close them
    writer: Any = open(writing, "wb", buffering=0)  # noqa: SIM115
    child, driver = (reader, writer) if way == "to child" else (writer, reader)
    return theirs.enter_context(child), ours.enter_context(driver)
