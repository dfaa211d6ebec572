"""The tree is the architecture. Who may import whom is checked by `make lint`; the other rules are checked here."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
LONGEST_FILE = 600

SQL_WORDS = {"select", "insert", "update", "delete", "text", "union", "union_all", "literal_column", "exists"}
SQL_PLACES = (
    "service/store/",
    "service/db.py",  # NOTIFY
    "service/models.py",  # conditions of indexes and constraints
    "service/postgres.py",  # sets up its own database
    "service/migrate.py",
    "service/api/health.py",  # SELECT 1
    "migrations/",
    "tests/",
)

FORBIDDEN_WORDS = {
    "manager",
    "handler",
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "info",
    "resource",
    "resources",
}
"""They name nothing; see the words of the vocabulary."""

GIVEN_NAMES = {"get_route_handler"}
"""Names that a framework chose and that we override."""

LATE_IMPORTS = {
    "scheduler/throughput.py",
    "service/__main__.py",
    "service/cycle/solver.py",
    "service/tariff_source.py",
    "tests/chaos/rank.py",
}
"""Files that import inside a function, each time with the reason in a comment: to start faster."""


def files(*packages: str) -> list[Path]:
    found = [path for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert found
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_packages_are_those_that_are_known() -> None:
    assert {"ergon", "migrations", "protocol", "scheduler", "service", "tests", "training", "workers"} <= set(PACKAGES)


def sql_of(module: ast.Module) -> Iterator[str]:
    """What a module uses of SQL: the words of SQLAlchemy that make a statement, and statements as text."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy"):
            yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in SQL_WORDS)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"sa", "sqlalchemy"}
        ):
            yield from [f"line {node.lineno}: {node.attr}"] if node.attr in SQL_WORDS else []
        if isinstance(node, ast.Attribute) and node.attr == "exec_driver_sql":
            yield f"line {node.lineno}: exec_driver_sql"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value):
            yield f"line {node.lineno}: {node.value[:40]!r}"


STATEMENT = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|TRUNCATE|LISTEN|NOTIFY) [a-z0-9*(\"]"
)


def test_sql_is_in_the_store_only() -> None:
    elsewhere = [path for path in files() if not name_of(path).startswith(SQL_PLACES)]
    assert [f"{name_of(path)} {found}" for path in elsewhere for found in sql_of(tree(path))] == []


def test_the_store_never_commits_and_never_asks_for_the_time() -> None:
    calls = [
        f"{name_of(path)}:{node.lineno} {node.attr}"
        for path in files("service/store")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "rollback", "begin", "now", "utcnow"}
    ]
    assert calls == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_holds_two_ideas(package: str) -> None:
    long = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(package)}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    with_something = [path for path in files(package) if tree(path).body]
    assert [name_of(path) for path in with_something if not ast.get_docstring(tree(path))] == []


def late_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Imports inside functions, and whether the line says why."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for function in ast.walk(tree(path)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield f"{name_of(path)}:{node.lineno}", "# noqa: PLC0415" in lines[node.lineno - 1]


def test_imports_stand_at_the_top() -> None:
    found = [(where, marked) for path in files() for where, marked in late_imports(path)]
    assert [where for where, marked in found if not marked or where.split(":")[0] not in LATE_IMPORTS] == []


def words(name: str) -> set[str]:
    """`NodeManager`, `node_manager` and `nodeManager` are two words."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def names_given(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that the module itself chooses."""
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name


def test_names_say_something() -> None:
    in_files = [name_of(path) for path in files() if words(path.stem) & FORBIDDEN_WORDS]
    in_code = [
        f"{name_of(path)}:{line} {name}"
        for path in files()
        for line, name in names_given(tree(path))
        if words(name) & FORBIDDEN_WORDS and name not in GIVEN_NAMES
    ]
    assert in_files + in_code == []


def sleeps(nodes: Iterable[ast.AST]) -> Iterator[int]:
    """Lines that wait for real time to pass. `asyncio.sleep(0)` only lets others run."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep":
            nothing = [ast.unparse(argument) for argument in node.args] == ["0"]
            if not (nothing and isinstance(node.func.value, ast.Name) and node.func.value.id == "asyncio"):
                yield node.lineno
        if isinstance(node, ast.ImportFrom) and any(alias.name == "sleep" for alias in node.names):
            yield node.lineno


def test_no_test_waits_for_time_to_pass() -> None:
    assert [f"{name_of(path)}:{line}" for path in files("tests") for line in sleeps(ast.walk(tree(path)))] == []
