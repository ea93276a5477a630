"""The template process: real forks of a real interpreter."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import LaunchError, LaunchTimeout
from hybriddist.runtime.child import ExitStatus
from hybriddist.runtime.nursery import Nursery, NurseryChild, TemplateDied
from hybriddist.runtime.options import WorkerOptions
from hybriddist.runtime.output import OutputRelay
from tests.helpers.polling import poll_for
from tests.runtime import fake_worker, fork_refused

COOKIE = "never-to-be-seen-0123456789"


class Forked:
    """A fake worker and our ends of its streams."""

    def __init__(self, nursery: Nursery, code: str = "", **options: Any) -> None:
        stdin, self.leash = _pipe()
        self.stdout, out = _pipe()
        self.stderr, err = _pipe()
        self.leash.write(COOKIE.encode() + b"\n")
        env = {"FAKE_WORKER": code, **options.pop("env", {})}
        with stdin, out, err:
            descriptors = (stdin.fileno(), out.fileno(), err.fileno())
            try:
                birth = nursery.ask(WorkerOptions(env=env, **options), descriptors, self.leash)
                self.child: NurseryChild = birth.wait(Deadline(20))
            except BaseException:
                self.close()
                raise

    def announced(self) -> None:
        line = self.stdout.readline()
        assert line == b"hybriddist_worker:9123#127.0.0.1\n", line + self.stderr.read()

    def close(self) -> None:
        for stream in (self.leash, self.stdout, self.stderr):
            stream.close()


def _pipe() -> tuple[Any, Any]:
    reading, writing = os.pipe()
    return open(reading, "rb", buffering=0), open(writing, "wb", buffering=0)


Fork = Callable[..., Forked]


@pytest.fixture
def relay() -> Iterator[OutputRelay]:
    relay = OutputRelay()
    yield relay
    relay.close(5)


@pytest.fixture
def nursery(relay: OutputRelay) -> Iterator[Nursery]:
    nursery = Nursery(sys.executable, [], os.environ, [os.path.abspath(p) for p in sys.path], relay, fake_worker.NAME)
    yield nursery
    nursery.close(10)


@pytest.fixture
def fork(nursery: Nursery) -> Iterator[Fork]:
    workers: list[Forked] = []

    def fork(code: str = "", **options: Any) -> Forked:
        workers.append(Forked(nursery, code, **options))
        return workers[-1]

    yield fork
    for worker in workers:
        worker.close()
        assert worker.child.wait(Deadline(10)) is not None


def test_sixteen_workers_announce_and_leave_with_their_leash(fork: Fork) -> None:
    workers = [fork() for _ in range(16)]
    for worker in workers:
        worker.announced()
    assert len({worker.child.ospid for worker in workers}) == 16
    for worker in workers:
        assert worker.child.poll() is None
        worker.child.release()
    for worker in workers:
        assert worker.child.wait(Deadline(10)) == ExitStatus(exitcode=1)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", ExitStatus(exitcode=3)),
        ("import os; os._exit(4)", ExitStatus(exitcode=4)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ExitStatus(signal=signal.SIGSEGV)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", ExitStatus(signal=signal.SIGTERM)),
        ("1/0", ExitStatus(exitcode=1)),
    ],
)
def test_exit_codes_and_signals_are_reported(fork: Fork, code: str, status: ExitStatus) -> None:
    worker = fork(code)
    heard: list[ExitStatus] = []
    worker.child.on_exit(heard.append)
    assert worker.child.wait(Deadline(10)) == status
    assert poll_for(lambda: heard) == [status]
    assert not worker.child.kill()
    assert (b"ZeroDivisionError" in worker.stderr.read()) == ("1/0" in code)


def test_a_worker_is_as_a_fresh_interpreter_would_be(fork: Fork, tmp_path: Path) -> None:
    code = """if True:
        import gc, json, os, random, signal, sys, threading
        import __main__
        print(json.dumps({
            "cookie": cookie,
            "session": os.getsid(0) == os.getpid() == os.getpgrp(),
            "signals": [
                signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
                signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
                signal.set_wakeup_fd(-1),
            ],
            "gc": gc.isenabled(),
            "main": sorted(vars(__main__)),
            "thread": threading.current_thread() is threading.main_thread(),
            "threads": threading.active_count(),
            "cwd": os.getcwd(),
            "env": [os.environ.get("HERE"), os.environ.get("HOME")],
            "path": sys.path[0],
            "stdin": sys.stdin.read(),
            "argv": sys.argv,
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            "random": random.random(),
            "numpy": "numpy" in sys.modules,
        }))
        print("to stderr", file=sys.stderr)
    """
    path = [str(tmp_path), *map(os.path.abspath, sys.path)]
    options: dict[str, Any] = {"cwd": str(tmp_path), "sys_path": path, "env": {"HERE": "1", "HOME": None}}
    facts = [json.loads(fork(code, **options).stdout.readline()) for _ in range(2)]
    assert facts[0].pop("random") != facts[1].pop("random")
    fds = facts[0].pop("fds")
    assert len(fds) == 5  # three streams, the leash, and the one that reads this list
    facts[1].pop("fds")
    assert facts[0] == facts[1]
    assert facts[0] == {
        "cookie": COOKIE,
        "session": True,
        "signals": [True, True, True, -1],
        "gc": True,
        "main": ["__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"],
        "thread": True,
        "threads": 2,
        "cwd": os.path.realpath(tmp_path),
        "env": ["1", None],
        "path": str(tmp_path),
        "stdin": "",
        "argv": [""],
        "numpy": False,
    }
    assert fork("import sys; print('to stderr', file=sys.stderr)").stderr.readline() == b"to stderr\n"


def test_stderr_may_be_stdout(fork: Fork) -> None:
    code = "import os, sys; print('both', file=sys.stderr); os.system('echo and commands >&2')"
    worker = fork(code, stderr_to_stdout=True)
    assert worker.stdout.readline() == b"both\n"
    assert worker.stdout.readline() == b"and commands\n"


def test_exit_functions_run(fork: Fork) -> None:
    worker = fork("import atexit, sys; atexit.register(print, 'goodbye'); sys.exit()")
    assert worker.stdout.readline() == b"goodbye\n"
    assert worker.child.wait(Deadline(10)) == ExitStatus(exitcode=0)


def test_signals_reach_the_worker_alone(nursery: Nursery, fork: Fork) -> None:
    one, other = fork(), fork()
    one.announced()
    other.announced()
    # Asleep: a signal between a program's last look for signals and its system call would wait for the next one.
    wchan = Path(f"/proc/{one.child.ospid}/wchan")
    poll_for(lambda: wchan.read_text() not in ("", "0"))
    assert one.child.send_signal(signal.SIGINT)
    assert one.child.wait(Deadline(10)) == ExitStatus(signal=signal.SIGINT)  # KeyboardInterrupt, not handled
    assert other.child.poll() is None
    assert nursery.alive
    assert other.child.terminate()
    assert other.child.wait(Deadline(10)) == ExitStatus(signal=signal.SIGTERM)


def test_kill_ends_what_the_worker_started(fork: Fork) -> None:
    worker = fork("import subprocess; subprocess.Popen(['sleep', '60'])")
    worker.announced()
    assert worker.child.kill()
    assert worker.child.wait(Deadline(10)) == ExitStatus(signal=signal.SIGKILL)
    assert worker.stdout.read() == b""  # the pipe ends only when nobody holds it


def test_the_cookie_is_nowhere_to_be_seen(nursery: Nursery, fork: Fork) -> None:
    worker = fork()
    worker.announced()
    for ospid in (worker.child.ospid, nursery.ospid):
        for name in ("cmdline", "environ"):
            assert COOKIE.encode() not in Path(f"/proc/{ospid}/{name}").read_bytes()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs descriptors that stand for processes")
def test_workers_outlive_the_template(nursery: Nursery, fork: Fork) -> None:
    workers = [fork(), fork()]
    for worker in workers:
        worker.announced()
    os.kill(nursery.ospid, signal.SIGKILL)
    assert poll_for(lambda: not nursery.alive)
    with pytest.raises(TemplateDied, match="SIGKILL"):
        Forked(nursery)
    assert [worker.child.poll() for worker in workers] == [None, None]
    assert workers[0].child.kill()
    workers[1].child.release()
    for worker in workers:
        assert worker.child.wait(Deadline(10)) == ExitStatus()  # nobody can tell how
        assert not worker.child.terminate()


def test_closing_kills_workers_that_cannot_leave(fork: Fork, nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.touch()
    # SIGSTOP stands for a call in C that never gives up the interpreter's lock: no thread of it runs.
    worker = fork("import os, signal; print(); os.kill(os.getpid(), signal.SIGSTOP)", unix_path=str(path))
    assert worker.stdout.readline() == b"\n"
    nursery.close(10)
    assert worker.stdout.read() == b""
    assert worker.child.wait(Deadline(10)) is not None
    assert not path.exists()


def test_no_more_processes_allowed(relay: OutputRelay) -> None:
    environment = {**os.environ, "FORK_REFUSED": "1"}
    nursery = Nursery(sys.executable, [], environment, list(map(os.path.abspath, sys.path)), relay, fork_refused.NAME)
    for _ in range(2):  # the template survives a refusal
        with pytest.raises(LaunchError, match="no worker could be forked: Resource temporarily unavailable"):
            Forked(nursery)
    assert nursery.alive
    nursery.close()


def test_interpreter_that_does_not_start(tmp_path: Path, relay: OutputRelay) -> None:
    with pytest.raises(LaunchError, match="cannot be started"):
        Nursery(str(tmp_path / "missing"), [], os.environ, sys.path, relay)
    nursery = Nursery(sys.executable, ["--no-such-option"], os.environ, sys.path, relay)
    with pytest.raises(TemplateDied) as caught:
        Forked(nursery)
    nursery.close()
    assert "exit code 2" in caught.value.message
    assert "no-such-option" in caught.value.stderr_tail


SLOWLY = """
import os, time
for byte in "".join(f"läuft {n}\\n" for n in range(30)).encode():
    os.write(2, bytes([byte]))
    time.sleep(0)
