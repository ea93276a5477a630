"""Modules as text: what may be sent, and what is made of it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybriddist.core.sources import ModuleSource, SourceLoader, are_installed, find_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the module path; what is imported from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()


def test_a_module_is_found_without_being_imported(folder: Path) -> None:
    write(folder, {"sent_one.py": "1 / 0  # é\n"})
    assert find_source("sent_one") == ModuleSource("sent_one", "1 / 0  # é\n", str(folder / "sent_one.py"), False)
    assert "sent_one" not in sys.modules


def test_packages_submodules_and_packages_without_init(folder: Path) -> None:
    write(folder, {"sent_p/__init__.py": "", "sent_p/q/__init__.py": "x = 1", "sent_p/q/r.py": "", "sent_n/m.py": ""})
    found: dict[str, Any] = {n: find_source(n) for n in ("sent_p", "sent_p.q", "sent_p.q.r", "sent_n", "sent_n.m")}
    assert {n: (s.text, s.is_package) for n, s in found.items()} == {
        "sent_p": ("", True), "sent_p.q": ("x = 1", True), "sent_p.q.r": ("", False), "sent_n": ("", True),
        "sent_n.m": ("", False),
    }  # fmt: skip
    assert not {"sent_p", "sent_p.q", "sent_n"} & set(sys.modules)
    assert find_source("sent_p.no") is None
    assert find_source("sent_p.q.r.no") is None


@pytest.mark.parametrize("name", ["json", "json.decoder", "sys", "pytest", "_pytest.config", "no_such_module", "a.b"])
def test_what_is_installed_builtin_or_missing_is_not_sent(name: str) -> None:
    assert find_source(name) is None


def test_a_module_loaded_by_hand(folder: Path) -> None:
    write(folder, {"elsewhere/odd-name.py": "x = 1\n"})
    module = types.ModuleType("by_hand")
    module.__file__ = str(folder / "elsewhere" / "odd-name.py")
    sys.modules["by_hand"] = module
    found = find_source("by_hand")
    assert isinstance(found, ModuleSource)
    assert found.text == "x = 1\n"
    sys.modules["without_file"] = types.ModuleType("without_file")
    assert find_source("without_file") is None


def test_a_module_whose_loader_has_no_text_is_read_from_its_file(folder: Path) -> None:
    write(folder, {"rewritten.py": "x = 'é'\n"})
    module = importlib.import_module("rewritten")
    module.__spec__.loader = object()  # type: ignore[union-attr, assignment]
    found = find_source("rewritten")
    assert isinstance(found, ModuleSource)
    assert found.text == "x = 'é'\n"


def test_what_is_no_source_is_said_to_be_none(folder: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    write(folder, {f"compiled{suffix}": "", "broken.py": ""})
    (folder / "broken.py").write_bytes(b"# coding: ascii\n\xff")
    assert find_source("compiled") == f"{folder}/compiled{suffix} is not Python source"
    assert str(find_source("broken")).startswith(f"{folder}/broken.py cannot be read: UnicodeDecodeError")


def test_a_finder_that_raises_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad:
        def find_spec(self, *_: Any) -> Any:
            raise RuntimeError

    write(folder, {"after_bad.py": ""})
    monkeypatch.setattr(sys, "meta_path", [Bad(), *sys.meta_path])
    assert isinstance(find_source("after_bad"), ModuleSource)


def test_installed(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (tmp_path / "project.py").write_text("")
    (packages / "linked.py").symlink_to(tmp_path / "project.py")
    assert are_installed([json.__file__])
    assert are_installed([str(packages / "thing.py")])
    assert not are_installed([str(tmp_path / "project.py")])
    assert not are_installed([str(packages / "linked.py")])  # as an editable install may be made
    assert not are_installed([str(packages), str(tmp_path)])


# ---- the other end --------------------------------------------------------------------------------------------------


def load(name: str, text: str, *, is_package: bool = False) -> types.ModuleType:
    loader = SourceLoader(ModuleSource(name, text, f"/no/such/{name}.py", is_package))
    module = importlib.util.module_from_spec(loader.spec())
    loader.exec_module(module)
    return module


def test_a_module_of_text_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    module = load("made_of_text", "def f():\n    return 1 / 0  # here\n")
    monkeypatch.setitem(sys.modules, "made_of_text", module)
    assert module.__file__ == "/no/such/made_of_text.py"
    assert inspect.getsource(module.f).endswith("# here\n")
    with pytest.raises(ZeroDivisionError) as info:
        module.f()
    assert "return 1 / 0  # here" in "".join(traceback.format_exception(info.value))


def test_a_package_of_text_has_no_folder() -> None:
    module = load("package_of_text", "x = __path__, __package__", is_package=True)
    assert module.x == ([], "package_of_text")
