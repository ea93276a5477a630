"""``python -m benchmarks [--quick] [--only NAME] [--json FILE]``: measure, and print one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import (
    array_peers,
    array_sizes,
    batches,
    channels,
    idle_memory,
    large_arrays,
    large_values,
    launch,
    loops,
    machine,
    many_items,
    references,
    round_trip,
    shared_arrays,
    table,
)
from benchmarks.rounds import Plan, Row

BENCHMARKS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "round-trip-shm": round_trip.over_shm,
    "round-trip-tcp": round_trip.over_tcp,
    "pmap": many_items.single_items,
    "pmap-auto": batches.automatic,
    "pmap-uneven": batches.uneven,
    "pmap-64": batches.crowd,
    "distributed": loops.reduction,
    "arrays-shm": large_arrays.over_shm,
    "arrays-tcp": large_arrays.over_tcp,
    "arrays-peers": array_peers.beside_others,
    "array-1mb": array_sizes.one_megabyte,
    "array-64kb": array_sizes.sixty_four_kilobytes,
    "exchange": array_sizes.exchange,
    "empty": array_sizes.in_place,
    "steady": array_sizes.steady,
    "shared-array": shared_arrays.passing,
    "broadcast": large_values.broadcast,
    "captured": large_values.captured,
    "channels": channels.put_and_take,
    "channels-small": channels.small_items,
    "channels-large": channels.large_items,
    "references": references.sending_and_dropping,
    "launch-2": launch.two,
    "launch-16": launch.sixteen,
    "memory": idle_memory.idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds: does it run? no result to quote")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each contender (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("fewer than 5 rounds give no median worth printing")

    plan = Plan(rounds=2, scale=20) if options.quick else Plan(rounds=options.rounds)
    facts = machine.facts()
    if options.quick:
        facts["QUICK"] = f"sizes and counts divided by {plan.scale}, not to be quoted"
    rows: list[Row] = []
    for name in options.only or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += BENCHMARKS[name](plan)
    print(table.markdown(facts, rows))
    if options.json:
        options.json.write_text(table.as_json(facts, rows) + "\n", encoding="utf-8")


# The children of a spawning pool import this file again, under another name.
if __name__ == "__main__":
    main()
