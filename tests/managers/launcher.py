"""A cluster as far as launching goes: what tests of managers start their workers with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hybriddist.deadline import Deadline
from hybriddist.managers.announcement import read_announcement
from hybriddist.managers.base import WorkerConfig
from hybriddist.managers.local import LocalContext, LocalManager
from hybriddist.runtime.output import OutputRelay
from hybriddist.settings import Settings
from tests.runtime import fake_worker

COOKIE = "never-to-be-seen-9876543210"
FAKE = [sys.executable, "-m", "tests.runtime.fake_worker"]


class Launcher:
    """What a cluster does with a manager, as far as launching goes."""

    def __init__(self, directory: Path) -> None:
        self.relay = OutputRelay()
        self.context = LocalContext(lambda: COOKIE, self.relay, str(directory), Settings(), fake_worker.NAME)
        self.launched: list[WorkerConfig] = []

    def launch(self, n: int = 1, **params: Any) -> list[WorkerConfig]:
        manager = LocalManager(n)
        manager.attach(self.context, params)
        first = len(self.launched)
        notified: list[int] = []
        manager.launch(params, self.launched, lambda: notified.append(len(self.launched)))
        assert notified == list(range(first + 1, first + 1 + n))
        return self.launched[first:]

    def announced(self, config: WorkerConfig, seconds: float = 20) -> tuple[str, int]:
        return read_announcement(config, Deadline(seconds), self.relay)

    def start(self, n: int = 1, **params: Any) -> list[WorkerConfig]:
        configs = self.launch(n, **params)
        for config in configs:
            self.announced(config)
        return configs

    def close(self) -> None:
        for config in self.launched:
            config.process.kill()
            config.process.release()
            assert config.process.wait(Deadline(10)) is not None
            if "output" not in (config.environ or {}):
                config.io.close()
                assert config.environ is not None
                config.environ["stderr"].close()
        self.context.close()
        self.relay.close(5)
