"""The interface of managers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hybriddist.managers.base import ClusterManager, WorkerConfig, default_addprocs_params, reject_unknown_keywords

# fmt: off
FIELDS = [
    "io", "host", "port", "count", "exename", "exeflags", "userdata",
    "tunnel", "multiplex", "forward", "bind_addr", "sshflags", "max_parallel", "connect_at",
    "process", "ospid", "cpu_threads", "environ", "ident", "connect_idents", "enable_threaded_blas",
]
# fmt: on


class Smallest(ClusterManager):
    def launch(self, params: Mapping[str, Any], launched: list[WorkerConfig], notify: Callable[[], None]) -> None:
        launched.append(WorkerConfig())
        notify()

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        pass


def test_every_field_is_none_and_assignable() -> None:
    config = WorkerConfig()
    assert vars(config) == dict.fromkeys(FIELDS)
    for name in FIELDS:
        setattr(config, name, 1)
    with pytest.raises(TypeError):
        WorkerConfig("localhost")  # type: ignore[call-arg]


def test_a_field_that_there_is_not_is_refused() -> None:
    class Own(WorkerConfig):
        def __init__(self) -> None:
            super().__init__()
            self.job = 7

    with pytest.raises(AttributeError, match=r"no field 'hots'; it has io, host, port"):
        WorkerConfig().hots = 1  # type: ignore[attr-defined]
    own = pickle.loads(pickle.dumps(_with_host(WorkerConfig())))
    assert own.host == "h"
    assert (Own().job, Own().host) == (7, None)


def _with_host(config: WorkerConfig) -> WorkerConfig:
    config.host = "h"
    return config


def test_repr_shows_what_is_assigned_but_not_the_managers_own() -> None:
    config = WorkerConfig()
    config.port, config.environ = 9000, {"token": "private"}
    assert repr(config) == "WorkerConfig(port=9000)"


def test_launch_and_manage_must_be_written() -> None:
    with pytest.raises(TypeError, match="launch"):
        ClusterManager()  # type: ignore[abstract]


def test_defaults() -> None:
    manager, config = Smallest(), WorkerConfig()
    assert manager.connect(2, config) is None
    manager.kill(2, config)
    assert manager.default_addprocs_params() == default_addprocs_params()
    wanted = {"topology", "lazy", "transport", "dir", "exename", "exeflags", "env", "enable_threaded_blas", "timeout"}
    assert default_addprocs_params().keys() == wanted
    assert default_addprocs_params() is not default_addprocs_params()


def test_unknown_keywords_are_named() -> None:
    reject_unknown_keywords(Smallest(), {"dir": "/", "env": {}})
    text = "addprocs with Smallest got unexpected keyword arguments: 'a', 'zz'"
    with pytest.raises(TypeError, match=re.escape(text)):
        reject_unknown_keywords(Smallest(), {"zz": 1, "dir": Path("/"), "a": 2})
