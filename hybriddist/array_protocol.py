"""What makes an object work where an ``ndarray`` does: numpy's protocols, operators, and everything else by delegation.

The object has an ordinary array behind it, a view; it is what numpy's functions are given in its place. Where the
object is the ``out`` of one (as in ``s += 1``) it is what comes back.

What this module does not know: where the array's memory is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Array = np.ndarray[Any, np.dtype[Any]]


class LikeAnArray(NDArrayOperatorsMixin):
    """A base for what has an array behind it: ``shape`` and ``dtype``, and `_view`, which gives the array."""

    __slots__ = ()

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def _view(self) -> Array:
        """The ordinary array over the same memory."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self._view()
        if dtype is None or np.dtype(dtype) == array.dtype:
            return array.copy() if copy else array
        if copy is False:
            raise ValueError(f"an array of {np.dtype(dtype)} cannot be had from one of {array.dtype} without a copy")
        return array.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        out = keywords.get("out")
        if out is not None:
            keywords["out"] = tuple(plain(one) for one in out)
        if isinstance(keywords.get("where"), LikeAnArray):
            keywords["where"] = keywords["where"]._view()
        value = getattr(ufunc, method)(*(plain(one) for one in inputs), **keywords)
        if out is None or value is NotImplemented:
            return value
        if type(value) is tuple:
            return tuple(given if given is not None else new for given, new in zip(out, value, strict=True))
        return out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, keywords: Any) -> Any:
        value = function(*plain_all(args), **plain_all(keywords))
        out = keywords.get("out")
        return out if isinstance(out, LikeAnArray) else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._view(), name)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        length: int = self.shape[0]
        return length

    def __getitem__(self, index: Any) -> Any:
        return self._view()[plain_all(index) if type(index) is tuple else plain(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._view()[plain_all(index) if type(index) is tuple else plain(index)] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._view())

    def __contains__(self, value: Any) -> bool:
        return value in self._view()

    def __bool__(self) -> bool:
        return bool(self._view())

    def __int__(self) -> int:
        return int(self._view())

    def __float__(self) -> float:
        return float(self._view())

    def __complex__(self) -> complex:
        return complex(self._view())

    def __index__(self) -> int:
        return operator.index(self._view())

    def __format__(self, spec: str) -> str:
        return format(self._view(), spec)


def plain(thing: Any) -> Any:
    """An ordinary array in the place of one that is like it."""
    return thing._view() if isinstance(thing, LikeAnArray) else thing


def plain_all(things: Any) -> Any:
    """What a function of numpy was given, with ordinary arrays in it."""
    kind = type(things)
    if kind is tuple:
        return tuple(plain_all(one) for one in things)
    if kind is list:
        return [plain_all(one) for one in things]
    if kind is dict:
        return {name: plain_all(one) for name, one in things.items()}
    return plain(things)


__all__ = ["Array", "LikeAnArray"]
