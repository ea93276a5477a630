"""What travels by value keeps the state it has where it came, until it changes where it comes from."""

from __future__ import annotations

import pytest

from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]

BEGIN = """
import collections, dataclasses, enum, functools, sys
import hybriddist as hd
a, b = hd.addprocs(2, transport={transport!r})
on = hd.remotecall_fetch
"""


def run(run_python: ScriptRunner, transport: str, code: str) -> None:
    """Run a script of assertions against two workers, ``a`` and ``b``."""
    done = run_python(BEGIN.format(transport=transport) + code + "\nprint('all right')\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all right\n")
    assert done.stderr == ""


def test_globals_that_everywhere_defined_meet_any_function(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
hd.everywhere("items = []; table = {}; marks = set(); n = 0")
for i in range(3):
    on(lambda i=i: items.append(i), a)
    on(lambda i=i: table.update({i: i}), a)
    on(lambda i=i: marks.add(i), a)
assert on(lambda: (items, table, marks, n), a) == ([0, 1, 2], {0: 0, 1: 1, 2: 2}, {0, 1, 2}, 0)
assert hd.remotecall_eval("items", a) == [0, 1, 2] and on(lambda: items, b) == [] == items

# What it changes alike stays alike; what it assigns is anew.
hd.everywhere("items.append(9); n = hd.myid() if 'hd' in globals() else 7; import hybriddist as hd")
assert on(lambda: items, a) == [0, 1, 2, 9] and on(lambda: items, b) == [9] == items
hd.everywhere("import hybriddist as hd; n = hd.myid()")
assert [on(lambda: n, pid) for pid in (1, a, b)] == [1, a, b]
hd.everywhere("items = []")
assert on(lambda: items, a) == []

# The caller's changes go out.
items.append(1)
assert on(lambda: items, a) == [1] == on(lambda: items, b)
n = 5
assert on(lambda: n, a) == 5

# One that fails there has defined nothing there.
try:
    hd.everywhere("part = [1]\\nif hd.myid() == 2: part.append(1 / 0)")
except hd.CompositeException:
    pass
else:
    raise AssertionError
on(lambda: part.append(2), a), on(lambda: part.append(2), b)
assert on(lambda: part, a) == [1, 2] == on(lambda: part, b) and part == [1]

# On some processes: the others are sent it.
hd.everywhere("some = ['old']")
hd.everywhere("some = ['new']", [1, b])
on(lambda: some.append(1), b)
assert on(lambda: some, a) == ["new"] and on(lambda: some, b) == ["new", 1]

@hd.everywhere
def helper(): return "of the caller"
hd.remotecall_eval("def helper(): return 'of the worker'", a)
assert on(lambda: helper(), a) == "of the worker" and on(lambda: helper(), b) == "of the caller"
""",
    )


def test_globals_stay_whichever_function_uses_them(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
items, line, counts, nested = [], collections.deque(), collections.Counter(), {"a": []}
groups = collections.defaultdict(list)
for i in range(3):
    on(lambda i=i: (items.append(i), line.append(i), counts.update([i]), nested["a"].append(i), groups[i].append(i)), a)
state = on(lambda: (items, list(line), dict(counts), nested, dict(groups)), a)
assert state == ([0, 1, 2], [0, 1, 2], {0: 1, 1: 1, 2: 1}, {"a": [0, 1, 2]}, {0: [0], 1: [1], 2: [2]}), state

def append(i): items.append(i)
on(append, a, 5)
assert on(lambda: items, a) == [0, 1, 2, 5] and on(lambda: items, b) == [] == items
nested["a"].append("here")  # deep inside
assert on(lambda: (nested, items), a) == ({"a": ["here"]}, [0, 1, 2, 5])
items = []  # another, though it is equal
assert on(lambda: items, a) == []

# Another name of what is there already.
on(append, a, 6)
alias = items
assert on(lambda: (alias is items, alias), a) == (True, [6])

# What is cleared or deleted there is brought again.
hd.clear("items")
assert on(lambda: items, a) == []
hd.remotecall_eval("del items", a)
assert on(lambda: items, a) == []

# From one worker to another: a worker's values are its own.
on(append, a, 7)
on(append, b, 8)
def relayed(): return on(lambda: list(items), b)
assert [on(relayed, a) for _ in range(2)] == [[7], [7]] and on(lambda: items, b) == [7] and items == []
on(append, b, 9)
assert on(relayed, a) == [7, 9] == on(lambda: items, b)
x = 1
hd.remotecall_eval("x = 2", b), on(lambda: x, a)
def passed_on(): return on(lambda: x, b)
assert on(lambda: x, b) == 1  # had none of the caller's
hd.remotecall_eval("x = 2", b)
assert on(passed_on, a) == 2  # the caller's, unchanged: b has had it

calls = 0
@functools.lru_cache
def slow(x):
    global calls
    calls += 1
    return x
assert [on(lambda: (slow(1), calls), a) for _ in range(2)] == [(1, 1), (1, 1)]
assert [hd.remotecall_fetch(slow, a, 5) for _ in range(3)] == [5, 5, 5] and on(lambda: calls, a) == 2
""",
    )


