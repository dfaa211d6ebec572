"""Texts that every Python carries: its standard library, and the docstrings there, each labelled by its package."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo"}
"""Folders that are not of the library proper, or not in every Python."""


def sources() -> Iterator[Path]:
    """The library's Python files, in the order of their paths."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(library).parts):
            yield path


def docstrings() -> Iterator[tuple[str, str]]:
    """Text and package of every docstring of modules, classes and functions, each text once, in the order of paths."""
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sources():
        package, *inner = path.relative_to(library).parts
        if not inner:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text not in seen:
                    seen.add(text)
                    yield text, package
