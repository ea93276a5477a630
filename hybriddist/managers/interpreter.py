"""What a worker's interpreter is started with: executable, flags, environment, module path.

All of it is the driver's at the time of the call: later changes there do not reach workers that exist. What this
module does not know: how processes are started.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hybriddist.errors import LaunchError

BLAS_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Read by numeric libraries when they are loaded. With one worker a CPU, further threads only get in the way.

A worker loads them after these are set: the template that it is forked from has not loaded numpy, and never does. So
there is nothing to be told afterwards. Programs that others start are another matter (``managers/numeric.py``).
"""

_START_SENSITIVE: Final = ("PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_TUNABLES", "LANG", "LC_", "TZ")
"""Variables that have their effect while a process starts: a template that was started with others won't do."""


def executable() -> str:
    """The driver's interpreter.

    Raises:
        LaunchError: this process does not know it (Python is embedded in another program).
    """
    if not sys.executable:
        raise LaunchError("this process does not know its interpreter (sys.executable is empty): give exename=")
    return sys.executable


def flags() -> list[str]:
    """The options of this interpreter that its workers should have as well.

    Only documented facts are used (``sys.flags``, ``sys.warnoptions``, ``sys._xoptions``): isolation, site, bytecode,
    optimisation, warnings, and ``-X`` except the one that prints at every import.
    """
    own = sys.flags
    words: list[str] = []
    if own.isolated:
        words.append("-I")
    else:
        words += ["-E"] * bool(own.ignore_environment) + ["-s"] * bool(own.no_user_site) + ["-P"] * own.safe_path
    words += ["-S"] * bool(own.no_site) + ["-B"] * bool(own.dont_write_bytecode)
    words += ["-O"] * own.optimize + ["-b"] * own.bytes_warning
    for option in sys.warnoptions:
        words += ["-W", option]
    for name, value in sys._xoptions.items():
        if name != "importtime":
            words += ["-X", name if value is True else f"{name}={value}"]
    return words


def start_sensitive(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables by which two templates differ, sorted."""
    return sorted(item for item in environment.items() if item[0].startswith(_START_SENSITIVE))


def words(value: Any, name: str, *, split: bool = False) -> list[str] | None:
    """A command or flags as a list of words.

    Args:
        value: ``None``, a path or string, or a sequence of words.
        name: the parameter, for the message.
        split: whether a string is several words, quoted as for a shell; else it is one (a path may have spaces).

    Raises:
        TypeError: it is none of these.
        ValueError: it has no words, or a quotation is not closed.
    """
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        result = [_text(value, name)]
        if split:
            try:
                result = shlex.split(result[0])
            except ValueError as error:
                raise ValueError(f"{name}={value!r} cannot be split into words: {error}") from None
    elif isinstance(value, list | tuple):
        result = [_text(word, f"each word of {name}") for word in value]
    else:
        raise TypeError(f"{name} must be a string or a list of words, not {type(value).__name__}")
    if not split and not (result and result[0]):
        raise ValueError(f"{name} is empty")
    return result


def _text(value: Any, what: str) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string or a path, not {type(text).__name__}")
    return text


def check_environment(env: Any) -> dict[str, str]:
    """The ``env`` parameter, checked.

    Raises:
        TypeError, ValueError: it is no dict of strings, or a name is impossible.
    """
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a dict, not {type(env).__name__}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must map strings to strings, not {name!r} to {type(value).__name__}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env cannot hold the variable {name!r}")
    return dict(env)


def working_directory(wanted: str | os.PathLike[str] | None = None) -> str | None:
    """The workers' directory: the driver's, or what ``wanted`` is to it; ``None`` if the driver's has been removed.

    Raises:
        TypeError: ``wanted`` is no path.
        LaunchError: it has been removed, and ``wanted`` is relative to it.
    """
    given = None if wanted is None else _text(wanted, "dir")
    try:
        return os.getcwd() if given is None else str(Path(given).absolute())
    except FileNotFoundError:
        if given is None:
            return None
        text = f"the current directory has been removed, so dir={given!r} is nowhere: give an absolute dir="
        raise LaunchError(text, stage="start") from None


def module_path(extra: str | None = None) -> list[str]:
    """The driver's ``sys.path``, absolute. Relative entries mean nothing once the driver's directory is removed.

    Args:
        extra: a ``PYTHONPATH`` given for the workers; its entries come first.
    """
    first = [entry for entry in (extra or "").split(os.pathsep) if entry]
    entries = [entry for entry in [*first, *sys.path] if isinstance(entry, str)]
    if working_directory() is None:
        entries = [entry for entry in entries if os.path.isabs(entry)]
    entries = [os.path.abspath(entry) for entry in entries]
    return list(dict.fromkeys(entries))


def own_path() -> list[str]:
    """Of the driver's ``sys.path``, what does not belong to the installation of its interpreter.

    An interpreter that the user names may have another library; the driver's would break it.
    """
    import site
    import sysconfig

    paths = sysconfig.get_paths()
    library = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    library |= {os.path.join(paths["stdlib"], "lib-dynload"), os.path.join(paths["platstdlib"], "lib-dynload")}
    library |= {*site.getsitepackages(), site.getusersitepackages()}
    return [entry for entry in module_path() if entry not in library and not entry.endswith(".zip")]


def add_package_path(environment: dict[str, str], own: list[str]) -> None:
    """Let ``python -m hybriddist`` find this package where it is not installed (a checkout on the driver's path)."""
    root = str(Path(__file__).resolve().parents[2])
    if root in own:
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root + (os.pathsep + rest if rest else "")
