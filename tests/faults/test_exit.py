"""The end of the driver, however it comes: quick, quiet, with its own exit code, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybriddist.limits import SHUTDOWN_SECONDS
from tests.helpers import leaks
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ROOT, ScriptRunner

EXIT_SECONDS = 5.0

BEGIN = """
import os, signal, sys, threading, time
import hybriddist as hd
pids = hd.addprocs(2, transport=os.environ["TRANSPORT"])
hd.remotecall_fetch(hd.remotecall_fetch, pids[0], hd.myid, pids[1])
"""


BOTH = pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the script's cluster. Both, where connections matter for its end; for the rest one will do."""
    name = getattr(request, "param", "shm")
    monkeypatch.setenv("TRANSPORT", name)
    return str(name)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of scripts; its path is short, because sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="hd-") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


@pytest.fixture(autouse=True)
def nothing_left(run_id: str, folder: Path) -> Iterator[None]:
    """No process, no segment, no socket, no folder, five seconds after the end."""
    before = set(leaks.orphans(run_id))
    segments = _segments()
    yield

    def left() -> tuple[dict[int, str], set[str], list[Path]]:
        orphans = {number: command for number, command in leaks.orphans(run_id).items() if number not in before}
        return orphans, {name for name in _segments() - segments if not _has_living_owner(name)}, list(folder.iterdir())

    with contextlib.suppress(pytest.fail.Exception):
        # Segments too: those of a test beside this one, which kills processes, are there for a moment.
        poll_for(lambda: not any(left()), timeout=EXIT_SECONDS)
    assert left() == ({}, set(), [])


def _segments() -> set[str]:
    names = os.listdir(leaks.SEGMENTS) if leaks.SEGMENTS.is_dir() else []
    return {name for name in names if name.startswith("hybriddist-")}


def _has_living_owner(name: str) -> bool:
    """Segments of other users of this machine, whose processes live, are no concern of ours."""
    match = leaks.SEGMENT_NAME.match(name)
    return match is not None and Path("/proc", match[1]).exists()


def lasted(done: Callable[[], subprocess.CompletedProcess[str]]) -> tuple[subprocess.CompletedProcess[str], float]:
    result = done()
    return result, time.monotonic() - float(result.stdout.split()[-1])


# ---- the script ends by itself ---------------------------------------------------------------------------------

ENDS = {
    "the last line": ("", 0, ""),
    "sys.exit(7)": ("sys.exit(7)", 7, ""),
    "sys.exit('text')": ("sys.exit('text')", 1, "text\n"),
    "an exception": ("raise ValueError('of the user')", 1, "ValueError: of the user\n"),
    "os._exit(4)": ("sys.stdout.flush(); os._exit(4)", 4, ""),
    "a remote exception": ("hd.remotecall_fetch(int, pids[0], 'no number')", 1, "'no number'\n"),
    "shutdown twice": ("hd.shutdown(); hd.shutdown()", 0, ""),
}

PENDING = {
    "nothing pending": "",
    "calls pending": "calls = [hd.remotecall(time.sleep, pid, 60) for pid in pids for _ in range(3)]",
    "a thread waits": """
threading.Thread(target=lambda: hd.remotecall_fetch(time.sleep, pids[0], 60), daemon=True).start()
while not hd.remotecall_fetch(lambda: __import__("threading").active_count(), pids[0]): pass
""",
}


@pytest.mark.parametrize(
    ("end", "pending", "transport"),
    [(end, "calls pending", "shm") for end in ENDS]
    + [("the last line", pending, transport) for pending in PENDING for transport in ("shm", "tcp")]
    + [("an exception", "a thread waits", "tcp")],
    indirect=["transport"],
)
def test_ends(run_python: ScriptRunner, end: str, pending: str) -> None:
    code, status, words = ENDS[end]
    done, seconds = lasted(lambda: run_python(f"{BEGIN}\n{PENDING[pending]}\nprint(time.monotonic())\n{code}\n"))
    assert done.returncode == status
    if words:
        assert done.stderr.rstrip().endswith(words.rstrip())
        assert done.stderr.count("Traceback") <= 1
    else:
        assert done.stderr == ""
    assert seconds < EXIT_SECONDS


def test_a_worker_that_cannot_leave(run_python: ScriptRunner) -> None:
    """A call in C that holds the interpreter, in a process that ignores SIGTERM."""
    code = f"""{BEGIN}
def hold():
    import ctypes, signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(60)
ospid = hd.remotecall_fetch(os.getpid, pids[0])
hd.remotecall(hold, pids[0])
while "nanosleep" not in open(f"/proc/{{ospid}}/wchan").read(): time.sleep(0.01)
print(time.monotonic())
"""
    done, seconds = lasted(lambda: run_python(code))
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < EXIT_SECONDS


