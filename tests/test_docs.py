"""The documentation as a test: runnable blocks run, commands and files that are named exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import cli
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    return [(found[1], found[2].strip(), found[3]) for found in BLOCK.finditer(page.read_text())]


RUNNABLE = [
    pytest.param(page, text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, mark, text) in enumerate(blocks(page))
    if language in ("sh", "bash") and "runnable" in mark.split()
]


def test_there_are_pages_and_runnable_blocks() -> None:
    assert {"README.md", "CHANGELOG.md", "operations.md"} <= {page.name for page in PAGES}
    assert RUNNABLE


@pytest.mark.parametrize(("page", "text"), RUNNABLE)
def test_runnable_blocks_run(page: Path, text: str, tmp_path: Path) -> None:
    scripts = tmp_path / "bin"
    scripts.mkdir()
    command = scripts / "gatecast"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m proxy "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    known = {" ".join(path) for path in COMMANDS}
    groups = {path[0] for path in COMMANDS if len(path) == 2}
    wrong = []
    for found in re.finditer(r"gatecast ([a-z]+)(?: ([a-z]+(?:\|[a-z]+)*))?", "\n".join(code(page))):
        command, rest = found[1], found[2]
        if command not in known:
            wrong.append(found[0])
        elif command in groups and rest:
            wrong += [found[0] for word in rest.split("|") if f"{command} {word}" not in known]
    assert not wrong


def code(page: Path) -> list[str]:
    """The code of a page: its blocks, and what stands between single backticks."""
    text = page.read_text()
    return [*(block for _, _, block in blocks(page)), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = {
        word
        for text in code(page)
        for word in re.findall(r"(?<![\w/.-])(?:proxy|protocols|recorder|tests|deploy|docs|benchmarks)/[\w/.-]+", text)
    }
    missing = sorted(name for name in named if not (ROOT / name.rstrip("/.")).exists())
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_settings_that_operations_names_exist() -> None:
    from proxy.config import json_schema

    text = str(json_schema())
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in re.findall(r"`(limits|identity)\.(\w+)`", page):
        assert f"'{name[1]}'" in text, name


def test_help_names_the_environment() -> None:
    text = cli.parser().format_help()
    for name in re.findall(r"\bGATECAST_[A-Z]+\b", (ROOT / "docs" / "operations.md").read_text()):
        assert name in text
