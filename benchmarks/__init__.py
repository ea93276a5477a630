"""How fast hybriddist is, beside bare loops that do the same work with the standard library alone.

``python -m benchmarks`` measures on this machine, in one run, and prints one table. What is compared is measured in
turns (A B A B ...), so that a busy neighbour or a changing clock hits both alike; the ratio is that of the medians.
Every file holds one comparison: what hybriddist does, and the bare loop that sets the measure.
"""
