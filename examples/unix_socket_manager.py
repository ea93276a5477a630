"""A cluster manager whose workers speak over Unix sockets of its own, and nothing else.

    python examples/unix_socket_manager.py [NUMBER_OF_WORKERS]

It shows both sides of a transport of your own: on the driver a `ClusterManager` with `launch`, `connect`, `manage` and
`kill`; on the worker a program that accepts connections and gives them to the library. Instead of sockets it could be
anything that gives two binary streams: a message queue, the channels of an SSH connection, a serial line.

How it works::

    driver                                          worker (this file, run with --worker)
      launch: start it, cookie through stdin  ───►  init_worker(cookie, UnixSocketManager())
      connect: dial DIRECTORY/N.sock          ───►  accept, process_messages
                                                    connect: dial another worker, at what config.connect_at says
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import hybriddist as hd

START_SECONDS = 30.0
"""From the start of a worker's interpreter to its socket."""

EXIT_SECONDS = 5.0


class UnixSocketManager(hd.ClusterManager):
    """Workers on this machine that are reached through sockets in a private folder.

    Args:
        count: how many workers to launch; workers themselves have this manager too, and launch none.
    """

    path_name = "unix"  # what hd.path_to(pid) says

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.folder: str | None = None
        self.live = 0

    def __repr__(self) -> str:
        return f"UnixSocketManager({self.count})"

    def launch(self, params: Mapping[str, Any], launched: list[hd.WorkerConfig], notify: Callable[[], None]) -> None:
        self.folder = tempfile.mkdtemp(prefix="unix-socket-manager-")  # only this user may enter it
        self.live = self.count
        for number in range(self.count):
            path = os.path.join(self.folder, f"{number}.sock")
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            assert process.stdin is not None
            process.stdin.write(hd.cluster_cookie().encode() + b"\n")
            process.stdin.close()
            config = hd.WorkerConfig()
            config.userdata = (process, path)
            config.io = process.stdout  # what the worker prints appears on the driver
            config.ospid = process.pid
            launched.append(config)
            notify()

    def connect(self, pid: int, config: hd.WorkerConfig) -> tuple[BinaryIO, BinaryIO]:
        if config.connect_at is None:  # on the driver: remember it for the workers
            process, config.connect_at = config.userdata
            wait_for_socket(process, config.connect_at)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(config.connect_at)
            # The socket stays open for as long as one of its files is.
            return connection.makefile("rb"), connection.makefile("wb")

    def manage(self, pid: int, config: hd.WorkerConfig, op: str) -> None:
        if op == "interrupt":
            config.userdata[0].send_signal(signal.SIGINT)
        elif op == "finalize":
            config.userdata[0].wait(EXIT_SECONDS)
            self.live -= 1
            if not self.live and self.folder is not None:
                shutil.rmtree(self.folder)

    def kill(self, pid: int, config: hd.WorkerConfig) -> None:
        config.userdata[0].kill()


def wait_for_socket(process: subprocess.Popen[bytes], path: str) -> None:
    """Until the worker listens."""
    end = time.monotonic() + START_SECONDS
    while not os.path.exists(path):
        if process.poll() is not None:
            raise hd.LaunchError(f"the worker's program ended with exit code {process.returncode}", stage="start")
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not appear within {START_SECONDS} seconds")
        time.sleep(0.01)


def be_a_worker(path: str) -> None:
    """Accept connections until the library ends this process: when the driver says so, or is gone."""
    hd.init_worker(sys.stdin.readline().strip(), UnixSocketManager())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(64)
        os.rename(path + ".new", path)  # who sees it can connect
        while True:
            connection, _ = listener.accept()
            with connection:
                hd.process_messages(connection.makefile("rb"), connection.makefile("wb"))


def main(count: int) -> None:
    """Add workers, and let them speak with the driver and with each other."""
    pids = hd.addprocs(UnixSocketManager(count))
    for pid, other in zip(pids, pids[1:] + pids[:1], strict=True):
        answer = hd.remotecall_fetch(hd.remotecall_fetch, pid, pow, other, 2, pid)
        path = hd.remotecall_fetch(hd.path_to, pid, other)
        print(f"{hd.path_to(pid)}: worker {pid} had worker {other} compute 2 ** {pid} = {answer}, by {path}")
    total = hd.distributed(abs, range(-100, 100), reduce=int.__add__)
    print(f"the sum of all distances is {total}")
    hd.shutdown()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        be_a_worker(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