def test_classes_keep_their_attributes(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class Plain:
    items = []
    n = 0
    rate = 1
    def add(self):
        type(self).n += 1
        self.items.append(1)
        return len(self.items), self.n, self.rate
    def parent(self): return super().__repr__()
    @property
    def size(self): return len(self.items)
    @staticmethod
    def three(): return 3
    @classmethod
    def more(cls): return cls.n
@hd.everywhere
class Defined(Plain):
    items = []
    n = 0
class Meta(type): pass
class WithMeta(metaclass=Meta):
    items = []
    n = rate = 0
    add = Plain.add
@dataclasses.dataclass
class Data:
    x: int = 0
    items = []
    n = rate = 0
    add = Plain.add
class Color(enum.Enum):
    RED = 1
    def add(self): Color.count = getattr(Color, "count", 0) + 1; return Color.count, Color.count
for cls in (Plain, Defined, WithMeta, Data):
    assert [on(cls().add, a)[:2] for _ in range(3)] == [(1, 1), (2, 2), (3, 3)], cls
    assert on(lambda: cls().add()[:2], a) == (4, 4), cls
    assert on(cls().add, b)[:2] == (1, 1) and (cls.items, cls.n) == ([], 0), cls
assert [on(Color.RED.add, a) for _ in range(3)] == [(1, 1), (2, 2), (3, 3)] and not hasattr(Color, "count")
assert hd.remotecall_eval("Defined().add()[:2]", a) == (5, 5)

# One attribute changes here: it is set there, and no other.
Plain.rate = 8
assert on(Plain().add, a) == (5, 5, 8)
Plain.items.append(0)
assert on(Plain().add, a) == (2, 6, 8) and Plain.items == [0]
Plain.three = staticmethod(lambda: 4)
assert on(lambda: (Plain.three(), Plain.n), a) == (4, 6)
on(lambda: delattr(Plain, "rate"), a)
assert on(lambda: Plain.rate, a) == 8

# From one value to another and back, by two functions.
class Small: rate = 1
def f(): return Small.rate
def g(): return Small.rate
assert on(f, a) == 1
Small.rate = 2
assert on(g, a) == 2
Small.rate = 1
assert (on(f, a), on(g, a)) == (1, 1)
""",
    )


def test_functions_that_share_a_class_are_pickled_once(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
sys.pickled = 0
class Counting:
    def __reduce__(self):
        sys.pickled += 1
        return Counting, ()
    def __hash__(self): return 1
    def __eq__(self, other): return self is other
class Shared:
    items = []
    @property
    def size(self): return len(self.items)
    @staticmethod
    def three(): return 3
@dataclasses.dataclass
class Data:
    x: int = 0
f_counts, g_counts = Counting(), Counting()
def f(): return f_counts and Shared.three() + Data(1).x
def g(): return g_counts and Shared.three() + Data(2).x
assert [(on(f, a), on(g, a)) for _ in range(5)] == [(4, 5)] * 5
assert sys.pickled == 2
""",
    )


