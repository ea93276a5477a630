"""hybriddist: run Python in parallel on one machine and across many.

Julia's Distributed programming model, with one thing added: a node is one shared memory. See the README for a tour.

Names are loaded from their modules when they are first used: a worker needs the runtime only, and starts in half the
time. So no module may have the name of a function here: importing it would put the module in the function's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hybriddist.arrays import SharedArray, share
    from hybriddist.asyncmaps import asyncmap
    from hybriddist.awaiting import as_completed
    from hybriddist.broadcasts import Broadcast, broadcast
    from hybriddist.caching_pool import CachingPool
    from hybriddist.calls import (
        fetchfrom,
        remote_do,
        remotecall,
        remotecall_fetch,
        remotecall_wait,
        spawn,
        spawnat,
    )
    from hybriddist.channel import RemoteChannel
    from hybriddist.cluster import (
        addprocs,
        cluster_cookie,
        interrupt,
        rmprocs,
        shutdown,
    )
    from hybriddist.core.captured import CapturedException
    from hybriddist.errors import (
        AuthenticationError,
        ClusterError,
        CompositeException,
        ConnectError,
        DeserializeError,
        FrameCorruptError,
        FrameTooLargeError,
        HostKeyError,
        HybridDistError,
        InternalError,
        InvalidStateException,
        LaunchError,
        LaunchTimeout,
        LocalProtocolError,
        NoSuchProcessError,
        NotDriverError,
        PeerSilent,
        ProcessExitedException,
        ProtocolError,
        RemoteException,
        RemoteProtocolError,
        RemovalTimeout,
        SerializationError,
        SerializeError,
        SharedMemoryFull,
        TopologyError,
        TransportBroken,
        TransportClosed,
        TransportError,
        VersionMismatchError,
    )
    from hybriddist.evaluation import (
        clear,
        everywhere,
        remotecall_all,
        remotecall_eval,
    )
    from hybriddist.events import off_worker, on_worker
    from hybriddist.future import Future
    from hybriddist.handles import (
        channel_from_id,
        close,
        fetch,
        finalize,
        isopen,
        isready,
        live_references,
        put,
        remoteref_id,
        take,
        wait,
        worker_id_from_socket,
    )
    from hybriddist.ids import RRID
    from hybriddist.in_place import empty
    from hybriddist.listing import (
        myid,
        nodes,
        nprocs,
        nworkers,
        path_to,
        procs,
        procs_on_node,
        workers,
    )
    from hybriddist.loops import distributed
    from hybriddist.managers.base import ClusterManager, WorkerConfig
    from hybriddist.managers.joining import init_worker, process_messages
    from hybriddist.managers.local import LocalManager
    from hybriddist.maps import (
        imap,
        imap_unordered,
        pmap,
    )
    from hybriddist.pools import (
        AbstractWorkerPool,
        WorkerPool,
        default_worker_pool,
    )
    from hybriddist.retrying import ExponentialBackOff, retry
    from hybriddist.runtime.channels import Channel
    from hybriddist.runtime.start import start_worker
    from hybriddist.runtime.status import get_status, set_status
    from hybriddist.scopes import sync

__version__ = "0.1.0"

__all__ = [
    "AbstractWorkerPool",
    "AuthenticationError",
    "Broadcast",
    "CachingPool",
    "CapturedException",
    "Channel",
    "ClusterError",
    "ClusterManager",
    "CompositeException",
    "ConnectError",
    "DeserializeError",
    "ExponentialBackOff",
    "FrameCorruptError",
    "FrameTooLargeError",
    "Future",
    "HostKeyError",
    "HybridDistError",
    "InternalError",
    "InvalidStateException",
    "LaunchError",
    "LaunchTimeout",
    "LocalManager",
    "LocalProtocolError",
    "NoSuchProcessError",
    "NotDriverError",
    "PeerSilent",
    "ProcessExitedException",
    "ProtocolError",
    "RRID",
    "RemoteChannel",
    "RemoteException",
    "RemoteProtocolError",
    "RemovalTimeout",
    "SerializationError",
    "SerializeError",
    "SharedArray",
    "SharedMemoryFull",
    "TopologyError",
    "TransportBroken",
    "TransportClosed",
    "TransportError",
    "VersionMismatchError",
    "WorkerConfig",
    "WorkerPool",
    "addprocs",
    "as_completed",
    "asyncmap",
    "broadcast",
    "channel_from_id",
    "clear",
    "close",
    "cluster_cookie",
    "default_worker_pool",
    "distributed",
    "empty",
    "everywhere",
    "fetch",
    "fetchfrom",
    "finalize",
    "get_status",
    "init_worker",
    "interrupt",
    "isopen",
    "isready",
    "live_references",
    "myid",
    "nodes",
    "nprocs",
    "nworkers",
    "off_worker",
    "on_worker",
    "path_to",
    "imap",
    "imap_unordered",
    "pmap",
    "process_messages",
    "procs",
    "procs_on_node",
    "put",
    "remote_do",
    "remotecall",
    "remotecall_all",
    "remotecall_eval",
    "remotecall_fetch",
    "remotecall_wait",
    "remoteref_id",
    "retry",
    "rmprocs",
    "set_status",
    "share",
    "shutdown",
    "spawn",
    "spawnat",
    "start_worker",
    "sync",
    "take",
    "wait",
    "worker_id_from_socket",
    "workers",
]

_HOMES: Final = {
    "hybriddist.arrays": ("SharedArray", "share"),
    "hybriddist.asyncmaps": ("asyncmap",),
    "hybriddist.calls": (
        "fetchfrom",
        "remote_do",
        "remotecall",
        "remotecall_fetch",
        "remotecall_wait",
        "spawn",
        "spawnat",
    ),
    "hybriddist.channel": ("RemoteChannel",),
    "hybriddist.cluster": (
        "addprocs",
        "cluster_cookie",
        "interrupt",
        "rmprocs",
        "shutdown",
    ),
    "hybriddist.core.captured": ("CapturedException",),
    "hybriddist.errors": (
        "AuthenticationError",
        "ClusterError",
        "CompositeException",
        "ConnectError",
        "DeserializeError",
        "FrameCorruptError",
        "FrameTooLargeError",
        "HostKeyError",
        "HybridDistError",
        "InternalError",
        "InvalidStateException",
        "LaunchError",
        "LaunchTimeout",
        "LocalProtocolError",
        "NoSuchProcessError",
        "NotDriverError",
        "PeerSilent",
        "ProcessExitedException",
        "ProtocolError",
        "RemoteException",
        "RemoteProtocolError",
        "RemovalTimeout",
        "SerializationError",
        "SerializeError",
        "SharedMemoryFull",
        "TopologyError",
        "TransportBroken",
        "TransportClosed",
        "TransportError",
        "VersionMismatchError",
    ),
    "hybriddist.evaluation": (
        "clear",
        "everywhere",
        "remotecall_all",
        "remotecall_eval",
    ),
    "hybriddist.events": (
        "off_worker",
        "on_worker",
    ),
    "hybriddist.future": ("Future",),
    "hybriddist.awaiting": ("as_completed",),
    "hybriddist.handles": (
        "channel_from_id",
        "close",
        "fetch",
        "finalize",
        "isopen",
        "isready",
        "live_references",
        "put",
        "remoteref_id",
        "take",
        "wait",
        "worker_id_from_socket",
    ),
    "hybriddist.ids": ("RRID",),
    "hybriddist.in_place": ("empty",),
    "hybriddist.listing": (
        "myid",
        "nodes",
        "nprocs",
        "nworkers",
        "path_to",
        "procs",
        "procs_on_node",
        "workers",
    ),
    "hybriddist.loops": ("distributed",),
    "hybriddist.managers.base": (
        "ClusterManager",
        "WorkerConfig",
    ),
    "hybriddist.managers.joining": (
        "init_worker",
        "process_messages",
    ),
    "hybriddist.managers.local": ("LocalManager",),
    "hybriddist.maps": ("imap", "imap_unordered", "pmap"),
    "hybriddist.broadcasts": ("Broadcast", "broadcast"),
    "hybriddist.caching_pool": ("CachingPool",),
    "hybriddist.pools": (
        "AbstractWorkerPool",
        "WorkerPool",
        "default_worker_pool",
    ),
    "hybriddist.retrying": (
        "ExponentialBackOff",
        "retry",
    ),
    "hybriddist.runtime.channels": ("Channel",),
    "hybriddist.runtime.start": ("start_worker",),
    "hybriddist.runtime.status": (
        "get_status",
        "set_status",
    ),
    "hybriddist.scopes": ("sync",),
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(home), name)
            return value
    missing = f"module {__name__!r} has no attribute {name!r}"
    if name == "SSHManager":
        missing += ": workers on other hosts over SSH are not built yet"
    raise AttributeError(missing)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
