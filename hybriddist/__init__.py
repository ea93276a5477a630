"""hybriddist: run Python in parallel on one machine and across many.

Julia's Distributed programming model, with one thing added: a node is one shared memory. See the README for a tour.

Names are loaded from their modules when they are first used: a worker needs the runtime only, and starts in half the
time. So no module may have the name of a function here: importing it would put the module in the function's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hybriddist.calls import (
        fetch,
        fetchfrom,
        finalize,
        isready,
        live_references,
        put,
        remote_do,
        remotecall,
        remotecall_fetch,
        remotecall_wait,
        remoteref_id,
        spawn,
        spawnat,
        wait,
    )
    from hybriddist.cluster import (
        addprocs,
        cluster_cookie,
        interrupt,
        rmprocs,
        shutdown,
    )
    from hybriddist.core.captured import (
        CapturedException,
    )
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
    from hybriddist.future import (
        Future,
    )
    from hybriddist.ids import (
        RRID,
    )
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
    from hybriddist.loops import (
        distributed,
    )
    from hybriddist.managers.base import (
        ClusterManager,
        WorkerConfig,
    )
    from hybriddist.managers.local import (
        LocalManager,
    )
    from hybriddist.maps import (
        pmap,
    )
    from hybriddist.runtime.start import (
        start_worker,
    )

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "CapturedException",
    "ClusterError",
    "ClusterManager",
    "CompositeException",
    "ConnectError",
    "DeserializeError",
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
    "WorkerConfig",
    "addprocs",
    "cluster_cookie",
    "distributed",
    "fetch",
    "fetchfrom",
    "finalize",
    "interrupt",
    "isready",
    "live_references",
    "myid",
    "nodes",
    "nprocs",
    "nworkers",
    "path_to",
    "pmap",
    "procs",
    "procs_on_node",
    "put",
    "remote_do",
    "remotecall",
    "remotecall_fetch",
    "remotecall_wait",
    "remoteref_id",
    "rmprocs",
    "shutdown",
    "spawn",
    "spawnat",
    "start_worker",
    "wait",
    "workers",
]

_HOMES: Final = {
    "hybriddist.calls": (
        "fetch",
        "fetchfrom",
        "finalize",
        "isready",
        "live_references",
        "put",
        "remote_do",
        "remotecall",
        "remotecall_fetch",
        "remotecall_wait",
        "remoteref_id",
        "spawn",
        "spawnat",
        "wait",
    ),
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
    "hybriddist.future": ("Future",),
    "hybriddist.ids": ("RRID",),
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
    "hybriddist.managers.local": ("LocalManager",),
    "hybriddist.maps": ("pmap",),
    "hybriddist.runtime.start": ("start_worker",),
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
