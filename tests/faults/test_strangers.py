"""Whoever does not know the cookie: noise, browsers, silent and slow ones, liars. They get nothing, and harm nobody."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.handshake import Handshake, Role
from hybriddist.deadline import Deadline
from hybriddist.errors import AuthenticationError, ConnectError, RemoteProtocolError
from hybriddist.greeting import greet
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module

Door = Callable[[], socket.socket]


def half_close(sock: socket.socket) -> None:
    """Nothing more will come. The worker may have hung up already, which is what it should do."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module", params=["shm", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Workers of either kind: the strangers knock at the same doors."""
    try:
        yield hd.addprocs(2, transport=request.param)
    finally:
        hd.shutdown()


def addresses(pid: int) -> list[str]:
    """Where a worker listens; asked of the operating system and of the file system, not of the library."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(hd.remotecall_fetch(os.getpid, pid))
    ports = [f"tcp:{c.laddr.port}" for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    paths = [f"unix:{c.laddr}" for c in process.net_connections("unix") if c.laddr and "hybriddist-" in c.laddr]
    return ports + sorted(set(paths))


@pytest.fixture(params=["tcp", "unix"])
def door(request: pytest.FixtureRequest, cluster: list[int]) -> Door:
    """Connects to a listener of the first worker."""
    (address,) = [a.partition(":")[2] for a in addresses(cluster[0]) if a.startswith(request.param)]

    def connect() -> socket.socket:
        if request.param == "tcp":
            sock = socket.create_connection(("127.0.0.1", int(address)), timeout=20)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address)  # without a time limit: it waits while the queue is full
            sock.settimeout(20)
        return sock

    return connect


@pytest.fixture(autouse=True)
def _all_well_afterwards(cluster: list[int]) -> Iterator[None]:
    """The cluster has not noticed."""
    yield
    assert hd.workers() == cluster
    assert [hd.remotecall_fetch(abs, pid, -7) for pid in cluster] == [7, 7]
    assert hd.remotecall_fetch(hd.remotecall_fetch, cluster[1], hd.myid, cluster[0]) == cluster[0]


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data


class Canary:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


NOISE = {
    "32 random bytes": os.urandom(32),
    "a MiB of noise": os.urandom(1 << 20),
    "zeros": bytes(4096),
    "a browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a web request with a body": b"DELETE /jobs HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "TLS": bytes.fromhex("16030100c8010000c40303") + os.urandom(200),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an immense length": b"\xff" * 8 + b"x" * 100,
    "a bare pickle": pickle.dumps({"pid": 1}),
}


@pytest.mark.parametrize("noise", NOISE)
def test_noise(door: Door, noise: str) -> None:
    """Closed at once, without a word that would tell what listens here."""
    with door() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(NOISE[noise])
        begin = time.monotonic()
        assert read_all(sock) == b""
        assert time.monotonic() - begin < 5  # the handshake's own limit is twice that


@pytest.mark.parametrize("cookie", ["", "x", "wrong-cookie-of-the-test", "prefix", "longer"])
def test_a_wrong_cookie(door: Door, cookie: str) -> None:
    right = hd.cluster_cookie()
    wrong = {"prefix": right[:-1], "longer": right + "x"}.get(cookie, cookie)
    with door() as sock, pytest.raises((AuthenticationError, ConnectError)):
        greet(sock, Role.CONNECTOR, wrong, Deadline(20))


def test_nothing_is_loaded_before_the_proof(door: Door, tmp_path: Path) -> None:
    """At whatever point of the handshake the pickle comes."""
    canary = pickle.dumps(Canary(tmp_path / "loaded"))
    opening = Handshake(Role.CONNECTOR, "wrong-cookie-of-the-test").start()
    for before in (b"", opening, opening + bytes(32), opening + bytes(64) + b"T", opening + bytes(64) + b"S"):
        with door() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(before + canary)
                half_close(sock)
            read_all(sock)
    pickle.loads(pickle.dumps(Canary(tmp_path / "it works")))
    assert [path.name for path in tmp_path.iterdir()] == ["it works"]


def test_its_own_words_prove_nothing(door: Door) -> None:
    """Reflection: the worker's challenge and proof, sent back to it."""
    with door() as sock:
        sock.sendall(Handshake(Role.CONNECTOR, "wrong-cookie-of-the-test").start())
        answer = sock.recv(4096)
        with contextlib.suppress(ConnectionError):
            sock.sendall(answer)
            sock.sendall(answer)
        assert read_all(sock) == b""


def test_what_was_recorded_proves_nothing(door: Door) -> None:
    """Replay: a greeting that succeeded once, said again."""
    said = b""

    class Recorder:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def sendall(self, data: bytes) -> None:
            nonlocal said
            said += data
            self._sock.sendall(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    with door() as sock:
        greet(Recorder(sock), Role.CONNECTOR, hd.cluster_cookie(), Deadline(20))  # type: ignore[arg-type]
    with door() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(said + b"T")
            half_close(sock)
        answer = read_all(sock)
    assert 0 < len(answer) < 512  # its challenge, and no frame after it


def test_one_that_only_greets_is_no_member(door: Door) -> None:
    """It knows the cookie and then speaks nonsense: that connection ends."""
    for nonsense in (b"T" + os.urandom(1000), b"X", b"S" + os.urandom(100), b"T" + b"\xff" * 64):
        with door() as sock:
            greet(sock, Role.CONNECTOR, hd.cluster_cookie(), Deadline(20))
            with contextlib.suppress(ConnectionError):
                sock.sendall(nonsense)
                half_close(sock)
            read_all(sock)


def test_200_silent_ones(door: Door, cluster: list[int]) -> None:
    """They are bounded, the oldest go first, and those who belong here get in meanwhile."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(door()) for _ in range(200)]
        begin = time.monotonic()
        with door() as sock:
            greet(sock, Role.CONNECTOR, hd.cluster_cookie(), Deadline(20))
        assert time.monotonic() - begin < 5  # those before it have twice that to say something
        assert [hd.remotecall_fetch(abs, pid, -7) for pid in cluster] == [7, 7]
        # All but the newest 64 are closed long before their time is over.
        poll_for(lambda: sum(map(_is_closed, silent)) >= 200 - 65, timeout=8)
        assert hd.remotecall_fetch(threading.active_count, cluster[0]) < 100
    poll_for(lambda: hd.remotecall_fetch(threading.active_count, cluster[0]) < 10, timeout=20)


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_slow_one_gets_no_more_time(door: Door, cluster: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not extend the limit, which is set low on the worker for this test."""
    hd.remotecall_fetch(_set_handshake_limit, cluster[0], 0.4)
    try:
        opening = Handshake(Role.CONNECTOR, "x").start()
        with door() as sock:
            begin = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for byte in opening:
                    sock.sendall(bytes([byte]))
                    sock.settimeout(0.1)
                    try:
                        if sock.recv(1) == b"":
                            break
                    except TimeoutError:
                        continue
            assert 0.3 < time.monotonic() - begin < 5
    finally:
        hd.remotecall_fetch(_set_handshake_limit, cluster[0], 10.0)


def _set_handshake_limit(seconds: float) -> None:
    from hybriddist import limits

    limits.HANDSHAKE_SECONDS = seconds  # type: ignore[misc]


def test_the_socket_in_the_file_system_is_private(cluster: list[int]) -> None:
    for pid in cluster:
        (path,) = [Path(a.partition(":")[2]) for a in addresses(pid) if a.startswith("unix")]
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.parent.stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_another_user_cannot_even_knock_at_it(cluster: list[int], run_python: ScriptRunner) -> None:
    paths = [a.partition(":")[2] for pid in cluster for a in addresses(pid) if a.startswith("unix")]
    code = """
    import os, socket, sys
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    def list_folder(path): os.listdir(os.path.dirname(path))
    for path in sys.argv[1:]:
        for attempt in (socket.socket(socket.AF_UNIX).connect, os.unlink, list_folder):
            try:
                attempt(path)
            except PermissionError:
                print("refused")
    """
    done = run_python(code, *paths, how="-c")
    assert (done.stdout.split(), done.stderr) == (["refused"] * 6, "")


def test_a_listener_that_is_no_worker_learns_nothing(cluster: list[int]) -> None:
    """Somebody else listens where a worker should: the driver refuses, and says nothing worth hearing."""

    class Impostor(hd.LocalManager):
        def launch(self, params: Any, launched: Any, notify: Any) -> None:
            config = hd.WorkerConfig()
            config.host, config.port = listener.getsockname()
            launched.append(config)
            notify()

        def manage(self, *_: Any) -> None: ...
        def kill(self, *_: Any) -> None: ...

    def pretend() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(20)
            with contextlib.suppress(OSError, AuthenticationError, RemoteProtocolError, ConnectError):
                greet(sock, Role.ACCEPTOR, "a-guess-of-the-cookie-1", Deadline(20))
                heard.append("greeted")

    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(hd.CompositeException) as info:
            hd.addprocs(Impostor(1))
        thread.join(20)
    (error,) = info.value
    assert isinstance(error, hd.LaunchError)
    assert error.stage == "connect"
    assert isinstance(error.__cause__, hd.AuthenticationError | hd.ConnectError)
    assert heard == []