def test_objects_with_slots_come_home(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class Slots:
    __slots__ = ("x", "__hidden", "empty")
    def __init__(self): self.x = self.__hidden = 1
    def hidden(self): return self.__hidden
class Child(Slots):
    __slots__ = "y"
    def __init__(self): super().__init__(); self.y = 2
class Open(Slots): pass
class Referred(Slots): __slots__ = ("__weakref__", "__dict__")
class Meta(type): pass
class WithMeta(Slots, metaclass=Meta): __slots__ = ()
@dataclasses.dataclass(slots=True)
class Data:
    x: int = 1
    def hidden(self): return self.x
@dataclasses.dataclass(slots=True, frozen=True, weakref_slot=True)
class Frozen:
    x: int = 1
    def hidden(self): return self.x
@hd.everywhere
class Defined(Slots): __slots__ = ()
Point = collections.namedtuple("Point", "x")
class Named(Point):
    __slots__ = ()
    def hidden(self): return self.x
def again(x): return x
for cls in (Slots, Child, Open, Referred, WithMeta, Data, Frozen, Defined, functools.partial(Named, 1)):
    for thing in (on(again, a, cls()), on(lambda: cls(), a), on(lambda: on(lambda: cls(), b), a)):
        assert (thing.x, thing.hidden()) == (1, 1) and type(thing) is type(cls()), cls
assert on(lambda: hasattr(Slots(), "__dict__") or hasattr(Data(), "__dict__"), a) is False
assert hd.pmap(lambda i: Slots(), range(2))[1].x == 1
channel = hd.RemoteChannel(a)
channel.put(Child())
assert channel.take().y == 2
thing = Open()
thing.more = 3
assert on(again, a, thing).more == 3
""",
    )


def test_a_class_is_made_once(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
made = []
class Meta(type):
    def __new__(meta, name, bases, namespace):
        made.append(name)
        return super().__new__(meta, name, bases, namespace)
class Base(metaclass=Meta):
    registry = []
    def __init_subclass__(cls): Base.registry.append(cls.__name__)
class Child(Base): pass
class KeptEnum(enum.Enum):
    ONE = 1
    def __init_subclass__(cls): made.append(cls.__name__)
class Color(KeptEnum if False else enum.Enum):
    RED = 1
    def describe(self): return "red"
describe = Color.describe
assert (made, Base.registry) == (["Base", "Child"], ["Child"])
for _ in range(3):
    thing = on(lambda x: x, a, Child())
    assert type(thing) is Child and type(on(lambda: Child(), b)) is Child and on(lambda: Color.RED, a) is Color.RED
assert (made, Base.registry) == (["Base", "Child"], ["Child"]) and Color.describe is describe
# There: what came with the attributes, and once more when the class was made.
first = on(lambda: (len(made), len(Base.registry)), a)
for _ in range(3):
    on(lambda x: x, a, Child())
assert on(lambda: (len(made), len(Base.registry)), a) == first
""",
    )


def test_functions_that_choose_by_type(run_python: ScriptRunner, transport: str) -> None:
    run(
        run_python,
        transport,
        """
class Mine: pass
@functools.singledispatch
def name(x): return "something"
@name.register
def _(x: int): return "int"
@name.register(list)
def of_list(x): return [name(i) for i in x]
@name.register(Mine)
def _(x): return "mine"
name.note = "text"
assert on(name, a, [1, Mine(), None]) == ["int", "mine", "something"]
assert on(lambda: (name([2]), name.note, name.__name__), b) == (["int"], "text", "name")
name.register(str, lambda x: "str")
assert on(lambda: name("x"), b) == "str"
back = on(lambda: name, a)
assert back([1, "x"]) == ["int", "str"] and back is not name
class Shape:
    @functools.singledispatchmethod
    def of(self, x): return "something"
    @of.register
    def _(self, x: int): return "int"
assert on(Shape().of, a, 1) == "int" and on(lambda: Shape().of("x"), a) == "something"
""",
    )


def test_what_was_a_global_goes_when_the_script_lets_go_of_it(run_python: ScriptRunner, transport: str) -> None:
    """However often it has travelled with functions, and although they live."""
    run(
        run_python,
        transport,
        """
import gc, time, weakref
class Box:
    def __init__(self, content): self.content = content
box, channel, future = Box([1, 2]), hd.RemoteChannel(lambda: hd.Channel(3), b), hd.remotecall(pow, b, 2, 3)
watched = [weakref.ref(box), weakref.ref(channel), weakref.ref(future)]
def use():
    channel.put(1)
    return sum(box.content) + future.fetch()
assert on(use, a) == on(use, a) == on(lambda: sum(box.content) + future.fetch(), a) == 11
box.content[0] = 5
assert on(use, a) == 15
del box, channel, future
gc.collect()
assert [ref() for ref in watched] == [None] * 3
hd.clear(["channel", "future", "box"], a)
deadline = time.monotonic() + 20
while hd.live_references(b) and time.monotonic() < deadline:
    on(gc.collect, a)
assert hd.live_references(b) == []
box, channel, future = Box([3]), hd.RemoteChannel(lambda: hd.Channel(3), b), hd.remotecall(pow, b, 3, 3)
assert on(use, a) == 30
""",
    )
