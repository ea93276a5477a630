"""Programs run as Python runs them: the same ``__main__``, the same ``sys``, the same ends."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.helpers.polling import poll_for

from .conftest import CommandLine

SURROUNDINGS = """
import json, sys
main = sys.modules["__main__"]
spec = main.__spec__
print(json.dumps({
    "attributes": sorted(name for name in vars(main) if name.startswith("__")),
    "values": {n: repr(vars(main).get(n)) for n in ("__name__", "__file__", "__package__", "__cached__", "__doc__")},
    "spec": spec and [spec.name, spec.origin],
    "loader": getattr(main.__loader__, "__name__", type(main.__loader__).__name__),
    "is main": vars(main) is globals(),
    "argv": sys.argv,
    "path": sys.path,
    "rest of stdin": sys.stdin.read(),
}))
"""


def lay_out(folder: Path) -> None:
    """The same program in all forms."""
    (folder / "script.py").write_text(SURROUNDINGS)
    (folder / "sub").mkdir()
    (folder / "sub" / "script.py").write_text(SURROUNDINGS)
    (folder / "link.py").symlink_to(folder / "sub" / "script.py")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(SURROUNDINGS)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SURROUNDINGS)


@pytest.mark.parametrize(
    "words",
    [
        ("script.py", "a", "-p"),
        ("link.py",),
        ("package", "a"),
        ("archive.zip",),
        ("-c", SURROUNDINGS, "a"),
        ("-m", "script", "a"),
        ("-m", "package"),
        ("-", "a"),
        (),
    ],
    ids=lambda words: " ".join(words[:2]) if words != ("-c", SURROUNDINGS, "a") else "-c",
)
def test_the_surroundings_are_those_that_python_gives(
    words: tuple[str, ...], command_line: CommandLine, tmp_path: Path
) -> None:
    assert_same_surroundings(words, (), command_line, tmp_path)


@pytest.mark.parametrize(
    "words", [("sub/script.py",), ("package",), ("-c", SURROUNDINGS)], ids=["file", "folder", "-c"]
)
def test_with_a_safe_path_only_a_folder_comes_first(
    words: tuple[str, ...], command_line: CommandLine, tmp_path: Path
) -> None:
    assert_same_surroundings(words, ("-P",), command_line, tmp_path)


def assert_same_surroundings(
    words: tuple[str, ...], flags: tuple[str, ...], command_line: CommandLine, folder: Path
) -> None:
    lay_out(folder)
    text = SURROUNDINGS if words in ((), ("-", "a")) else "some text\n"
    by_python = command_line.python(*flags, *words, input=text)
    by_us = command_line(*words, input=text, flags=flags)
    assert (by_python.returncode, by_us.returncode) == (0, 0), by_python.stderr + by_us.stderr
    assert json.loads(by_us.stdout) == json.loads(by_python.stdout)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('last words')", 1),
        ("raise SystemExit(None)", 0),
        ("def f():\n    return 1 / 0\nf()", 1),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e", 1),
        ("raise ExceptionGroup('g', [ValueError('x')])", 1),
        ("def f(:", 1),
        ("x = 1\n y = 2", 1),
        ("import sys; sys.excepthook = lambda *a: print('hook', a[0], file=sys.stderr); 1 / 0", 1),
        ("from __future__ import nonsense", 1),
        ("def f(x: undefined): pass", 1),  # annotations are evaluated: no future import of ours reaches the program
        ("raise KeyboardInterrupt", 130),
        ("import atexit; atexit.register(print, 'at exit'); 1 / 0", 1),
    ],
)
def test_a_program_ends_as_under_python(code: str, status: int, command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(code)
    by_python = command_line.python("script.py")
    by_us = command_line("script.py")
    assert by_us.returncode == status
    assert (by_us.stdout, by_us.stderr) == (by_python.stdout, by_python.stderr)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.at_all", "json.nowhere", "__main__"])
def test_a_module_that_is_not_there(name: str, command_line: CommandLine) -> None:
    done = command_line("-m", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"hybriddist: no module named {name!r}\n"


def test_what_a_module_s_package_misses_is_named(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import missing_thing")
    done = command_line("-m", "package.part")
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'missing_thing'\n")


def test_a_folder_without_main(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command_line("empty")
    assert (done.returncode, done.stderr) == (1, "hybriddist: can't find '__main__' module in 'empty'\n")


# ---- with workers ---------------------------------------------------------------------------------------------------

WITH_WORKERS = """
import sys
import hybriddist as hd

class Point:
    def __init__(self, x): self.x = x

def move(point): return Point(point.x + hd.myid())

