"""Arrays that numpy's own pickling copies or leaves read-only: strided, of dates, masked, records, read-only.

numpy hands a plain contiguous array to the pickler as one buffer, which then travels out of band. Every other array
becomes bytes inside the pickle (three copies), and a read-only one arrives read-only although its receiver owns it.
`ArrayReducer` takes those apart into a byte buffer and what is needed to view it again.

A pickle remembers whether a buffer was read-only. To have a writable one at the other end without copying here, the
pickler is given a small writable stand-in, and the collector replaces it by the read-only memory when the pickler
hands it back as "this goes out of band".

What this module does not know: who pickles, and how buffers travel. It is only used once numpy is loaded.
"""

from __future__ import annotations

import pickle
from copyreg import dispatch_table
from typing import TYPE_CHECKING, Any

from hybriddist import limits

if TYPE_CHECKING:
    import numpy as np


class BufferCollector:
    """A pickler's buffer callback: keeps the large buffers, in order, and leaves the small ones in the pickle.

    Attributes:
        buffers: contiguous memoryviews of format "B", to travel out of band.
        saw_readonly: whether any buffer, large or small, was read-only.
    """

    __slots__ = ("_stand_ins", "buffers", "saw_readonly")

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.saw_readonly = False
        self._stand_ins: dict[int, tuple[pickle.PickleBuffer, memoryview]] | None = None

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer stays in the pickle, as the pickle protocol wants it."""
        if self._stand_ins is not None:
            stand_in = self._stand_ins.pop(id(buffer), None)
            if stand_in is not None:
                self.buffers.append(stand_in[1])
                return False
        view = buffer.raw()
        if view.readonly:
            self.saw_readonly = True
        if view.nbytes < limits.OUT_OF_BAND_BYTES or len(self.buffers) >= limits.MAX_BUFFERS:
            return True
        self.buffers.append(view)
        return False

    def has_room(self) -> bool:
        """Whether another buffer may go out of band."""
        return len(self.buffers) < limits.MAX_BUFFERS

    def stand_in(self, view: memoryview) -> pickle.PickleBuffer:
        """A writable buffer to give to the pickler in place of read-only memory."""
        if self._stand_ins is None:
            self._stand_ins = {}
        buffer = pickle.PickleBuffer(bytearray(1))
        self._stand_ins[id(buffer)] = (buffer, view)
        return buffer


class ArrayReducer:
    """Reduces the arrays that numpy's own pickling does not hand over as writable buffers."""

    def __init__(self, collector: BufferCollector) -> None:
        import numpy as np

        self._np = np
        self._collector = collector

    def reduce(self, thing: Any) -> Any:
        """A reduction as `__reduce__` gives it, or NotImplemented: pickle it in its own way."""
        np = self._np
        kind = type(thing)
        if kind is np.ndarray or kind is np.recarray or kind is np.memmap:
            return self._reduce_array(thing)
        if kind is np.ma.MaskedArray and thing.nbytes >= limits.OUT_OF_BAND_BYTES:
            mask = None if thing.mask is np.ma.nomask else thing.mask
            return rebuild_masked, (thing.data, mask, thing._fill_value, thing.hardmask)
        if (
            issubclass(kind, np.ndarray)
            and self._is_pickled_by_numpy(kind)
            and thing.nbytes >= limits.OUT_OF_BAND_BYTES
        ):
            return self._reduce_array(thing)
        return NotImplemented

    def _is_pickled_by_numpy(self, kind: type[Any]) -> bool:
        """Whether a subclass leaves its pickling to numpy, which keeps the array and its class, and nothing else."""
        base = self._np.ndarray
        return kind not in dispatch_table and all(
            getattr(kind, name) is getattr(base, name) for name in ("__reduce_ex__", "__reduce__", "__setstate__")
        )

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        np = self._np
        dtype = array.dtype
        writable = array.flags.writeable
        if dtype.hasobject or (writable and array.nbytes < limits.OUT_OF_BAND_BYTES):
            return NotImplemented
        kind = type(array)
        if kind is np.memmap:
            kind = np.ndarray  # the other process does not have the file mapped
        plain = array.view(np.ndarray)
        flags = plain.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        if not array.nbytes:
            return rebuild_array, (None if kind is np.ndarray else kind, None, dtype, array.shape, order)
        if not (flags.c_contiguous or flags.f_contiguous):
            plain = plain.copy(order="C")
            writable = True
        flat = (plain.T if order == "F" else plain).reshape(-1)
        try:
            view = memoryview(flat.view(np.uint8))
        except (TypeError, ValueError):  # a user's dtype that cannot be seen as bytes
            return NotImplemented
        buffer: Any
        if view.nbytes < limits.OUT_OF_BAND_BYTES or not self._collector.has_room():
            buffer = bytearray(view)
        elif writable:
            buffer = pickle.PickleBuffer(view)
        else:
            buffer = self._collector.stand_in(view)
        return rebuild_array, (None if kind is np.ndarray else kind, buffer, dtype, array.shape, order)


def rebuild_array(kind: type[Any] | None, buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """Undo `ArrayReducer`: the array over the buffer, which it keeps alive."""
    import numpy as np

    if buffer is None:  # no bytes at all, from which `frombuffer` makes nothing
        array = np.empty(shape, dtype, order)
    else:
        array = np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)
    return array if kind is None else array.view(kind)


def rebuild_masked(data: Any, mask: Any, fill_value: Any, hard_mask: bool) -> Any:
    """Undo `ArrayReducer` for a masked array, from its two plain ones."""
    import numpy as np

    return np.ma.MaskedArray(
        data, mask=np.ma.nomask if mask is None else mask, fill_value=fill_value, hard_mask=hard_mask, copy=False
    )
