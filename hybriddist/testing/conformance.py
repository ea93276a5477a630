"""Checks that a transport keeps every promise of `hybriddist.transport.Transport`.

For the author of a transport. Give it a way to make connected pairs::

    @contextlib.contextmanager
    def make_pair():
        ours, theirs = my_connected_transports()
        yield ours, theirs
        ours.abort()
        theirs.abort()

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_my_transport(check):
        check(make_pair)

or, without a test framework, ``check_transport(make_pair)``.

What this module does not know: how the transports are connected. Both ends must be in this process, each usable by
threads of its own. A check that waits for something gives up after `PATIENCE_SECONDS` and says for what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hybriddist.testing import conformance_ends as ends
from hybriddist.testing import conformance_frames as frames
from hybriddist.testing.driving import PairMaker

Check = Callable[[PairMaker], None]

CHECKS: Final[Sequence[Check]] = (
    frames.frames_arrive_whole_and_in_order,
    frames.nothing_is_received_when_nothing_was_sent,
    frames.buffers_of_every_size,
    frames.as_many_buffers_as_allowed,
    frames.heads_larger_than_any_ring,
    frames.illegal_frames_are_refused_and_the_transport_is_intact,
    frames.a_clogged_send_returns_false_and_flush_finishes,
    frames.room_wakes_a_waiting_sender,
    frames.snapshot_makes_pending_buffers_independent,
    frames.written_buffers_are_given_back,
    frames.received_buffers_are_private_and_writable,
    frames.received_frames_outlive_the_transport,
    ends.what_is_here_needs_no_doorbell,
    ends.the_doorbell_rings_only_while_armed,
    ends.no_wake_up_is_lost,
    ends.both_directions_at_once,
    ends.two_sides_by_two_threads,
    ends.close_delivers_everything_first,
    ends.both_ends_close_while_clogged,
    ends.close_gives_up_in_time,
    ends.close_wakes_and_ends_the_peer,
    ends.abort_breaks_the_peer,
    ends.sending_to_a_gone_peer_raises,
    ends.what_a_gone_peer_had_sent_is_received,
    ends.ending_twice_is_allowed,
    ends.abort_ends_a_receive_in_another_thread,
    ends.no_descriptor_is_left,
)
"""All checks: functions that take the pair maker, each named by the promise that it checks."""


def check_transport(make_pair: PairMaker) -> None:
    """Run every check.

    Args:
        make_pair: gives a context manager of two connected transports; called once or more by each check. It ends what
            the check did not end.

    Raises:
        AssertionError: a promise was broken.
    """
    for check in CHECKS:
        check(make_pair)
