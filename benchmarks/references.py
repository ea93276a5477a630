"""What a reference costs the driver: CPU time of all its threads, for sending one to a worker and for dropping it."""

from __future__ import annotations

from time import perf_counter, process_time

import hybriddist as hd
from benchmarks.channels import workers
from benchmarks.rounds import Plan, Round, Row, compare

REFERENCES = 2000

BAR_SECONDS = 20e-6


def sink(_: object) -> None:
    pass


def settle(pid: int) -> None:
    """Let the driver's threads do what is left to do; it sleeps meanwhile."""
    hd.remotecall_fetch(sink, pid, 1)
    end = perf_counter() + 0.05
    while (left := end - perf_counter()) > 0:
        try:
            hd.Future(hd.myid()).wait(timeout=left)
        except TimeoutError:
            pass


def sending_and_dropping(plan: Plan) -> list[Row]:
    """One reference a message, as it is most expensive; the message itself is not counted."""
    count = max(200, REFERENCES // plan.scale)
    with workers(2) as (a, b):

        def messages() -> float:
            start = process_time()
            for _ in range(count):
                hd.remote_do(sink, a, 1)
            settle(a)
            return (process_time() - start) / count

        def send() -> list[float]:
            futures = [hd.Future(b) for _ in range(count)]
            settle(a)
            start = process_time()
            for future in futures:
                hd.remote_do(sink, a, future)
            settle(a)
            return [max(0.0, (process_time() - start) / count - messages())]

        def drop() -> list[float]:
            futures = [hd.remotecall_wait(sink, a, 1) for _ in range(count)]
            settle(a)
            start = process_time()
            while futures:
                futures.pop()
            settle(a)
            return [(process_time() - start) / count]

        bar: dict[str, Round] = {"20 µs": lambda: [BAR_SECONDS]}
        return [
            *compare("sending a reference, driver's CPU", send, bar, plan, bar=1.0),
            *compare("dropping a reference, driver's CPU", drop, bar, plan, bar=1.0),
        ]
