"""The cluster's secret: its form, who may set it, and where it must not be seen."""

from __future__ import annotations

import os
import pickle
import re
import socket
import warnings
from pathlib import Path

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]

LONG = "a-cookie-of-the-test-7391"


@pytest.fixture(autouse=True)
def _cookie_of_before() -> object:
    before = hd.cluster_cookie()
    yield
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])
    hd.cluster_cookie(before)


def test_by_default_it_is_random_text(run_python: ScriptRunner) -> None:
    cookies = {run_python("import hybriddist as hd; print(hd.cluster_cookie())", how="-c").stdout for _ in range(2)}
    assert len(cookies) == 2
    for cookie in cookies:
        assert re.fullmatch(r"[0-9A-Za-z_-]{43}\n", cookie)  # 32 bytes


def test_it_stays_the_same_and_all_know_it(transport: str) -> None:
    cookie = hd.cluster_cookie()
    pids = hd.addprocs(2, transport=transport)
    assert [hd.remotecall_fetch(hd.cluster_cookie, pid) for pid in pids] == [cookie] * 2
    hd.shutdown()
    assert hd.cluster_cookie() == cookie


@pytest.mark.parametrize("cookie", [LONG, "x" * 256, "with spaces and 'quotes'", "!#$%&()*+,-./:;<=>?@"], ids=range(4))
def test_a_cookie_of_ones_own(cookie: str) -> None:
    assert hd.cluster_cookie(cookie) == hd.cluster_cookie() == cookie
    one, two = hd.addprocs(2)
    assert hd.remotecall_fetch(hd.remotecall_fetch, one, hd.cluster_cookie, two) == cookie
    for exename in (None, ["/usr/bin/env", os.sys.executable]):  # type: ignore[attr-defined]
        (pid,) = hd.addprocs(1, exename=exename)
        assert hd.remotecall_fetch(hd.cluster_cookie, pid) == cookie


def test_a_short_one_is_taken_with_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="6 characters can be guessed"):
        assert hd.cluster_cookie("foobar") == "foobar"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hd.cluster_cookie("x" * 16)


@pytest.mark.parametrize(
    "wrong", ["", "x" * 257, "ключ-от-квартиры", "two\nlines-of-text-here", "bell\a" * 5, "nul\0" * 5]
)
def test_what_is_no_cookie(wrong: str) -> None:
    before = hd.cluster_cookie()
    with pytest.raises(ValueError, match="the cookie must be 1 to 256 printable ASCII characters"):
        hd.cluster_cookie(wrong)
    assert hd.cluster_cookie() == before


@pytest.mark.parametrize("wrong", [b"bytes-are-not-text-here", 12345, ["x"]])
def test_a_cookie_is_text(wrong: object) -> None:
    with pytest.raises(TypeError, match="the cookie is text"):
        hd.cluster_cookie(wrong)  # type: ignore[arg-type]


def test_it_cannot_change_under_workers() -> None:
    (pid,) = hd.addprocs(1)
    with pytest.raises(hd.ClusterError, match="while there are workers"):
        hd.cluster_cookie(LONG)
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(hd.cluster_cookie, pid, LONG)
    assert isinstance(info.value.__cause__, hd.NotDriverError)
    hd.rmprocs(pid)
    assert hd.cluster_cookie(LONG) == LONG


def test_it_is_seen_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not on command lines (which everybody can read), in environments, files, output, error texts, or on the wire."""
    hd.cluster_cookie(LONG)
    recorded = _Eavesdropper()
    pids = hd.addprocs(1) + hd.addprocs(1, exename=[os.sys.executable]) + hd.addprocs(1, transport="tcp")  # type: ignore[attr-defined]
    with pytest.raises(hd.CompositeException) as info, recorded:
        hd.addprocs(recorded, timeout=20)
    texts = [str(info.value), repr(info.value), repr(pickle.dumps(info.value.exceptions[0]))]
    for pid in pids:
        ospid = hd.remotecall_fetch(os.getpid, pid)
        parent = Path(f"/proc/{ospid}/stat").read_text().rpartition(")")[2].split()[1]
        for process in (ospid, parent):
            texts += [Path(f"/proc/{process}/{name}").read_bytes().decode("latin-1") for name in ("cmdline", "environ")]
        with pytest.raises(hd.RemoteException) as failed:
            hd.remotecall_fetch(int, pid, "no number")
        texts += [str(failed.value), hd.remotecall_fetch(lambda: repr(dict(os.environ)), pid)]
    hd.shutdown()
    texts += capfd.readouterr()
    texts.append(recorded.heard.decode("latin-1"))
    assert len(recorded.heard) > 32  # the greeting
    assert [text for text in texts if LONG in text] == []


class _Eavesdropper(hd.LocalManager):
    """A manager whose worker is a listener that knows no cookie, and records what it is told."""

    def __init__(self) -> None:
        super().__init__(1)
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))

    def launch(self, params: object, launched: list[hd.WorkerConfig], notify: object) -> None:
        config = hd.WorkerConfig()
        config.host, config.port = self._listener.getsockname()
        launched.append(config)
        notify()  # type: ignore[operator]
        sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(5)
            self.heard += sock.recv(65536)
            sock.sendall(self.heard)  # the driver's own words, reflected
            poll_for(lambda: self._more(sock))

    def _more(self, sock: socket.socket) -> bool:
        try:
            data = sock.recv(65536)
        except OSError:
            return True
        self.heard += data
        return not data

    def manage(self, *_: object) -> None: ...
    def kill(self, *_: object) -> None: ...
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._listener.close()
