"""The architecture as a test: who imports whom, what is pure, how large things are, what they are called."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("proxy", "protocols", "recorder") for path in (ROOT / package).rglob("*.py"))
OURS = frozenset({"proxy", "protocols", "recorder", "tests", "benchmarks"})
FILE_LIMIT = 500
FUNCTION_LIMIT = 60

# Modules of proxy that form the outer ring: the composition root, the command line and what only they use.
OUTER = frozenset({
    "proxy.app", "proxy.cli", "proxy.__main__", "proxy.config", "proxy.sections", "proxy.lines", "proxy.logging",
    "proxy.certificates", "proxy.sockets", "proxy.connections", "proxy.services", "proxy.watch", "proxy.example",
    "proxy.demo", "proxy.commands", "proxy.snapshot", "proxy.admission", "proxy.notify", "proxy.checking",
    "proxy.trying", "proxy.notary", "proxy.values", "proxy.rotation", "proxy.ssh_sections", "proxy.ssh_files",
    "proxy.ssh_doors", "proxy.ssh_commands", "proxy.ssh_arguments", "proxy.trying_ssh", "proxy.trying_kube",
    "proxy.kube_sections", "proxy.kube_files", "proxy.kube_commands", "proxy.kube_check",
    "proxy.kube_rights", "proxy.bigquery_sections", "proxy.bigquery_files", "proxy.bigquery_commands",
    "proxy.bigquery_arguments", "proxy.bigquery_check", "proxy.conninfo", "proxy.beside", "proxy.kube_arguments",
    # The vault's ends towards configuration and administrators.
    "proxy.vault.settings", "proxy.vault.service", "proxy.vault.commands",
    "proxy.identity.commands",  # what the command line does with tokens: nothing inside imports it
})  # fmt: skip
IMPURE = frozenset({"asyncio", "time", "logging", "socket", "os", "ssl", "select", "threading", "random", "structlog"})
BANNED_WORDS = ("Manager", "Helper", "Util", "Utils", "Base")
# Tables that were generated from PostgreSQL's catalogue are data; their length says nothing.
DATA_SUFFIX = "_data.py"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if is_module(full) else node.module


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def ring(module: str) -> str:
    """Which part of the house a module of ours belongs to; parts import along ALLOWED only."""
    parts = module.split(".")
    if parts[0] == "protocols" and len(parts) > 1:
        return f"protocols.{parts[1]}"
    if parts[0] != "proxy":
        return parts[0]
    if module in OUTER or parts[:2] in (["proxy", "demo"], ["proxy", "workers"], ["proxy", "reexecution"]):
        return "outer"
    return ".".join(parts[:2])


def allowed(importer: str, imported: str) -> bool:
    """The rule of design.md, section 2, "Who imports whom"."""
    if importer == imported or imported == "proxy":  # proxy/__init__.py holds the version alone
        return True
    match importer:
        case "recorder" | "proxy":
            return False
        case "proxy.core":
            return imported == "recorder"
        case "outer":
            return True
        case "protocols":  # the Protocol record: it names the gate and the streams
            return imported == "proxy.core"
        case _ if importer.startswith("protocols."):
            # SQL-speaking protocols read what others found in the text; never each other.
            return imported in {"protocols", "proxy.core", "proxy.http", "proxy.terminal", "recorder"}
        case "proxy.admin":  # one set of functions over the services
            return imported != "outer" and not imported.startswith("protocols.")
        case "proxy.identity" | "proxy.approvals":
            return imported in {"proxy.core", "proxy.store", "recorder"}
        case _:
            return imported in {"proxy.core", "recorder"}


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_inward(path: Path) -> None:
    importer = ring(module_of(path))
    wrong = [
        name
        for name in imports(path)
        if name.split(".")[0] in OURS and not allowed(importer, ring(name)) and ring(name) != importer
    ]
    assert not wrong, f"{module_of(path)} ({importer}) imports {', '.join(sorted(set(wrong)))}"


# What of others the core may import, and where: the rest of it stands on the standard library and the recorder alone.
CORE_MAY = {
    "msgpack": {"proxy.core.session"},
    "httptools": {"proxy.core.http.parser"},
    "websockets": {"proxy.core.http.websocket"},  # websockets.speedups alone: see that file
}


def foreign(module: str, names: Iterable[str]) -> list[str]:
    """What a module of the core imports of others without leave."""
    return [
        name
        for name in names
        if (top := name.split(".")[0]) not in OURS
        and top not in sys.stdlib_module_names
        and module not in CORE_MAY.get(top, set())
    ]


@pytest.mark.parametrize("path", [path for path in FILES if ring(module_of(path)) == "proxy.core"], ids=module_of)
def test_the_core_stands_on_little(path: Path) -> None:
    assert not foreign(module_of(path), imports(path))


def test_the_rule_of_the_core_refuses() -> None:
    assert foreign("proxy.core.stream", ["asyncio", "httptools", "uvloop"]) == ["httptools", "uvloop"]
    assert not foreign("proxy.core.http.parser", ["re", "httptools", "recorder.tape"])
    assert [path for path in FILES if "httptools" in set(imports(path))], "the rule is about nothing"


def test_the_rule_of_imports_refuses() -> None:
    assert not allowed("proxy.core", "proxy.policy")
    assert not allowed("recorder", "proxy.core")
    assert not allowed("protocols.postgres", "protocols.ssh")
    assert not allowed("proxy.masking", "proxy.policy")
    assert ring("proxy.app") == "outer"
    assert allowed("outer", "protocols.postgres")


# Codecs beside the two files that every protocol has.
CODECS = frozenset({"proxy.core.http.heads", "proxy.core.http.parser", "proxy.core.http.framing",
                    "proxy.core.http.websocket"})  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if (path.name in ("wire.py", "commands.py") and "protocols" in path.parts) or module_of(path) in CODECS
    ],
    ids=module_of,
)
def test_codecs_are_pure(path: Path) -> None:
    impure = {name.split(".")[0] for name in imports(path)} & IMPURE
    assert not impure, f"{module_of(path)} imports {sorted(impure)}"
    waiting = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert not waiting, f"{module_of(path)} is asynchronous in lines {waiting}"
    opened = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    ]
    assert not opened, f"{module_of(path)} does input or output in lines {opened}"


def test_files_are_short() -> None:
    long = {
        module_of(path): lines
        for path in FILES
        if not path.name.endswith(DATA_SUFFIX) and (lines := len(path.read_text().splitlines())) > FILE_LIMIT
    }
    assert not long, f"over {FILE_LIMIT} lines: {long}"


def test_functions_are_short() -> None:
    long = [
        f"{module_of(path)}.{node.name} ({node.end_lineno - node.lineno + 1})"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LIMIT
    ]
    assert not long, f"over {FUNCTION_LIMIT} lines: {', '.join(long)}"


def test_names_say_something() -> None:
    wrong = [
        f"{module_of(path)}.{node.name}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and any(re.search(rf"{word}($|[A-Z_])", node.name) for word in BANNED_WORDS)
    ]
    assert not wrong, wrong
    assert not [path for path in FILES if re.search(r"(^|_)(utils?|helpers?|misc|common|base)\.py$", path.name)]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(tree_of(path))
    assert text, f"{path.relative_to(ROOT)} has no docstring"
    assert "STUB" not in text, f"{path.relative_to(ROOT)} is a stub"


def test_tasks_belong_to_groups() -> None:
    wrong = [
        f"{module_of(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("create_task", "ensure_future")
        and isinstance(node.value, ast.Name | ast.Call)
        and (node.value.id if isinstance(node.value, ast.Name) else "call") in ("asyncio", "loop", "call")
    ]
    assert not wrong, wrong


def test_every_dependency_says_why() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in project["dependencies"]:
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        assert re.search(r"#\s*\S.{9,}$", line), f"{requirement} has no reason beside it"


def test_the_licence_of_pglast_stays_out() -> None:
    """pglast is GPL; pgparse reads SQL here (design.md, section 4)."""
    assert not [module_of(path) for path in FILES if any(name.split(".")[0] == "pglast" for name in imports(path))]


def test_no_test_file_shares_a_name() -> None:
    """With import-mode importlib two files of one name in one package would shadow each other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_every_test_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]
