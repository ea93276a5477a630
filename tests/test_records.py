"""Records are what `typing.NamedTuple` makes, as far as they are used."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest

from hybriddist.records import Record


class Point(Record):
    """Has a place."""

    x: int
    y: int = 2
    name: str = "p"

    def norm(self) -> int:
        return abs(self.x) + abs(self.y)

    @classmethod
    def origin(cls) -> Point:
        return cls(0, 0)


class Named(NamedTuple):
    x: int
    y: int = 2
    name: str = "p"


class Special(Point):
    __slots__ = ()
    KIND = 5


ARGUMENTS = [
    ((1,), {}),
    ((1, 3), {}),
    ((1, 3, "q"), {}),
    ((), {"x": 4}),
    ((1,), {"name": "q"}),
    ((), {"name": "z", "x": 1}),
]


@pytest.mark.parametrize(("args", "keywords"), ARGUMENTS)
def test_it_is_made_as_a_named_tuple_is(args: tuple[object, ...], keywords: dict[str, object]) -> None:
    made, named = Point(*args, **keywords), Named(*args, **keywords)  # type: ignore[arg-type]
    assert made == named == tuple(named)
    assert (made.x, made.y, made.name) == (named.x, named.y, named.name)
    assert repr(made) == repr(named).replace("Named", "Point")
    assert made._asdict() == named._asdict()
    assert made._replace(y=9) == named._replace(y=9)
    assert hash(made) == hash(named)


@pytest.mark.parametrize(
    ("args", "keywords"), [((), {}), ((1, 2, "a", 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2}), ((), {"y": 1})]
)
def test_wrong_fields_are_refused(args: tuple[object, ...], keywords: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Point(*args, **keywords)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Named(*args, **keywords)  # type: ignore[arg-type]


def test_unknown_fields_are_not_replaced() -> None:
    with pytest.raises(ValueError, match="z"):
        Point(1)._replace(z=3)  # type: ignore[call-arg]


def test_it_is_an_immutable_tuple_without_a_dict() -> None:
    point = Point(1)
    assert isinstance(point, tuple)
    assert not hasattr(point, "__dict__")
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    assert tuple.__new__(Point, (5, 6, "r")) == (5, 6, "r")
    match point:
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_it_is_copied_and_pickled() -> None:
    point = Point(1, 2, "r")
    for again in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert type(again) is Point
        assert again == point


def test_methods_and_classes_that_derive_from_it() -> None:
    assert Point.origin().norm() == 0
    special = Special(3)
    assert (special.x, special.y, special.KIND) == (3, 2, 5)
    assert type(special._replace(x=1)) is Special