def test_a_launch_without_end(run_python: ScriptRunner) -> None:
    """Of a manager whose worker never speaks, and cannot be killed."""
    code = f"""{BEGIN}
class Silent(hd.ClusterManager):
    def launch(self, params, launched, notify):
        config = hd.WorkerConfig()
        reading, self.writing = os.pipe()
        config.io = os.fdopen(reading, "rb", 0)
        launched.append(config)
        notify()
        launching.set()
    def manage(self, pid, config, op): pass
    def kill(self, pid, config): pass
launching = threading.Event()
threading.Thread(target=hd.addprocs, args=(Silent(),), daemon=True).start()
launching.wait()
print(time.monotonic())
"""
    done, seconds = lasted(lambda: run_python(code))
    assert done.returncode == 0
    assert seconds < SHUTDOWN_SECONDS + EXIT_SECONDS


def test_a_thread_that_still_works_is_waited_for(run_python: ScriptRunner) -> None:
    """As everywhere in Python: the program ends when its last thread that is no daemon does."""
    code = f"""{BEGIN}
def work():
    for n in range(3):
        print(hd.remotecall_fetch(lambda n: (time.sleep(0.05), n)[1], pids[0], n), flush=True)
    print(time.monotonic())
threading.Thread(target=work).start()
"""
    done, seconds = lasted(lambda: run_python(code))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:3] == ["0", "1", "2"]
    assert seconds < EXIT_SECONDS


def test_a_copy_of_the_driver_ends_alone(run_python: ScriptRunner) -> None:
    """What a forked copy does at its end is no business of the workers; it may have workers of its own."""
    code = f"""{BEGIN}
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, that threads and forks don't go together
for kind in ("return", "own workers", "call"):
    ospid = os.fork()
    if ospid == 0:
        assert hd.workers() == [1] and hd.nprocs() == 1
        if kind == "own workers":
            (own,) = hd.addprocs(1)
            assert hd.remotecall_fetch(hd.workers, own) == [own]
        elif kind == "call":
            try:
                hd.remotecall_fetch(hd.myid, pids[0])
            except hd.NoSuchProcessError:
                pass
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(ospid, 0)[1]) == 5
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids == hd.workers()
print(time.monotonic())
"""
    done, seconds = lasted(lambda: run_python(code))
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < EXIT_SECONDS


# ---- the script is ended ---------------------------------------------------------------------------------------


class Script:
    """A script that runs in a process of its own, on a terminal if need be."""

    def __init__(self, folder: Path, code: str, terminal: bool = False) -> None:
        path = folder / "script.py"
        path.write_text(textwrap.dedent(code))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON_COLORS": "0"}
        self._master = -1
        self.text = ""
        if terminal:
            self._master, slave = pty.openpty()
            streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        else:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # A session of its own, whose terminal this is: Ctrl-C goes to its foreground group, as in a shell.
        command = [sys.executable, "-c", _ON_TERMINAL if terminal else _PLAIN, str(path)]
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload]
        if terminal:
            os.close(slave)
        self._fd = self._master if terminal else self.process.stdout.fileno()

    def read(self, seconds: float = 0.0) -> bool:
        """Read what is there; False at the end."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how a terminal tells of the end
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + 20
        while not (found := re.search(pattern, self.text)):
            if time.monotonic() > end or not self.read(0.1):
                pytest.fail(f"{pattern!r} did not come:\n{self.text}")
        return found

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def wait(self) -> int:
        """Its exit status; the time limit is that of every end."""
        end = time.monotonic() + EXIT_SECONDS
        while self.read(0.05) and time.monotonic() < end:
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._master >= 0:
            os.close(self._master)
        elif self.process.stdout is not None:
            self.process.stdout.close()


_PLAIN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
_ON_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {_PLAIN}"


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def start(code: str, terminal: bool = False) -> Script:
        scripts.append(Script(tmp_path, code, terminal))
        return scripts[-1]

    yield start
    for one in scripts:
        one.close()


WAITS = {
    "idle": "time.sleep(60)",
    "calls pending": "[hd.remotecall(time.sleep, pid, 60) for pid in pids]; print('ready', flush=True); time.sleep(60)",
    "fetching": "hd.remotecall_fetch(time.sleep, pids[0], 60)",
    "worker holds the interpreter": """
def hold():
    import ctypes
    ctypes.PyDLL(None).sleep(60)
hd.remotecall(hold, pids[0]); time.sleep(60)
""",
    "workers of a command": "hd.addprocs(1, exename=sys.executable); print('more', flush=True); time.sleep(60)",
    "a forked copy lives on": """
if os.fork() == 0:
    os.closerange(0, 3)
    time.sleep(4)
    os._exit(0)
