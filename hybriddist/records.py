"""Tuples with named fields, as `typing.NamedTuple` makes them, but cheaper to define.

`NamedTuple` compiles code for each class: about a million instructions of the processor, counted with callgrind. A
worker's start defines some twenty of them; with these it takes 13 million instructions less, of 198. They differ in one
thing: what is called with keywords, or without a default, is sorted out by Python code at each call. The hot messages
are made by `tuple.__new__`.

Type checkers see `NamedTuple` itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 14):  # which keeps annotations in another way
    from typing import NamedTuple as Record
else:
    from _collections import _tuplegetter  # the descriptors of `collections.namedtuple`

    class _RecordType(type):
        def __new__(mcs, name, bases, namespace):
            if Record not in bases:  # a class of its own that derives from a record
                return type.__new__(mcs, name, bases, namespace)
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            getters = {field: _tuplegetter(index, field) for index, field in enumerate(fields)}
            own = {"__slots__": (), "_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            return type.__new__(mcs, name, bases, {**namespace, **getters, **own})

    Record = type.__new__(_RecordType, "Record", (tuple,), {"__slots__": ()})

    def _new(cls, /, *args, **keywords):
        fields = cls._fields
        if keywords or len(args) != len(fields):
            values = dict(zip(fields, args, strict=False))
            given = {**cls._field_defaults, **values, **keywords}
            if len(args) > len(fields) or values.keys() & keywords.keys() or given.keys() != set(fields):
                raise TypeError(f"{cls.__name__}() takes {', '.join(fields)}: got {args!r} and {keywords!r}")
            args = [given[field] for field in fields]
        return tuple.__new__(cls, args)

    def _replace(self, /, **changes):
        unknown = changes.keys() - set(self._fields)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return tuple.__new__(
            type(self), [changes.get(field, value) for field, value in zip(self._fields, self, strict=True)]
        )

    def _repr(self):
        pairs = zip(self._fields, self, strict=True)
        return f"{type(self).__name__}({', '.join(f'{field}={value!r}' for field, value in pairs)})"

    Record.__new__ = _new
    Record._replace = _replace
    Record._asdict = lambda self: dict(zip(self._fields, self, strict=True))
    Record.__repr__ = _repr
    Record.__getnewargs__ = lambda self: tuple(self)


__all__ = ["Record"]
