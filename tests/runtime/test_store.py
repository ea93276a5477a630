"""The store: one value each, and nobody who asks waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from hybriddist.core.messages import Outcome
from hybriddist.core.references import edge
from hybriddist.errors import InvalidStateException
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.store import Store
from tests.helpers.polling import poll_for

A = RRID(1, 1)


class Threads:
    """Spawns, and can wait for what it has spawned."""

    def __init__(self) -> None:
        self.all: list[threading.Thread] = []

    def __call__(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self.all.append(thread)
        thread.start()
        return thread


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def store(threads: Threads) -> Iterator[Store]:
    made = Store(threads, doubt_seconds=0.02)
    yield made
    made.close()
    for thread in threads.all:
        thread.join(5)


def claim(store: Store, rrid: RRID, giver: int, receiver: int, delta: int) -> None:
    store.change([(*rrid, edge(giver, receiver), delta)])


def test_the_first_value_stays(store: Store) -> None:
    store.put(A, "first")
    with pytest.raises(InvalidStateException, match="only once"):
        store.put(A, "second")
    store.finish(A, Outcome.VALUE, "third")
    assert store.entry(A).content == "first"


def test_of_many_threads_one_puts(store: Store) -> None:
    for number in range(30):
        rrid = RRID(1, number)
        barrier = threading.Barrier(4)
        won: list[int] = []

        def put(mine: int, rrid: RRID = rrid, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait()
            try:
                store.put(rrid, mine)
            except InvalidStateException:
                return
            won.append(mine)

        puts = [threading.Thread(target=put, args=(mine,)) for mine in range(4)]
        for thread in puts:
            thread.start()
        for thread in puts:
            thread.join()
        assert won == [store.entry(rrid).content]


def test_the_end_of_a_call_that_nobody_waits_for_is_not_kept(store: Store) -> None:
    store.created(A)
    claim(store, A, 1, 1, -1)
    store.finish(A, Outcome.VALUE, "late")
    assert len(store) == 0


def test_a_waiter_is_told_when_the_last_claim_goes(store: Store) -> None:
    store.created(A)
    waiting = store.requested(A)
    claim(store, A, 1, 1, -1)
    assert waiting.done
    assert waiting.outcome == Outcome.ERROR
    assert isinstance(waiting.content.ex, InvalidStateException)


def test_the_request_may_come_before_the_claim(store: Store, threads: Threads) -> None:
    waiting = store.requested(A)
    claim(store, A, 1, 3, 1)
    store.put(A, "value")
    assert waiting.content == "value"
    assert threads.all == []


def test_without_a_death_there_is_no_doubt(store: Store, threads: Threads) -> None:
    waiting = store.requested(A)
    store.requested(RRID(1, 2))
    assert threads.all == []
    assert not waiting.done


@pytest.mark.parametrize("death_first", [True, False])
def test_a_request_that_nobody_claims_fails_after_a_death(death_first: bool, store: Store) -> None:
    if death_first:
        store.drop_process(5)
    waiting = store.requested(A)
    if not death_first:
        store.drop_process(5)
    assert waiting.wait()
    assert isinstance(waiting.content.ex, InvalidStateException)
    poll_for(lambda: len(store) == 0)


def test_a_claim_that_comes_in_time_ends_the_doubt(threads: Threads) -> None:
    store = Store(threads, doubt_seconds=60)
    store.drop_process(5)
    waiting = store.requested(A)
    (doubt,) = threads.all
    claim(store, A, 1, 3, 1)
    store.close()  # ends its patience
    doubt.join(5)
    assert not doubt.is_alive()
    assert not waiting.done
    store.put(A, "value")
    assert waiting.content == "value"


def test_doubt_begins_anew_for_the_next_request(store: Store, threads: Threads) -> None:
    store.drop_process(5)
    for number in range(3):
        assert store.requested(RRID(1, number)).wait()
        poll_for(lambda: not any(thread.is_alive() for thread in threads.all))


def test_live_leaves_out_what_only_the_process_itself_claims(store: Store) -> None:
    mine, theirs, unclaimed = RRID(2, 1), RRID(2, 2), RRID(3, 1)
    for rrid in (mine, theirs):
        store.created(rrid)
    claim(store, theirs, 2, 3, 1)
    store.requested(unclaimed)
    assert store.live(2) == [theirs, unclaimed]


def test_values_are_dropped_outside_of_the_lock(store: Store) -> None:
    """The finaliser of a value may come back to the store."""

    class Value:
        def __del__(self) -> None:
            store.live(1)

    store.created(A)
    store.put(A, Value())
    claim(store, A, 1, 1, -1)
    assert len(store) == 0


def test_callbacks_of_an_entry_may_come_back_to_the_store(store: Store) -> None:
    seen: list[int] = []

    def look(_: Completion) -> None:
        seen.append(len(store.live(9)))

    store.requested(A).add_callback(look)
    store.put(A, 1)
    assert seen == [1]
