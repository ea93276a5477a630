"""The command line: ``python -m hybriddist`` and the installed ``hybriddist``.

It is read from the left, and ends at the first word that is no option, as Python's own does: what follows belongs to
the program (a script, ``-c CODE``, ``-m MODULE``, ``-`` for stdin) and is never looked at. Wrong options give a
sentence and exit status 1; a script that cannot be opened gives 2, as in Python.

What this module does not know: how a program is run (``script.py``), and how a worker starts (``runtime/start.py``).
Only the one that is needed is imported. No argparse: it would have to be kept from the program's own options, and
each worker that is started as a command would pay for its import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

_HELP: Final = """\
usage: hybriddist [options] [script | -c CODE | -m MODULE | -] [arguments]

Run a script, code, a module or standard input as Python does, with workers. Without any of them: a REPL.

options:
  -p, --procs N|auto        start so many local workers first; auto: one for each usable CPU
  -L, --load FILE           run FILE in __main__ of every process, before the program; may be repeated
  --worker[=COOKIE]         be a worker; the cookie is the first line of standard input, unless it is given here,
                            where every user of this machine can see it
  --bind-to ADDR[:PORT]     where the worker listens (127.0.0.1, and a free port from 9000 up)
  -h, --help                this text
  --version                 the version
"""

_WITH_VALUE: Final = {
    "-p": "-p", "--procs": "-p", "-L": "-L", "--load": "-L", "--bind-to": "--bind-to",
}  # fmt: skip
_WITHOUT_VALUE: Final = {
    "--worker": "--worker", "--options": "--options", "-h": "--help", "--help": "--help", "--version": "--version",
}  # fmt: skip


class UsageError(Exception):
    """The command line makes no sense; the text says why."""


class NotBuiltError(UsageError):
    """It will make sense in a later version."""


@dataclass(slots=True)
class Command:
    """What the command line asks for.

    Attributes:
        procs: local workers to start first; None: none.
        load: files to run on every process.
        worker: whether to be a worker.
        cookie: the worker's, if it stands in the command line.
        bind_to: where the worker listens.
        with_options: whether a second line of the worker's stdin holds its options.
        shows: text to be printed, instead of everything else.
        kind: what the program is: "script", "-c", "-m", "-", or "" for none.
        what: the script's path, the code, or the module's name.
        arguments: the program's.
    """

    procs: int | Literal["auto"] | None = None
    load: list[str] = field(default_factory=list)
    worker: bool = False
    cookie: str | None = None
    bind_to: str | None = None
    with_options: bool = False
    shows: Literal["", "--help", "--version"] = ""
    kind: Literal["", "script", "-c", "-m", "-"] = ""
    what: str = ""
    arguments: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default this process's own).

    Returns:
        The exit status. A worker never returns.

    Raises:
        SystemExit: raised by the program.
    """
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        print(f"hybriddist: {error}\nTry 'hybriddist --help'.", file=sys.stderr)
        return 2 if isinstance(error, NotBuiltError) else 1
    if command.shows == "--help":
        print(_HELP, end="")
        return 0
    if command.shows == "--version":
        from hybriddist import __version__

        print(f"hybriddist {__version__}")
        return 0
    if command.worker:
        from hybriddist.runtime.start import start_from_command_line

        start_from_command_line(command.cookie, command.bind_to, with_options=command.with_options)
    from hybriddist.script import Program, run

    # The last use of a global here: this module may be __main__, which is emptied for the program.
    return run(Program(command.kind, command.what, command.arguments), command.procs, command.load)


def parse(arguments: Sequence[str]) -> Command:
    """Read a command line.

    Raises:
        UsageError: it makes no sense.
    """
    command = Command()
    words = list(arguments)
    while words and not command.shows:
        word = words[0]
        if not word.startswith("-") or word == "-" or word[:2] in ("-c", "-m"):
            _take_program(command, words)
            break
        del words[0]
        name, value = _split(word)
        if name in _WITH_VALUE:
            if value is None:
                if not words:
                    raise UsageError(f"{name} needs a value")
                value = words.pop(0)
            _take_value(command, _WITH_VALUE[name], value)
        elif name in _WITHOUT_VALUE:
            if value is not None and name != "--worker":
                raise UsageError(f"{name} takes no value")
            _take_flag(command, _WITHOUT_VALUE[name], value)
        elif name == "--machine-file":
            raise UsageError("--machine-file is not supported by this version")
        else:
            raise UsageError(f"there is no option {name!r}")
    if not command.shows:
        _check_combination(command)
    return command


def _split(word: str) -> tuple[str, str | None]:
    """An option and the value in the same word: ``--procs=2``, ``-p2``."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    return word[:2], word[2:] or None


def _take_program(command: Command, words: list[str]) -> None:
    word = words.pop(0)
    if word == "-":
        command.kind = "-"
    elif word.startswith("-"):
        command.kind = "-c" if word.startswith("-c") else "-m"
        if not word[2:] and not words:
            raise UsageError(f"{word} needs a value")
        command.what = word[2:] or words.pop(0)
    elif word == "doctor":
        raise NotBuiltError("'hybriddist doctor' is not built yet; a script of that name is ./doctor")
    else:
        command.kind, command.what = "script", word
    command.arguments = words


def _take_value(command: Command, name: str, value: str) -> None:
    if name == "-p":
        command.procs = _count(value)
    elif name == "-L":
        command.load.append(value)
    else:
        command.bind_to = value


def _take_flag(command: Command, name: str, value: str | None) -> None:
    if name == "--worker":
        command.worker, command.cookie = True, value
    elif name == "--options":
        command.with_options = True
    elif name == "--version":
        command.shows = "--version"
    else:
        command.shows = "--help"


def _count(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    # int() alone takes "+2", " 2", "2_0" and the digits of every script.
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UsageError(f"-p takes a number of 1 and more, or auto, not {text!r}")
    return int(text)


def _check_combination(command: Command) -> None:
    if command.worker:
        if command.kind or command.procs or command.load:
            raise UsageError("a worker runs no program and has no workers: --worker goes with --bind-to only")
    elif command.bind_to is not None or command.with_options:
        raise UsageError("--bind-to is for --worker: the driver listens nowhere")


if __name__ == "__main__":
    sys.exit(main())
