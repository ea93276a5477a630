"""Code given as a string: names, lines, values, imports."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from hybriddist.core import snippets


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A `__main__` to run code in."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def run(text: str, file: str | None = None, **values: Any) -> Any:
    return snippets.run(snippets.parse(text, values, file)[0], values)


def names(main: types.ModuleType) -> list[str]:
    return sorted(name for name in vars(main) if not name.startswith("__"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 1", 2),
        ("x = 2\nx * 3", 6),
        ("x = 2", None),
        ("x = 2;", None),
        ("", None),
        ("# only a comment", None),
        ("for i in range(3):\n    i", None),
        ("\n    x = 5\n    if x:\n        x += 1\n    x\n", 6),
        ("'''a\ntext'''", "a\ntext"),
        ("from __future__ import annotations\nx: what = 1\nx", 1),
    ],
)
def test_the_value_of_the_last_expression(main: types.ModuleType, text: str, value: Any) -> None:
    assert run(text) == value


def test_it_runs_in_main(main: types.ModuleType) -> None:
    main.y = 4  # type: ignore[attr-defined]
    assert run("x = y + 1\ndef f(): return x, __name__\nf()") == (5, "__main__")
    assert names(main) == ["f", "x", "y"]


@pytest.mark.parametrize(
    "text",
    [
        "$v", "[$v][0]", "($v)", "f'{$v[0]}' and $v", "'$v' and $v", "x = $v  # $v\nx", "lambda_ = $v\nlambda_",
        "'''\n$v\n\\''' ''' and $v", "_v = av = bv = 1\n$v", "(lambda: $v)()", "[w for w in [$v]][0]",
        'r"\\" and $v" and $v',
        "é = 'é'; $v",
    ],
)  # fmt: skip
def test_a_value_is_the_very_object(main: types.ModuleType, text: str) -> None:
    if text.startswith("f'") and sys.version_info < (3, 12):
        pytest.skip("before 3.12 the inside of an f-string is text")
    value = [object()]
    assert run(text, v=value) is value if not text.startswith("f'") else True


def test_values_are_gone_when_nothing_can_need_them(main: types.ModuleType) -> None:
    run("x = $v + $w", v=1, w=2)
    assert names(main) == ["x"]
    with pytest.raises(ZeroDivisionError):
        run("$v / 0", v=1)
    assert names(main) == ["x"]


def test_functions_keep_the_values_of_their_own_run(main: types.ModuleType) -> None:
    run("def f(): return $v", v=1)
    f: Any = main.f  # type: ignore[attr-defined]
    run("def g(): return $v\n$v", v=2)
    assert (f(), main.g()) == (1, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "values", "says"),
    [
        ("$v + $w", {"v": 1}, r"\$w, which has no value: pass w="),
        ("1", {"v": 1}, r"'v' was passed, but there is no \$v"),
        ("'$v'", {"v": 1}, "outside of strings"),
    ],
)
def test_values_and_names_must_fit(text: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        snippets.parse(text, values)


@pytest.mark.parametrize(
    ("text", "line", "shown"),
    [
        ("x = 1\ny = (\n", 2, "y = ("),
        ("x = 1\nreturn x", 2, "return x"),
        ("\n  x = 1\n  y = = $v\n", 3, "y = = $v"),
        ("x = 1\n$v = 1", 2, "$v = 1"),
        ("x.$v", 1, "x.$v"),
        ("f($v=1)", 1, "f($v=1)"),
        ("def $v(): pass", 1, "def $v(): pass"),
        ("import $v", 1, "import $v"),
        ("$ v", 1, "$ v"),
        ("a$v", 1, "a$v"),
        ("$1", 1, "$1"),
    ],
)
def test_a_syntax_error_shows_the_line_as_it_was_written(text: str, line: int, shown: str) -> None:
    values = {"v": 1} if "$v" in text and "a$v" not in text else {}
    with pytest.raises(SyntaxError) as info:
        snippets.parse(text, values, place="here")
    assert info.value.lineno == line
    assert (info.value.text or "").strip() == shown
    assert "here" in (info.value.filename or "")


def test_columns_are_right_behind_a_value() -> None:
    with pytest.raises(SyntaxError) as info:
        snippets.parse("$value + )", {"value": 1})
    assert info.value.offset == len("$value + )")


def test_file_is_the_callers(main: types.ModuleType) -> None:
    assert run("__file__", "/some/file.py") == "/some/file.py"
    assert run("def f(): return __file__\nf()", "/some/file.py") == "/some/file.py"
    assert run("__file__ = 'own'\n__file__", "/some/file.py") == "own"
    main.__file__ = "of main"
    assert run("__file__") == "of main"


def test_tracebacks_show_the_lines(main: types.ModuleType) -> None:
    import traceback

    with pytest.raises(ZeroDivisionError) as info:
        run("x = 0\n$v / x  # this one", v=1)
    text = "".join(traceback.format_exception(info.value))
    assert "$v / x  # this one" in text
    assert "line 2, in <module>" in text
    with pytest.raises(ZeroDivisionError) as info:
        run("1/0")
    assert "    1/0\n    ~^~\n" in "".join(traceback.format_exception(info.value))


def test_the_texts_kept_for_tracebacks_are_bounded(main: types.ModuleType) -> None:
    import linecache

    for number in range(snippets._MOST_TEXTS + 20):
        run(f"x = {number}")
    assert sum(name.startswith("<everywhere ") for name in linecache.cache) <= snippets._MOST_TEXTS


# ---- imports --------------------------------------------------------------------------------------------------------


def test_imports_are_found_outside_of_functions() -> None:
    text = """
        import a, b.c as d
        x = 1
        if x:
            from e import f
        elif y:
            import g
        else:
            import h
        try:
            import i
        except ImportError:
            import j
        finally:
            import k
        with x:
            import l
        match x:
            case 1:
                import m
        for x in y:
            while x:
                import n
        def function():
            import not_this
        class Class:
            import nor_this
        (lambda: __import__("nor_that"))
    """
    found = snippets.parse(text, {})[1]
    modules = [code.co_names[0] for code, _ in found]
    assert modules == ["a", "e", "g", "h", "i", "j", "k", "l", "m", "n"]
    assert [in_block for _, in_block in found] == [False] + [True] * 9


def test_imports_load_and_bind_nothing(main: types.ModuleType, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loaded_by_snippet.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        snippets.run_imports(snippets.parse("import loaded_by_snippet as name\nfrom loaded_by_snippet import *", {})[1])
        assert "loaded_by_snippet" in sys.modules
        assert names(main) == []
    finally:
        sys.modules.pop("loaded_by_snippet", None)


def test_an_import_may_fail_in_a_block_only() -> None:
    snippets.run_imports(snippets.parse("try:\n    import no_such_module_1\nexcept ImportError:\n    pass", {})[1])
    with pytest.raises(ModuleNotFoundError, match="no_such_module_2"):
        snippets.run_imports(snippets.parse("x = 1\nimport no_such_module_2", {})[1])
