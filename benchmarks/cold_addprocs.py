"""A script of `benchmarks.launch`: prints the seconds from `addprocs(N)` to a result of each of the N workers."""

import os
import sys
from time import perf_counter

import hybriddist as hd

count = int(sys.argv[1])
start = perf_counter()
pids = hd.addprocs(count)
futures = [hd.remotecall(os.getpid, pid) for pid in pids]
ospids = {future.fetch() for future in futures}
seconds = perf_counter() - start
if len(ospids) != count:
    sys.exit(f"{count} workers answered from {len(ospids)} processes")
print(seconds)
