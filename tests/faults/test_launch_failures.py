"""Workers that die or hang on their way into the cluster, and systems that allow no more of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers import leaks
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ROOT, ScriptRunner

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture
def _only_what_was_there(run_id: str) -> Iterator[None]:
    """A launch that failed leaves no process and no member, and the next one works."""
    (pid,) = hd.addprocs(1)
    processes = set(leaks.orphans(run_id))
    yield
    assert hd.workers() == [pid]
    poll_for(lambda: set(leaks.orphans(run_id)) <= processes, what="no process is left")
    (another,) = hd.addprocs(1)
    assert hd.remotecall_fetch(hd.remotecall_fetch, another, hd.workers, pid) == [pid, another]
    hd.rmprocs(pid, another)


@pytest.fixture(scope="module", autouse=True)
def _driver() -> Iterator[None]:
    yield
    hd.shutdown()


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """An exename that runs Python code, with the options for a worker in ``sys.argv``."""

    def command(code: str) -> list[str]:
        script = tmp_path / "command.py"
        script.write_text(f"import os, runpy, signal, socket, sys, time\n{code}")
        return [sys.executable, str(script)]

    return command


def failure_of(**arguments: Any) -> hd.LaunchError:
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(1, **arguments)
    (error,) = info.value
    assert isinstance(error, hd.LaunchError)
    assert error.host == "localhost"
    assert info.value.pids == []
    return error


DEATHS = {
    "before it says anything": ("sys.exit('too early')", "announce", "exit code 1", "too early"),
    "killed before it says anything": ("os.kill(os.getpid(), 9)", "announce", "signal SIGKILL", ""),
    "in the middle of its line": (
        "sys.stdout.write('hybriddist_worker:90'); sys.exit(4)",
        "announce",
        "exit code 4",
        "",
    ),
    "after its line": (
        "print('hybriddist_worker:9#127.0.0.1', flush=True); time.sleep(60)",
        "connect",
        "127.0.0.1:9",
        "",
    ),
}


@pytest.mark.usefixtures("_only_what_was_there")
@pytest.mark.parametrize("death", DEATHS)
def test_it_dies(command: Callable[[str], list[str]], death: str) -> None:
    code, stage, text, tail = DEATHS[death]
    error = failure_of(exename=command(code))
    assert error.stage == stage
    assert text in str(error)
    assert tail in error.stderr_tail


@pytest.mark.usefixtures("_only_what_was_there")
def test_a_wrong_line_is_no_announcement(command: Callable[[str], list[str]]) -> None:
    error = failure_of(exename=command("print(' hybriddist_worker:9000#127.0.0.1'); print('hybriddist_worker:x#y')"))
    assert error.stage == "announce"


SILENT = {
    "no announcement": ("time.sleep(60)", "announce"),
    "accepts and is silent": (
        "s = socket.create_server(('127.0.0.1', 0)); print(f'hybriddist_worker:{s.getsockname()[1]}#127.0.0.1',"
        " flush=True); time.sleep(60)",
        "connect",
    ),
    "greets and does not join": (
        "s = socket.create_server(('127.0.0.1', 0)); print(f'hybriddist_worker:{s.getsockname()[1]}#127.0.0.1',"
        " flush=True)\nfrom hybriddist.greeting import greet\nfrom hybriddist.core.handshake import Role\n"
        "from hybriddist.deadline import Deadline\nc = s.accept()[0]\n"
        "greet(c, Role.ACCEPTOR, sys.stdin.readline().strip(), Deadline(9))\ntime.sleep(60)",
        "join",
    ),
}


@pytest.mark.usefixtures("_only_what_was_there")
@pytest.mark.parametrize("silence", SILENT)
def test_it_hangs(command: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch, silence: str) -> None:
    """At whatever stage: the limit of a worker ends it."""
    monkeypatch.setenv("HYBRIDDIST_WORKER_TIMEOUT", "1.0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code, stage = SILENT[silence]
    begin = time.monotonic()
    error = failure_of(exename=command(code), transport="tcp")
    assert time.monotonic() - begin < 10
    assert error.stage == stage
    if silence != "greets and does not join":
        assert isinstance(error, TimeoutError | hd.LaunchError)


@pytest.mark.usefixtures("_only_what_was_there")
def test_it_dies_after_joining_at_once(command: Callable[[str], list[str]], capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the moment: it is either no member or a dead one, and nobody waits."""
    flags = f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['hybriddist', *sys.argv[3:]]"
    run = "runpy.run_module('hybriddist', None, '__main__')"
    kinds: set[type[Exception]] = set()
    for delay in (0.05, 0.15, 0.25):
        code = f"{flags}; signal.setitimer(signal.ITIMER_REAL, {delay}); {run}"
        try:
            (pid,) = hd.addprocs(1, exename=command(code))
        except hd.CompositeException as group:
            kinds |= {type(error) for error in group}
        else:
            with pytest.raises(hd.ProcessExitedException, match="SIGALRM"):
                hd.remotecall_fetch(time.sleep, pid, 60)
    assert kinds <= {hd.LaunchError}


