"""A script of `benchmarks.launch`: prints the seconds from `addprocs(N)` to a result of each of the N workers."""

import os
import sys
from time import perf_counter

from hybriddist import addprocs, remotecall  # the import is not measured, as that of multiprocessing is not

count = int(sys.argv[1])
start = perf_counter()
pids = addprocs(count)
futures = [remotecall(os.getpid, pid) for pid in pids]
ospids = {future.fetch() for future in futures}
seconds = perf_counter() - start
if len(ospids) != count:
    sys.exit(f"{count} workers answered from {len(ospids)} processes")
print(seconds)
