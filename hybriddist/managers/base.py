"""What a cluster manager is: the object that starts the workers of a cluster and signals them.

A manager for a batch system, a container platform or another network is a class with these methods; `LocalManager`
and `SSHManager` are two of them. The cluster calls, in this order::

    addprocs(manager) ── launch ──> one WorkerConfig a worker, each followed by notify()
                     ── connect ──> streams to the worker (or None: the library's own sockets)
                     ── manage "register" ... "interrupt" ... "deregister", "finalize"
    rmprocs ── a polite request by message ── kill, if that was not enough

What this module does not know: how any worker is started, and what the cluster does with it.

Source: Julia's ``Distributed.ClusterManager`` and ``WorkerConfig``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

Operation = str
""""register", "deregister", "interrupt" or "finalize"."""


class WorkerConfig:
    """What a manager knows of one worker. Every field is ``None`` until it is assigned; a subclass may have others.

    Raises:
        AttributeError: a name is assigned that is none of the fields.

    Attributes:
        io: a binary file to read the worker's announcement and output from, such as ``Popen.stdout``.
        host: where it listens, if there is no ``io`` to read that from; or the host as the user wrote it.
        port: the port it listens on, if there is no ``io``.
        count: how many workers to start in all through this one; "auto": the CPUs of its host.
        exename: the command that starts further ones.
        exeflags: and its flags.
        userdata: whatever the manager likes.
        tunnel: whether to reach it through an ssh tunnel.
        multiplex: whether ssh connections are shared.
        forward: the forwarding in use.
        bind_addr: the address it was told to bind to.
        sshflags: flags for ssh.
        max_parallel: how many connections to its host are made at once.
        connect_at: what another worker's `ClusterManager.connect` needs to know.
        process: the handle of the process or session that was started.
        ospid: the operating system's number of the worker; known when it has joined.
        cpu_threads: how many CPUs it may use, as it says itself when it joins; also what ``count="auto"`` comes to.
        environ: a dict of the manager's own.
        ident: the worker's name in a custom topology.
        connect_idents: the names that it connects to in a custom topology, a list.
        enable_threaded_blas: whether numeric libraries may use threads in it.
    """

    io: Any
    host: str | None
    port: int | None
    count: int | str | None
    exename: Any
    exeflags: Any
    userdata: Any
    tunnel: bool | None
    multiplex: bool | None
    forward: Any
    bind_addr: str | None
    sshflags: Any
    max_parallel: int | None
    connect_at: Any
    process: Any
    ospid: int | None
    cpu_threads: int | None
    environ: dict[str, Any] | None
    ident: Any
    connect_idents: Any
    enable_threaded_blas: bool | None

    def __init__(self) -> None:
        self.__dict__.update(dict.fromkeys(WorkerConfig.__annotations__))

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass may have fields of its own; here another name is a slip that would change nothing, silently.
        if type(self) is WorkerConfig and name not in WorkerConfig.__annotations__:
            known = ", ".join(WorkerConfig.__annotations__)
            raise AttributeError(f"WorkerConfig has no field {name!r}; it has {known}", name=name, obj=self)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if value is not None and name != "environ"}
        return f"WorkerConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class ClusterManager(ABC):
    """Starts workers and signals them. All methods run on the driver, `connect` on workers too.

    Attributes:
        path_name: what `path_to` says of connections that `connect` makes; a word of your own.
    """

    path_name: str = "custom"

    @abstractmethod
    def launch(self, params: Mapping[str, Any], launched: list[WorkerConfig], notify: Callable[[], None]) -> None:
        """Start workers; return when all are started.

        Args:
            params: all keywords of `addprocs`, completed by `default_addprocs_params`.
            launched: where to append a `WorkerConfig` for each worker.
            notify: to be called after each append: the cluster begins to connect at once.

        Raises:
            LaunchError, CompositeException: some or all could not be started; those appended are used.
        """

    @abstractmethod
    def manage(self, pid: int, config: WorkerConfig, op: Operation) -> None:
        """Hear of a worker's life: "register", "deregister", "finalize"; or, with "interrupt", send it Ctrl-C.

        `addprocs` waits until "register" is done. If that raises, the worker has failed, and is ended.
        """

    def kill(self, pid: int, config: WorkerConfig) -> None:  # noqa: B027 - to do nothing is a choice
        """Make the worker go, which did not follow the polite request that the cluster sends first.

        The default does nothing more: the cluster closes the connection, which a worker does not survive.
        """

    def connect(self, pid: int, config: WorkerConfig) -> tuple[BinaryIO, BinaryIO] | None:
        """Connect this process with worker ``pid``: binary streams to read and to write, complete and in order.

        ``None``, the default, leaves it to the library: shared memory inside a node, TCP between nodes.

        Streams belong to the library afterwards: it flushes and closes them. They may block. The other end gives its
        two to `process_messages`, or is a worker that listens by itself. Runs on a thread of its own, within the
        worker timeout. On the driver, ``config`` is what `launch` appended, and its ``io`` has not been read yet. On
        a worker (of those that called `init_worker` with this kind of manager) it has ``connect_at``, as the
        driver's `connect` left it there, ``ident``, ``connect_idents``, ``host`` and ``ospid``.
        """
        return None

    def default_addprocs_params(self) -> dict[str, Any]:
        """The keywords of `addprocs` that this manager understands, with their defaults."""
        return default_addprocs_params()


def default_addprocs_params() -> dict[str, Any]:
    """The keywords that every manager gets."""
    return {
        "topology": "all_to_all",
        "lazy": True,
        "transport": "auto",
        "dir": None,
        "exename": None,
        "exeflags": None,
        "env": None,
        "enable_threaded_blas": False,
        "timeout": None,
    }


def reject_unknown_keywords(manager: ClusterManager, given: Mapping[str, Any]) -> None:
    """For the built-in managers: no keyword is silently ignored. Others may take any.

    Raises:
        TypeError: a keyword is unknown; the text names it.
    """
    unknown = given.keys() - manager.default_addprocs_params().keys()
    if unknown:
        names = ", ".join(repr(name) for name in sorted(unknown))
        raise TypeError(f"addprocs with {type(manager).__name__} got unexpected keyword arguments: {names}")