def test_a_killed_template_is_replaced() -> None:
    """Its workers stay, and new ones come from a new one."""
    (old,) = hd.addprocs(1)
    ospid = hd.remotecall_fetch(os.getpid, old)
    template = int(Path(f"/proc/{ospid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(template, signal.SIGKILL)
    (new,) = hd.addprocs(1)
    assert hd.remotecall_fetch(hd.remotecall_fetch, new, hd.myid, old) == old
    hd.rmprocs(old, new)


def test_a_worker_that_nobody_fetches_leaves(tmp_path: Path) -> None:
    """Started by hand, with a driver that never comes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYBRIDDIST_WORKER_TIMEOUT": "0.5"}
    with subprocess.Popen(
        [sys.executable, "-m", "hybriddist", "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("a-cookie-for-the-test\n")
        process.stdin.flush()
        assert process.wait(20) == 1
        assert process.stdout is not None
        first, rest = process.stdout.readline(), process.stdout.read()
        assert first.startswith("hybriddist_worker:")
        assert "could not connect within 0.5 seconds.\nexiting.\n" in rest


def test_a_system_without_more_processes(run_python: ScriptRunner, tmp_path: Path) -> None:
    """EAGAIN from the system is an error of that worker; the cluster goes on."""
    pids = Path("/sys/fs/cgroup/pids")
    group = pids / f"hd-test-{os.getpid()}"
    if not (pids / "cgroup.procs").exists() or not os.access(pids, os.W_OK):
        pytest.skip("needs root and the control group for numbers of processes")
    try:
        group.mkdir()
        (group / "pids.max").write_text("60")
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    code = f"""
    import os
    open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
    import hybriddist as hd
    first = hd.addprocs(2)
    try:
        hd.addprocs(60)
    except hd.CompositeException as group:
        assert all(isinstance(error, hd.LaunchError) for error in group), group
        hd.rmprocs(group.pids)
    else:
        raise AssertionError("the limit was not felt")
    assert hd.workers() == first
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in first] == first
    print("well")
    """
    try:
        done = run_python(code, timeout=60, env={"HYBRIDDIST_WORKER_TIMEOUT": "10"})
    finally:
        poll_for(lambda: not (group / "cgroup.procs").read_text(), timeout=10)
        group.rmdir()
    assert done.stdout.endswith("well\n"), done.stderr  # below what the failed ones said
    assert done.returncode == 0


def test_a_process_without_more_descriptors(run_python: ScriptRunner) -> None:
    """The error says what to do; when it is done, workers can be added."""
    code = """
    import resource
    import hybriddist as hd
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    try:
        hd.addprocs(12, transport="tcp")
    except hd.CompositeException as group:
        print([str(error) for error in group if "raise its limit (ulimit -n)" not in str(error)])
    else:
        raise AssertionError("the limit was not felt")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (pid,) = hd.addprocs(1)
    print(hd.remotecall_fetch(hd.myid, pid) == pid)
    """
    done = run_python(code, timeout=60)
    assert done.stdout == "[]\nTrue\n", done.stderr


@pytest.mark.usefixtures("_only_what_was_there")
def test_an_address_that_is_somebody_elses(command: Callable[[str], list[str]]) -> None:
    """The port was announced and then taken by a server of another kind, which answers with its own banner."""
    code = (
        "s = socket.create_server(('127.0.0.1', 0)); print(f'hybriddist_worker:{s.getsockname()[1]}#127.0.0.1',"
        " flush=True); c = s.accept()[0]; c.sendall(b'SSH-2.0-OpenSSH_9.6\\r\\n' + b'x' * 200); time.sleep(60)"
    )
    error = failure_of(exename=command(code), transport="tcp")
    assert error.stage == "connect"
    assert isinstance(error.__cause__, hd.RemoteProtocolError)


@pytest.mark.usefixtures("_only_what_was_there")
def test_every_worker_finds_a_port_of_its_own() -> None:
    """Many at once look for one in the same range; each begins with the one that its number hints at."""
    psutil = pytest.importorskip("psutil")
    pids = hd.addprocs(12)
    ports = set()
    for pid in pids:
        ospid = hd.remotecall_fetch(os.getpid, pid)
        connections = psutil.Process(ospid).net_connections("tcp")
        (port,) = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
        assert port >= 9000 + ospid % 1000
        ports.add(port)
    assert len(ports) == 12
    hd.rmprocs(pids)


@pytest.mark.usefixtures("_only_what_was_there")
def test_spaces_and_quotes_are_no_danger(tmp_path: Path) -> None:
    folder = tmp_path / "a b;touch x $(touch y) 'z'"
    folder.mkdir()
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"')
    script.chmod(0o700)
    (pid,) = hd.addprocs(1, exename=script, dir=folder, env={"HD_TEST_ODD": "a'b\"c $(d)\n;e"})
    assert hd.remotecall_fetch(os.getcwd, pid) == str(folder)
    assert hd.remotecall_fetch(os.getenv, pid, "HD_TEST_ODD") == "a'b\"c $(d)\n;e"
    assert [path.name for path in folder.iterdir()] == ["python"]
    hd.rmprocs(pid)
