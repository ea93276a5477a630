"""The membership, shared by threads."""

from __future__ import annotations

from threading import Condition, Thread

import pytest

from hybriddist.core.membership import Member
from hybriddist.runtime.roster import Roster


def test_ctrl_c_leaves_no_lock_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition's `__enter__` is Python code: an interrupt in it comes when the lock is taken, and nobody lets go."""
    roster = Roster()
    enter = Condition.__enter__

    def struck(condition: Condition) -> bool:
        enter(condition)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Condition, "__enter__", struck)
        roster.add(Member(2))
        roster.joined(2)
        assert roster.procs() == [1, 2]
        assert not roster.wait_gone(2, 0)
    another = Thread(target=roster.procs, daemon=True)
    another.start()
    another.join(10)
    assert not another.is_alive()
