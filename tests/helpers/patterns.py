"""Arrays that show whether they are whole: made from a seed that they carry, and checked against it.

Imported by workers as well as by tests, so it imports nothing but numpy, and that only when used.
"""

from __future__ import annotations

from typing import Any

_STEP = 0x9E3779B97F4A7C15


def pattern(seed: int, size_bytes: int) -> Any:
    """An array of ``size_bytes`` bytes (a multiple of 8) in which every element depends on ``seed`` and its place."""
    import numpy as np

    array = np.arange(size_bytes // 8, dtype=np.uint64)
    array *= np.uint64(_STEP)
    array ^= np.uint64(seed)
    return array


def seed_of(array: Any, size_bytes: int) -> int:
    """The seed of a whole pattern of that size.

    Raises:
        ValueError: the array is torn, short, or no pattern at all.
    """
    if array.dtype != "uint64" or array.nbytes != size_bytes:
        raise ValueError(f"{array.nbytes} bytes of {array.dtype} came instead of {size_bytes} bytes of uint64")
    seed = int(array[0])
    wrong = array != pattern(seed, size_bytes)
    if wrong.any():
        raise ValueError(f"torn: {int(wrong.sum())} elements are wrong, the first at {int(wrong.argmax())}")
    return seed
