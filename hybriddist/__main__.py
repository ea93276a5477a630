"""The command line: ``python -m hybriddist`` and the installed ``hybriddist``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--nursery"]:
        from hybriddist.runtime.template import main as nursery_main

        nursery_main(int(arguments[1]))
    ours, rest = _split(arguments)
    options = _parser().parse_args(ours)
    if options.worker is not None:
        from hybriddist.runtime.start import start_from_command_line

        start_from_command_line(options.worker, options.bind_to, options.options)
    from hybriddist.script import run

    return run(options, rest)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and what comes after the first thing that is not one: script, ``-c CODE`` or ``-m MODULE``."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in ("-p", "--procs", "-L", "--load", "--machine-file", "--bind-to"):
            position += 2
        elif argument in ("-c", "-m", "-") or not argument.startswith("-"):
            break
        else:
            position += 1
    return arguments[:position], arguments[position:]


def _parser() -> argparse.ArgumentParser:
    from hybriddist import __version__

    parser = argparse.ArgumentParser(
        prog="hybriddist",
        description="Run a script, code, a module or a REPL with workers.",
        usage="hybriddist [options] [script | -c CODE | -m MODULE | -] [arguments]",
    )
    parser.add_argument("-p", "--procs", metavar="N|auto", type=_count, help="start so many local workers first")
    parser.add_argument("-L", "--load", metavar="FILE", action="append", default=[], help="run FILE on every process")
    parser.add_argument("--worker", metavar="COOKIE", nargs="?", const="", help="be a worker; the cookie comes by stdin")
    parser.add_argument("--bind-to", metavar="ADDR[:PORT]", help="where a worker listens")
    parser.add_argument("--options", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"hybriddist {__version__}")
    return parser


def _count(text: str) -> Any:
    if text == "auto":
        return "auto"
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 and more, or auto, not {text!r}")
    return count


if __name__ == "__main__":
    sys.exit(main())
