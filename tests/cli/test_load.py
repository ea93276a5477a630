"""``-L``: a file in ``__main__`` of every process, shared with the program."""

from __future__ import annotations

from pathlib import Path

from .conftest import CommandLine

LIBRARY = """
import os
import hybriddist as hd
NAME = os.path.basename(__file__)
place = f"defined on {hd.myid()}"
def where(): return place
print(f"loaded on {hd.myid()}", flush=True)
"""


def test_it_runs_once_on_every_process_and_the_program_sees_it(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(LIBRARY)
    done = command_line(
        "-p",
        "2",
        "-L",
        "library.py",
        "-c",
        "import sys; sys.stdout.write(f'{where()} {NAME} {\"__file__\" in globals()}\\n')",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if "From worker" not in line] == ["loaded on 1", "defined on 1 library.py False"]
    assert sorted(line.strip() for line in lines if "From worker" in line) == [
        "From worker 2:\tloaded on 2",
        "From worker 3:\tloaded on 3",
    ]


def test_each_process_keeps_what_it_defined(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "script.py").write_text(
        "code = \"__import__('__main__').where()\"\nprint([hd.remotecall_fetch(eval, pid, code) for pid in (2, 3)])"
    )
    done = command_line("-p", "2", "-L", "library.py", "script.py")
    assert done.stdout.splitlines()[-1] == "['defined on 2', 'defined on 3']", done.stderr


def test_several_files_run_in_order_and_without_workers_too(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = [1]")
    (tmp_path / "two.py").write_text("x.append(2)")
    done = command_line("-L", "one.py", "--load=two.py", "-c", "print(x)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")


def test_an_error_on_the_driver_is_shown_as_that_of_a_script(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("1 / 0")
    done = command_line("-p", "1", "-L", "library.py", "-c", "print('ran')")
    by_python = command_line.python(tmp_path / "library.py")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", by_python.stderr)


def test_an_error_on_workers_names_them(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("import hybriddist as hd\nif hd.myid() > 1: raise ValueError(hd.myid() * 11)")
    done = command_line("-p", "2", "-L", "library.py", "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hybriddist: -L {tmp_path / 'library.py'} failed:\nOn worker 2:\n")
    assert "ValueError: 22" in done.stderr
    assert "ValueError: 33" in done.stderr


def test_a_syntax_error_is_found_before_anything_runs(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("print('ran')")
    (tmp_path / "two.py").write_text("def f(:")
    done = command_line("-p", "1", "-L", "one.py", "-L", "two.py", "-c", "pass")
    by_python = command_line.python(tmp_path / "two.py")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", by_python.stderr)
