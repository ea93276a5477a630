"""The options of a worker, as JSON and applied."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.runtime.options import WorkerOptions

TEXT = st.text(st.characters(codec=None), max_size=8)  # lone surrogates too: names that are not UTF-8


@given(
    st.builds(
        WorkerOptions,
        bind_port=st.integers(0, 65535),
        unix_path=st.none() | TEXT,
        sys_path=st.none() | st.lists(TEXT),
        env=st.dictionaries(TEXT, st.none() | TEXT),
        worker_timeout_seconds=st.floats(0, 1e9),
        close_stdin=st.booleans(),
    )
)
def test_one_line_of_json_and_back(options: WorkerOptions) -> None:
    text = options.to_json()
    assert "\n" not in text
    assert WorkerOptions.from_json(text.encode("ascii")) == options


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cookie": "abc"}'])
def test_wrong_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"worker options|Expecting"):
        WorkerOptions.from_json(text)


def test_apply(run_python: object, tmp_path: Path) -> None:
    (tmp_path / "late_module.py").touch()
    options = WorkerOptions(
        cwd=str(tmp_path),
        env={"HERE": "1", "GONE": None, "NEVER_WAS": None},
        sys_path=[*sys.path, str(tmp_path)],
        extra_path=[str(tmp_path), "/first"],
    )
    code = f"""
    import json, os, sys
    from hybriddist.runtime.options import WorkerOptions
    WorkerOptions.from_json({options.to_json()!r}).apply()
    import late_module
    print(json.dumps([os.getcwd(), os.environ["HERE"], "GONE" in os.environ, sys.path]))
    """
    result = run_python(code, env={"GONE": "1"})  # type: ignore[operator]
    cwd, here, gone, path = json.loads(result.stdout)
    assert (os.path.realpath(cwd), here, gone) == (os.path.realpath(tmp_path), "1", False)
    assert path[:2] == [str(tmp_path), "/first"]
    assert path.count(str(tmp_path)) == 1