print("and on stdout")
raise SystemExit(5)
"""


def test_last_words_of_a_template_are_whole(tmp_path: Path, relay: OutputRelay) -> None:
    """Its interpreter writes them in small pieces; all who had asked it for a worker hear the same."""
    (tmp_path / "sitecustomize.py").write_text(SLOWLY, encoding="utf-8")
    nursery = Nursery(sys.executable, [], {**os.environ, "PYTHONPATH": str(tmp_path)}, sys.path, relay)
    stdin, leash = _pipe()
    tails = []
    with stdin, leash:
        for _ in range(2):
            with pytest.raises(TemplateDied) as caught:
                nursery.ask(WorkerOptions(), (stdin.fileno(),) * 3, leash).wait(Deadline(20))
            tails.append(caught.value.stderr_tail.splitlines())
    nursery.close()
    assert tails[0] == tails[1]
    assert "SystemExit: 5" in tails[0]
    said = [line for line in tails[0] if line.startswith("läuft")]
    assert said
    assert said == [f"läuft {n}" for n in range(30 - len(said), 30)]


def test_what_site_code_prints_is_shown_once(
    tmp_path: Path, relay: OutputRelay, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('Welcome'); print('Careful', file=sys.stderr)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    nursery = Nursery(sys.executable, [], environment, list(map(os.path.abspath, sys.path)), relay, fake_worker.NAME)
    workers = [Forked(nursery), Forked(nursery)]
    for worker in workers:
        worker.announced()  # and says nothing before
        worker.leash.close()
        assert worker.child.wait(Deadline(10)) is not None
        assert worker.stdout.read() + worker.stderr.read() == b""
        worker.close()
    nursery.close()
    assert relay.drain(0, 10)
    assert capsys.readouterr() == ("\tFrom worker startup:\tWelcome\n", "\tFrom worker startup:\tCareful\n")


def test_template_that_does_not_answer(nursery: Nursery) -> None:
    stdin, leash = _pipe()
    with stdin, leash, pytest.raises(LaunchTimeout):
        nursery.ask(WorkerOptions(), (stdin.fileno(),) * 3, leash).wait(Deadline(0))


def test_what_is_given_up_leaves(nursery: Nursery) -> None:
    """Before it is there, and after."""
    for early in (True, False):
        stdin, leash = _pipe()
        stdout, out = _pipe()
        leash.write(COOKIE.encode() + b"\n")
        with leash, stdout:
            with stdin, out:
                birth = nursery.ask(WorkerOptions(), (stdin.fileno(), out.fileno(), out.fileno()), leash)
            if not early:
                birth.wait(Deadline(20))
            birth.give_up()
            leash.close()
            stdout.read()  # the pipe ends: so has the worker


def test_driver_killed_leaves_nothing(run_python: Callable[..., Any], tmp_path: Path) -> None:
    code = """
    import os, signal, sys, time
    from hybriddist.runtime.nursery import Nursery
    from hybriddist.runtime.output import OutputRelay
    from tests.runtime import fake_worker, test_nursery
    nursery = Nursery(sys.executable, [], os.environ, sys.path, OutputRelay(), fake_worker.NAME)
    codes = ["", "while True: pass", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]
    workers = [test_nursery.Forked(nursery, code) for code in codes]
    workers[0].announced()
    print(nursery.ospid, *(worker.child.ospid for worker in workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = run_python(code)
    assert result.returncode == -signal.SIGKILL, result.stderr
    ospids = list(map(int, result.stdout.split()))
    assert len(ospids) == 4
    assert poll_for(lambda: not any(map(fake_worker.still_runs, ospids)), timeout=5)
