"""What the command line says: options end at the program, wrong ones give a sentence and status 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hybriddist
from hybriddist.__main__ import Command, UsageError, main, parse

from .conftest import CommandLine


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("-p 2", {"procs": 2}),
        ("-p2", {"procs": 2}),
        ("--procs 2", {"procs": 2}),
        ("--procs=2", {"procs": 2}),
        ("-p auto", {"procs": "auto"}),
        ("-p 1 -p 3", {"procs": 3}),
        ("-L a -Lb --load c --load=d", {"load": ["a", "b", "c", "d"]}),
        ("--worker", {"worker": True}),
        ("--worker=foo=bar", {"worker": True, "cookie": "foo=bar"}),
        ("--worker --options", {"worker": True, "with_options": True}),
        ("--worker --bind-to [::1]:9000", {"worker": True, "bind_to": "[::1]:9000"}),
        ("--bind-to=h --worker", {"worker": True, "bind_to": "h"}),
        ("--version -p", {"shows": "--version"}),
        ("-h", {"shows": "--help"}),
        ("-", {"kind": "-"}),
        ("s", {"kind": "script", "what": "s"}),
        ("s -p 0 --version", {"kind": "script", "what": "s", "arguments": ["-p", "0", "--version"]}),
        ("-p 1 s --worker", {"procs": 1, "kind": "script", "what": "s", "arguments": ["--worker"]}),
        ("-c 1+1 -c -p", {"kind": "-c", "what": "1+1", "arguments": ["-c", "-p"]}),
        ("-c1+1 x", {"kind": "-c", "what": "1+1", "arguments": ["x"]}),
        ("-m mod -m", {"kind": "-m", "what": "mod", "arguments": ["-m"]}),
        ("-mmod", {"kind": "-m", "what": "mod"}),
        ("- -p 0", {"kind": "-", "arguments": ["-p", "0"]}),
    ],
)
def test_words_are_understood(words: str, expected: dict[str, Any]) -> None:
    assert parse(words.split()) == Command(**expected)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-p", "0"], "'0'"),
        (["-p", "-1"], "'-1'"),
        (["-p", "1.0"], "'1.0'"),
        (["--procs=1.0"], "'1.0'"),
        (["-p", "+2"], "'+2'"),
        (["-p", "2_0"], "'2_0'"),
        (["-p", "\u0662"], "'\u0662'"),
        (["-p", ""], "''"),
        (["-p", "Auto"], "'Auto'"),
        (["-p"], "-p needs a value"),
        (["-L"], "-L needs a value"),
        (["-c"], "-c needs a value"),
        (["-m"], "-m needs a value"),
        (["--proc", "2"], "'--proc'"),
        (["-x"], "'-x'"),
        (["--version=1"], "--version takes no value"),
        (["--machine-file", "hosts"], "--machine-file is not supported"),
        (["--worker", "script.py"], "--worker"),
        (["--worker", "-p", "1"], "--worker"),
        (["--bind-to", "127.0.0.1", "script.py"], "--bind-to is for --worker"),
        (["--options"], "--worker"),
    ],
)
def test_nonsense_is_refused(words: list[str], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert named in str(caught.value)


def test_an_unknown_option_is_named_without_its_value() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--cookie=hunter2"])
    assert "--cookie" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hybriddist {hybriddist.__version__}\n"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ("-p", "-L", "--worker", "--bind-to", "--version", "-c", "-m") if name not in text] == []


@pytest.mark.parametrize("words", [["-p", "0"], ["--procs=1.0"], ["-p", "-1"], ["--frobnicate"]])
def test_nonsense_ends_with_status_1_and_no_traceback(words: list[str], command_line: CommandLine) -> None:
    done = command_line(*words, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hybriddist: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["nowhere.py"], ["-p", "1", "nowhere.py"], ["-L", "nowhere.py", "-c", "print(1)"]])
def test_a_file_that_is_not_there(words: list[str], command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line(*words)
    expected = f"hybriddist: can't open file {str(tmp_path / 'nowhere.py')!r}: [Errno 2] No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_what_is_not_built_yet(command_line: CommandLine) -> None:
    for words in (["doctor"], ["-p", "1", "doctor", "--machine-file", "hosts"]):
        done = command_line(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("hybriddist: 'hybriddist doctor' is not built yet")