time.sleep(60)
""",
}


@pytest.mark.parametrize(
    ("waits", "transport", "number"),
    [(waits, "shm", signal.SIGKILL) for waits in WAITS]
    + [("fetching", "tcp", signal.SIGKILL), ("fetching", "shm", signal.SIGTERM)],
    indirect=["transport"],
)
def test_killed(script: Callable[..., Script], waits: str, number: int) -> None:
    running = script(f"{BEGIN}\nprint('ready', flush=True)\n{WAITS[waits]}")
    running.wait_for("more" if "command" in waits else "ready")
    running.process.send_signal(number)
    assert running.process.wait(EXIT_SECONDS) == -number


def test_killed_while_workers_are_added(script: Callable[..., Script]) -> None:
    for delay in (0.0, 0.05, 0.1, 0.2):
        running = script(
            "import hybriddist as hd\nprint('ready', flush=True)\nhd.addprocs(4)\nimport time; time.sleep(9)"
        )
        running.wait_for("ready")
        time.sleep(delay)
        running.process.kill()
        running.process.wait(EXIT_SECONDS)
    # Between making something and telling somebody of it there is a moment; what it leaves, the next driver sweeps.
    assert script("import hybriddist as hd\nhd.addprocs(1)").wait() == 0


def test_all_killed_at_one_stroke(script: Callable[..., Script], run_id: str, folder: Path) -> None:
    """What nobody could remove any more, the next driver sweeps."""
    running = script(f"{BEGIN}\nprint('ready', flush=True)\ntime.sleep(60)")
    running.wait_for("ready")
    group = [ospid for ospid, command in leaks.orphans(run_id).items() if _is_below(ospid, running.process.pid)]
    assert len(group) >= 2  # the template and the workers have sessions of their own
    for ospid in [*group, running.process.pid]:
        os.kill(ospid, signal.SIGSTOP)
    for ospid in [*group, running.process.pid]:
        os.kill(ospid, signal.SIGKILL)
    running.process.wait()
    assert list(folder.iterdir()) != []
    after = script(f"{BEGIN}\nprint('ready', flush=True)")
    after.wait_for("ready")
    assert after.wait() == 0


def _is_below(ospid: int, ancestor: int) -> bool:
    while ospid > 1:
        try:
            ospid = int(Path(f"/proc/{ospid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if ospid == ancestor:
            return True
    return False


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------


CAUGHT = """
try:
    print('ready', flush=True)
    {work}
except KeyboardInterrupt:
    print('interrupted', flush=True)
    print(hd.workers() == pids, [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids, flush=True)
"""


@BOTH
@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        "hd.remotecall_fetch(time.sleep, pids[0], 60)",
        "hd.remotecall(time.sleep, pids[0], 60).fetch()",
        "while True: hd.remotecall_fetch(abs, pids[0], -7)",
    ],
    ids=["sleeping", "fetching", "future", "calling"],
)
def test_ctrl_c_once_is_an_exception_and_the_cluster_stays(script: Callable[..., Script], work: str) -> None:
    """Workers have sessions of their own: the terminal's Ctrl-C reaches the driver only."""
    running = script(BEGIN + CAUGHT.format(work=work), terminal=True)
    running.wait_for("ready")
    time.sleep(0.1)
    running.press_ctrl_c()
    running.wait_for("interrupted\nTrue True")
    assert running.wait() == 0
    assert "Traceback" not in running.text


def test_ctrl_c_while_workers_are_added(script: Callable[..., Script]) -> None:
    """None of them stays, and nobody else is harmed."""
    work = "hd.addprocs(3, exename=['/bin/sh', '-c', 'exec sleep 60'])"
    running = script(BEGIN + CAUGHT.format(work=work), terminal=True)
    running.wait_for("ready")
    time.sleep(0.2)
    running.press_ctrl_c()
    running.wait_for("interrupted\nTrue True")
    assert running.wait() == 0


def test_ctrl_c_that_is_not_caught(script: Callable[..., Script]) -> None:
    running = script(
        f"{BEGIN}\nprint('ready', flush=True)\nhd.remotecall_fetch(time.sleep, pids[0], 60)", terminal=True
    )
    running.wait_for("ready")
    time.sleep(0.1)
    running.press_ctrl_c()
    assert running.wait() == -signal.SIGINT
    assert running.text.count("Traceback") == 1
    assert running.text.endswith("KeyboardInterrupt\n")


def test_ctrl_c_again_and_again_at_the_end(script: Callable[..., Script]) -> None:
    """Impatience does not leave anything behind either."""
    hold = "def hold():\n    import ctypes\n    ctypes.PyDLL(None).sleep(60)\nhd.remotecall(hold, pids[0])\n"
    running = script(f"{BEGIN}\n{hold}\nprint('ready', flush=True)\ntime.sleep(60)", terminal=True)
    running.wait_for("ready")
    for _ in range(4):
        running.press_ctrl_c()
        running.read(0.15)
    running.wait()