moved = [hd.remotecall_fetch(move, pid, Point(10)) for pid in hd.procs()]
print(hd.nworkers(), [point.x for point in moved], {type(point) is Point for point in moved})
print(move.__module__, sys.modules["__main__"].move is move)
"""
EXPECTED = "2 [11, 12, 13] {True}\n__main__ True\n"


@pytest.mark.parametrize("kind", ["script", "-c", "-m", "-", ""])
def test_functions_and_classes_of_a_program_run_on_its_workers(
    kind: str, command_line: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(WITH_WORKERS)
    words = {"script": ["script.py"], "-c": ["-c", WITH_WORKERS], "-m": ["-m", "script"], "-": ["-"], "": []}[kind]
    done = command_line("-p", "2", *words, input=WITH_WORKERS if kind in ("-", "") else "")
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


@pytest.mark.parametrize("how", ["script", "-"])
def test_no_main_guard_is_needed_under_plain_python(how: str, command_line: CommandLine, tmp_path: Path) -> None:
    code = "import hybriddist as hd\nhd.addprocs(2)\n" + WITH_WORKERS
    (tmp_path / "script.py").write_text(code)
    done = command_line.python("script.py" if how == "script" else "-", input=code if how == "-" else "")
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


def test_auto_starts_a_worker_for_each_usable_cpu(command_line: CommandLine) -> None:
    from hybriddist.managers.cpus import usable_cpus

    done = command_line("-p", "auto", "-c", "import hybriddist as hd; print(len(hd.workers()), hd.nprocs())")
    assert done.stdout == f"{usable_cpus()} {usable_cpus() + 1}\n", done.stderr


def test_workers_find_the_modules_beside_the_script(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "beside.py").write_text("def name(): return __name__")
    script = tmp_path / "project" / "script.py"
    script.write_text("import hybriddist as hd, beside; print(hd.remotecall_fetch(beside.name, 2))")
    done = command_line("-p", "1", script)
    assert (done.returncode, done.stdout) == (0, "beside\n"), done.stderr


def test_a_checkout_as_current_directory_suffices(tmp_path: Path, command_line: CommandLine) -> None:
    """The package is then found through the entry of sys.path that makes room for the script's folder."""
    (tmp_path / "script.py").write_text(WITH_WORKERS)
    here = CommandLine(Path(__file__).resolve().parents[2])
    done = here("-p", "2", tmp_path / "script.py", PYTHONPATH="")
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


def test_as_the_installed_script(command_line: CommandLine, tmp_path: Path) -> None:
    """It is ``__main__`` itself until the program takes its place."""
    (tmp_path / "script.py").write_text(WITH_WORKERS + "sys.exit(3)")
    installed = "import sys\nfrom hybriddist.__main__ import main\nsys.exit(main())"
    done = command_line.python("-c", installed, "-p", "2", "script.py")
    assert (done.returncode, done.stdout, done.stderr) == (3, EXPECTED, "")
    (tmp_path / "script.py").write_text("print(sorted(name for name in globals() if name[:2] != '__'))")
    done = command_line.python("-c", installed, "script.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_ctrl_c_ends_the_script_and_its_workers(command_line: CommandLine) -> None:
    # Not one long sleep: Python does not notice a signal that comes in the moment in which one begins.
    code = "import hybriddist as hd, os, time\nprint(hd.remotecall_fetch(os.getpid, 2), flush=True)\n"
    code += "while True: time.sleep(0.05)\n"
    with command_line.start("-p", "1", "-c", code) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        worker = int(process.stdout.readline())
        assert psutil.pid_exists(worker)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read().decode()
        assert process.wait(20) == 130
    assert errors.startswith("Traceback (most recent call last):\n")
    assert errors.endswith("KeyboardInterrupt\n")
    assert "script.py" not in errors
    poll_for(lambda: not psutil.pid_exists(worker), what="the worker's end")


def test_workers_that_cannot_be_started(command_line: CommandLine) -> None:
    done = command_line("-p", "1", "-c", "print('ran')", HYBRIDDIST_WORKER_TIMEOUT="soon")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "hybriddist: the workers could not be started: "
        "HYBRIDDIST_WORKER_TIMEOUT must be a positive number of seconds, not 'soon'\n"
    )


# ---- the REPL -------------------------------------------------------------------------------------------------------


def test_on_a_terminal_it_is_a_repl(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "startup.py").write_text("begun = 40")
    variables = {"TERM": "dumb", "HOME": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "startup.py")}
    ours, theirs = os.openpty()
    try:
        lines = b"def f(): return hd.myid() + begun\n\nhd.remotecall_fetch(f, 2)\n1 / 0\n__name__\nexit(5)\n"
        process = command_line.start("-p", "1", env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, lines)
        shown = read_to_end(ours)
        assert process.wait(20) == 5, shown
    finally:
        os.close(ours)
    assert "as hd" in shown
    assert "1 worker\r\n" in shown
    assert "\n42\r\n" in shown
    assert "ZeroDivisionError" in shown
    assert "\n'__main__'\r\n" in shown


def read_to_end(fd: int) -> str:
    """What a terminal shows until the last process that holds it has closed it, which Linux tells by an error."""
    shown = b""
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        if not data:
            return shown.decode(errors="replace")
        shown += data
