"""The documentation cannot rot: its Python blocks run, what their comments promise holds, its links and names exist.

The blocks of a page are one script, in a process of its own. The rest of the page becomes empty lines, so that a
traceback names the page's line. A comment is a promise where it follows, on the last line,

* an expression or the assignment of a name, and is itself a literal: the value is equal to it;
* a call of ``print``: that is what is printed.

Other comments, and the bodies of functions and classes, are left alone. A block after ``<!-- not run: reason -->`` is
skipped.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybriddist
from tests.helpers.scripts import ScriptRunner

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PROMISES = '''
"""What comments of the documentation promise."""


def check(value, promised):
    if value != promised:
        raise AssertionError(f"the comment says {promised!r}, the value is {value!r}")


def check_print(promised, *values):
    printed = " ".join(map(str, values))
    print(printed)
    if printed != promised:
        raise AssertionError(f"the comment says {promised!r}, printed is {printed!r}")
'''

# ---- pages to scripts -----------------------------------------------------------------------------------------------

_FENCE = re.compile(r"( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SKIPPED = re.compile(r"<!-- not run: .+ -->\s*\Z")


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The first line and the code of each Python block that is to be run."""
    for match in _FENCE.finditer(text):
        if match[2] == "python" and not _SKIPPED.search(text[: match.start()]):
            yield text.count("\n", 0, match.start(3)), textwrap.dedent(match[3])


def script(text: str) -> str:
    """A page as a script: line n of the one is line n of the other."""
    lines = [""] * (text.count("\n") + 1)
    for first, code in blocks(text):
        for number, line in enumerate(with_checks(code).splitlines()):
            lines[first + number] = line
    lines[0] = "import promises as _promises"  # where the page has its title
    return "\n".join(lines) + "\n"


def with_checks(code: str) -> str:
    """The code with its promises checked, line for line."""
    lines = code.splitlines()
    for node in sorted(statements(ast.parse(code)), key=lambda node: node.lineno, reverse=True):
        assert node.end_lineno is not None
        comment = comments(code).get(node.end_lineno)
        if comment is None:
            continue
        first, last = node.lineno - 1, node.end_lineno - 1
        # Columns of the syntax tree count bytes of UTF-8.
        start = len(lines[first].encode()[: node.col_offset].decode())
        end = len(lines[last].encode()[: node.end_col_offset].decode())
        if isinstance(node, ast.Assign):
            assert isinstance(node.targets[0], ast.Name)
            if is_literal(comment):
                lines[last] = f"{lines[last][:end]}; _promises.check({node.targets[0].id}, {comment})"
        elif isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "print":
            lines[last] = lines[last][:end]
            lines[first] = f"{lines[first][:start]}_promises.check_print({comment!r}, {lines[first][start + 6 :]}"
        elif is_literal(comment):
            lines[last] = f"{lines[last][:end]}), {comment})"
            lines[first] = f"{lines[first][:start]}_promises.check(({lines[first][start:]}"
    return "\n".join(lines)


def statements(tree: ast.AST) -> Iterator[ast.Expr | ast.Assign]:
    """Expressions and assignments of one name, outside of functions and classes."""
    for node in ast.iter_child_nodes(tree):
        is_assignment = isinstance(node, ast.Assign) and [type(target) for target in node.targets] == [ast.Name]
        if isinstance(node, ast.Expr) or is_assignment:
            yield node  # type: ignore[misc]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from statements(node)


def comments(code: str) -> dict[int, str]:
    """Comments by line, without the number sign."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


# ---- the pages ------------------------------------------------------------------------------------------------------


def has_blocks(page: Path) -> bool:
    return any(blocks(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [*filter(has_blocks, PAGES)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, run_python: ScriptRunner) -> None:
    (tmp_path / "promises.py").write_text(PROMISES)
    done = run_python(script(page.read_text(encoding="utf-8")), timeout=60)
    assert done.returncode == 0, f"{page.name}, whose lines are those of the script:\n{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere() -> None:
    dead = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"https?://|mailto:", target) and not (page.parent / target).exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []


def test_names_of_the_library_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = {name for name in re.findall(r"\bhd\.([A-Za-z]\w*)", text) if not hasattr(hybriddist, name)}
    assert missing == set()


def test_every_public_name_is_in_the_users_documentation() -> None:
    pages = [page for page in PAGES if page.name not in ("architecture.md", "README.md")]
    words = set(re.findall(r"\w+", "\n".join(page.read_text(encoding="utf-8") for page in pages)))
    assert [name for name in hybriddist.__all__ if name not in words] == []


def test_every_module_is_on_its_floor_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "hybriddist"
    names = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.stat().st_size]
    assert [name for name in names if f"`{name}`" not in text] == []


# ---- this file ------------------------------------------------------------------------------------------------------


def test_promises_are_checked_on_their_lines() -> None:
    code = "x = 3  # 3\nf(1,\n  2), y  # [5]\nprint('é', x)  # é 3\nfor y in z:\n    y  # 'a'\ny  # why\nprint(1)"
    assert with_checks(code).splitlines() == [
        "x = 3; _promises.check(x, 3)",
        "_promises.check((f(1,",
        "  2), y), [5])",
        "_promises.check_print('é 3', 'é', x)",
        "for y in z:",
        "    _promises.check((y), 'a')",
        "y  # why",
        "print(1)",
    ]


def test_a_page_keeps_its_lines_and_skips_what_is_not_to_be_run() -> None:
    page = (
        "# Title\n\n* point\n\n  ```python\n  x = 1\n  ```\n\n<!-- not run: needs a host -->\n```python\ny\n```\n"
        "```console\nz\n```\n"
    )
    assert [(number, line) for number, line in enumerate(script(page).splitlines(), 1) if line] == [
        (1, "import promises as _promises"),
        (6, "x = 1"),
    ]


@pytest.mark.parametrize("code", ["1 + 1  # 3", "x = [1]  # [2]", "print('a')  # b"])
def test_a_broken_promise_is_found(code: str, tmp_path: Path, run_python: ScriptRunner) -> None:
    (tmp_path / "promises.py").write_text(PROMISES)
    done = run_python(script(f"# Title\n\n```python\n{code}\n```\n"))
    assert done.returncode == 1
    assert "AssertionError: the comment says" in done.stderr
    assert "line 4" in done.stderr
