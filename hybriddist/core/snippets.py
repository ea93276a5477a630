"""Code that is given as a string: parsed once where it was written, run in the `__main__` of any process.

::

    "import m; n = $size * 2; n"      with size=21
        │ scan     $size is a name that nobody else can have; strings and comments are left alone
        │ parse    the imports are noted; the last statement is kept apart if it is an expression
        │ compile  here, so that a syntax error is found before anything is sent
        ▼
    Snippet ── travels ──► run: "$size" becomes a global of __main__ for as long as something may need it

A value is passed as an object, not as text: in its own process the code gets the very object. The name of a value is
no identifier (it begins with "$"), so the code of a user can neither meet nor change it. Functions that the code
defines may use it later; then it stays.

What this module does not know: processes, and how a snippet travels.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from hybriddist.core import mainspace

_SCANNED: Final = re.compile(
    r"""
      \#[^\n]*                                             # a comment
    | (?P<quotes>\"{3}|'{3})(?:\\.|(?!(?P=quotes)).)*(?P=quotes)
    | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'            # strings
    | (?<![\w$])\$(?P<name>[^\W\d]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)

_LETTERS: Final = "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""One of them stands for "$" while Python parses: of the same length, so that columns stay what they are."""

_FILE_NAME_START: Final = "<everywhere "

_MOST_TEXTS: Final = 256
"""Texts kept for tracebacks. A program that makes its code as it goes must not fill the memory with it."""


class Snippet(NamedTuple):
    """Compiled code, ready to travel and to be run."""

    body: types.CodeType | None
    """All but the last expression."""
    last: types.CodeType | None
    """The last expression, if the code ends in one."""
    names: tuple[str, ...]
    """The names of the values that it uses."""
    text: str
    """What the user wrote, for tracebacks."""

    @property
    def file_name(self) -> str:
        """What tracebacks call the code."""
        code = self.body or self.last
        return code.co_filename if code is not None else ""


def parse(
    text: str, values: Mapping[str, Any], file: str | None = None, place: str = ""
) -> tuple[Snippet, list[tuple[types.CodeType, bool]]]:
    """Compile code.

    Args:
        text: Python; common indentation is taken off.
        values: for the ``$name`` in it.
        file: what ``__file__`` stands for in the code; None: for what it is where the code runs.
        place: where the code was written, for tracebacks.

    Returns:
        The snippet, and its import statements, each with whether it stands in a block, which may guard it.

    Raises:
        SyntaxError: with the line of ``text``, unchanged.
        TypeError: a ``$name`` has no value, or a value has no ``$name``.
    """
    import ast  # 5 ms, which only this needs
    import textwrap
    import zlib

    text = textwrap.dedent(text)
    used = {match["name"] for match in _SCANNED.finditer(text) if match["name"]}
    _check_names(used, values)
    stand_ins = {name: _stand_in(name, text) for name in used}

    def stand_in(match: re.Match[str]) -> str:
        return stand_ins[match["name"]] if match["name"] else match[0]

    plain = _SCANNED.sub(stand_in, text)
    file_name = f"{_FILE_NAME_START}{zlib.crc32(text.encode('utf-8', 'replace')):08x}{place and ', '}{place}>"
    try:
        tree = ast.parse(plain, file_name)
        _insert_names(tree, {word: f"${name}" for name, word in stand_ins.items()}, file)
        last = None
        imports = [
            (compile(ast.Module([node], []), file_name, "exec", dont_inherit=True), in_block)
            for node, in_block in _imports(tree.body)
        ]
        compile(tree, file_name, "exec", dont_inherit=True)  # as a whole: what is wrong is said of the whole
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            expression = tree.body.pop()
            assert isinstance(expression, ast.Expr)
            last = compile(ast.Expression(expression.value), file_name, "eval", dont_inherit=True)
        body = compile(tree, file_name, "exec", dont_inherit=True) if tree.body else None
    except SyntaxError as error:
        lines = text.splitlines()
        if error.lineno is not None and 0 < error.lineno <= len(lines):
            error.text = lines[error.lineno - 1] + "\n"
        error.filename = file_name
        raise error.with_traceback(None) from None
    return Snippet(body, last, tuple(sorted(used)), text), imports


def run(snippet: Snippet, values: Mapping[str, Any]) -> Any:
    """Run a snippet in this process's `__main__`: the value of its last expression, None if it has none."""
    _remember_text(snippet)
    main = mainspace.namespace()
    # New names for each run: a function that an earlier run defined keeps its own values.
    mark = os.urandom(6).hex() if snippet.names else ""
    names = {f"${name}": f"${name} {mark}" for name in snippet.names}
    for name, value in values.items():
        main[f"${name} {mark}"] = value
    codes = [None if code is None else _renamed(code, names) for code in (snippet.body, snippet.last)]
    try:
        if codes[0] is not None:
            exec(codes[0], main)  # noqa: S102 - to run the user's code is what it is for
        return None if codes[1] is None else eval(codes[1], main)  # noqa: S307
    finally:
        kept = {name for code in codes if code is not None for name in _inner_names(code)}
        for name in names.values():
            if name not in kept:
                main.pop(name, None)


def used_names(snippet: Snippet) -> tuple[list[str], list[str]]:
    """The globals that running the snippet assigns by itself, not in functions that it calls; and the other names that
    it, or a function that it defines, mentions: attributes are among them."""
    import dis

    codes = [code for code in (snippet.body, snippet.last) if code is not None]
    instructions = (instruction for code in codes for instruction in dis.get_instructions(code))
    assigned = {i.argval for i in instructions if i.opname in ("STORE_NAME", "STORE_GLOBAL")}
    mentioned = {name for code in codes for name in (*code.co_names, *_inner_names(code))}
    return sorted(assigned), sorted(mentioned - assigned)


def run_imports(imports: list[tuple[types.CodeType, bool]]) -> None:
    """Run import statements for their effect: the modules are loaded, and no name is bound.

    Raises:
        ImportError, and whatever a module raises: of a statement that stands in no block.
    """
    main = mainspace.namespace()
    for code, in_block in imports:
        scratch: dict[str, Any] = {
            name: main[name] for name in ("__name__", "__package__", "__builtins__") if name in main
        }
        try:
            exec(code, scratch)  # noqa: S102
        except Exception:
            if not in_block:
                raise


# ---- parsing --------------------------------------------------------------------------------------------------------


def _check_names(used: set[str], values: Mapping[str, Any]) -> None:
    missing = sorted(used - values.keys())
    if missing:
        raise TypeError(f"the code uses ${missing[0]}, which has no value: pass {missing[0]}=...")
    needless = sorted(values.keys() - used)
    if needless:
        raise TypeError(
            f"a value for {needless[0]!r} was passed, but there is no ${needless[0]} in the code. "
            f"Write ${needless[0]} where the value belongs (outside of strings and comments)"
        )


def _stand_in(name: str, text: str) -> str:
    """A word of the same length as ``$name`` that the text does not contain."""
    words = set(re.findall(r"\w+", text))
    for letter in _LETTERS:
        if letter + name not in words:
            return letter + name
    raise ValueError(f"the code has a word for each letter before {name!r}: choose another name than ${name}")


def _insert_names(tree: Any, names: Mapping[str, str], file: str | None) -> None:
    """Put the true names in place of the stand-ins, and the file in place of ``__file__``."""
    import ast

    class Insert(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            if node.id in names and isinstance(node.ctx, ast.Load):
                node.id = names[node.id]
            elif node.id == "__file__" and isinstance(node.ctx, ast.Load) and file is not None:
                return ast.copy_location(ast.Constant(file), node)
            return node

    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "__file__" and not isinstance(node.ctx, ast.Load):
            file = None  # the code has one of its own
    Insert().visit(tree)
    for node in ast.walk(tree):
        for _, content in ast.iter_fields(node):
            parts = content if isinstance(content, list) else [content]
            if isinstance(node, ast.Constant) or not any(isinstance(p, str) and p in names for p in parts):
                continue
            name = next(names[part] for part in parts if isinstance(part, str) and part in names)
            place = ("", getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1, None)
            raise SyntaxError(f"{name} is a value: it can be read, but not be assigned to or be a name", place)


def _imports(statements: list[Any], in_block: bool = False) -> Iterator[tuple[Any, bool]]:
    """The import statements outside of functions and classes, and whether they stand in a block."""
    import ast

    for node in statements:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            yield node, in_block
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "handlers", "orelse", "finalbody", "cases"):
                inner = getattr(node, field, None)
                if isinstance(inner, list):
                    yield from _imports(inner, in_block=True)


# ---- running --------------------------------------------------------------------------------------------------------


def _renamed(code: types.CodeType, names: Mapping[str, str]) -> types.CodeType:
    if not names:
        return code
    return code.replace(
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_consts=tuple(_renamed(c, names) if isinstance(c, types.CodeType) else c for c in code.co_consts),
    )


def _inner_names(code: types.CodeType) -> Iterator[str]:
    """Names that functions and classes in the code refer to: they may do so when the code has been run."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from constant.co_names
            yield from _inner_names(constant)


def _remember_text(snippet: Snippet) -> None:
    """Have tracebacks show the lines of the code."""
    import linecache

    cache: dict[str, Any] = linecache.cache
    name = snippet.file_name
    if name in cache:
        return
    ours = [key for key in list(cache) if isinstance(key, str) and key.startswith(_FILE_NAME_START)]
    for old in ours[: max(0, len(ours) - _MOST_TEXTS + 1)]:
        cache.pop(old, None)
    text = snippet.text.rstrip("\n") + "\n"  # without an end of the last line, carets stand one column off
    cache[name] = (len(text), None, text.splitlines(keepends=True), name)
