"""What workers inherit of the driver's interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybriddist.errors import LaunchError
from hybriddist.managers import interpreter


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), []),
        (("-O",), ["-O"]),
        (("-OO", "-B", "-s"), ["-s", "-B", "-O", "-O"]),
        (("-W", "error", "-W", "ignore::ResourceWarning"), ["-W", "error", "-W", "ignore::ResourceWarning"]),
        (("-X", "importtime", "-P"), ["-P"]),
        (("-X", "utf8=1"), ["-X", "utf8=1"]),
    ],
)
def test_flags(run_python: Callable[..., Any], options: tuple[str, ...], flags: list[str]) -> None:
    code = "from hybriddist.managers import interpreter; print(interpreter.flags())"
    options = ("-S", *options)  # so that nothing but the options counts; the runner itself gives -X faulthandler
    found = eval(run_python(code, options=options, env={"PYTHONDONTWRITEBYTECODE": ""}).stdout)
    assert found.pop(found.index("-S")) == "-S"
    at = found.index("faulthandler")
    assert found[: at - 1] + found[at + 1 :] == flags


def test_isolated_implies_the_others(run_python: Callable[..., Any]) -> None:
    root = str(Path(interpreter.__file__).parents[2])
    code = f"""
    import sys
    sys.path.append({root!r})
    from hybriddist.managers import interpreter
    print(interpreter.flags())
    """
    assert eval(run_python(code, options=("-I",)).stdout) == ["-I", "-X", "faulthandler"]


@pytest.mark.parametrize(
    ("value", "split", "result"),
    [
        (None, False, None),
        ("/opt/my python", False, ["/opt/my python"]),
        (Path("/bin/python"), False, ["/bin/python"]),
        (["nice", "-n", "5", Path("python")], False, ["nice", "-n", "5", "python"]),
        ("-O -W 'a b'", True, ["-O", "-W", "a b"]),
        ("", True, []),
        (("-O",), True, ["-O"]),
    ],
)
def test_words(value: Any, split: bool, result: list[str] | None) -> None:
    assert interpreter.words(value, "exename", split=split) == result


@pytest.mark.parametrize(
    ("value", "split", "error"),
    [
        ("", False, ValueError),
        ([], False, ValueError),
        ("'", True, ValueError),
        (3, True, TypeError),
        ([b"x"], True, TypeError),
    ],
)
def test_wrong_words(value: Any, split: bool, error: type[Exception]) -> None:
    with pytest.raises(error):
        interpreter.words(value, "exename", split=split)


@pytest.mark.parametrize(
    ("env", "error"),
    [([("A", "1")], TypeError), ({"A": 1}, TypeError), ({1: "A"}, TypeError), ({"": "x"}, ValueError),
     ({"A=B": "x"}, ValueError), ({"A": "\0"}, ValueError)],
)  # fmt: skip
def test_wrong_environment(env: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="env"):
        interpreter.check_environment(env)


def test_start_sensitive_variables() -> None:
    environment = {"PATH": "a", "PYTHONHASHSEED": "0", "LD_PRELOAD": "x", "MALLOC_ARENA_MAX": "1", "OMP_X": "1"}
    assert [name for name, _ in interpreter.start_sensitive(environment)] == [
        "LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTHONHASHSEED"
    ]  # fmt: skip


def test_module_path_is_absolute_and_begins_with_what_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "relative", "/abs", Path("/not-a-string"), "/abs"])
    assert interpreter.module_path() == [str(tmp_path), str(tmp_path / "relative"), "/abs"]
    assert interpreter.module_path(f"/abs{os.pathsep}sub{os.pathsep}")[:2] == ["/abs", str(tmp_path / "sub")]


def test_own_path_leaves_the_library_out(monkeypatch: pytest.MonkeyPatch) -> None:
    library = [entry for entry in sys.path if "python3" in entry]
    assert library
    monkeypatch.setattr(sys, "path", ["/my/project", *library])
    assert interpreter.own_path() == ["/my/project"]


def test_embedded_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(LaunchError, match="exename="):
        interpreter.executable()
