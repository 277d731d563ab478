"""YAML read for people who make mistakes: every value knows its line, every mistake of a file is told at once.

How: ruamel.yaml composes the text into nodes (YAML 1.2, so that ``on`` is a word and not a truth value); nothing
is ever constructed from tags. ``Fields`` walks one mapping with a closed list of keys; what is wrong goes to
``Problems``, which raises one ConfigError with a ``file:line: message`` for each.

Left out: merge keys (``<<``), values of any shape but text, whole numbers, truth values, lists and mappings.
Anchors and aliases work. Specification: YAML 1.2.2.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.core.errors import ConfigError

# 1 MiB: 1,000 rules of ten lines are a quarter of it, and take about a second to read.
FILE_LIMIT: Final = 1024 * 1024
# More mistakes at once than a person reads before correcting the first.
PROBLEMS_LIMIT: Final = 20
# Entries of one list; a longer one belongs into a group or a label.
ENTRIES_LIMIT: Final = 1_000
# Characters of one text; PostgreSQL's longest qualified name (three identifiers of 63 bytes) fits several times.
TEXT_LIMIT: Final = 1_024

_TAG: Final = "tag:yaml.org,2002:"


class Problems:
    """The mistakes of one file, in the order of its lines."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name
        self._found: dict[tuple[int, str], None] = {}

    def add(self, where: Node | int, message: str) -> None:
        """Note a mistake at a node or a line (from 1)."""
        self._found[(where if isinstance(where, int) else line_of(where), message)] = None

    def raise_if_any(self) -> None:
        """Raise ConfigError with one line a mistake, if there is any."""
        if not self._found:
            return
        lines = [f"{self.source_name}:{line}: {message}" for line, message in sorted(self._found)]
        if len(lines) > PROBLEMS_LIMIT:
            lines[PROBLEMS_LIMIT:] = [f"{self.source_name}: and {len(lines) - PROBLEMS_LIMIT} more"]
        raise ConfigError("\n".join(lines))


def line_of(node: Node) -> int:
    """Return the line of a node, from 1."""
    return int(node.start_mark.line) + 1


def compose(text: str, source_name: str) -> Node | None:
    """Return the root node of the one document in the text, None if it is empty. Raises ConfigError."""
    if len(text.encode("utf-8", "surrogatepass")) > FILE_LIMIT:
        raise ConfigError(f"{source_name}:1: the file is larger than {FILE_LIMIT} bytes")
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{source_name}:{line}: {error.problem or error.context or 'not YAML'}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source_name}:1: the text is not YAML that can be read") from error
    return root if isinstance(root, Node) else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `` (did you mean X?)`` or, where nothing is near, the known words if they are few."""
    near = difflib.get_close_matches(word, list(known), n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(sorted(known))})" if 0 < len(known) <= 16 else ""


def scalar(node: Node, problems: Problems, what: str) -> str:
    """Return the text of a node, '' with a problem noted where it is no text."""
    if not isinstance(node, ScalarNode) or node.tag != _TAG + "str":
        problems.add(node, f"{what} must be text (quote it)")
        return ""
    text = str(node.value)
    if not text.strip():
        problems.add(node, f"{what} is empty")
    elif len(text) > TEXT_LIMIT:
        problems.add(node, f"{what} is longer than {TEXT_LIMIT} characters")
    return text


def entries(node: Node, problems: Problems, what: str) -> list[Node]:
    """Return the entries of a list that is not empty."""
    if not isinstance(node, SequenceNode):
        problems.add(node, f"{what} must be a list: [...]")
        return []
    if not node.value:
        problems.add(node, f"{what} is an empty list, which nothing matches; leave it out")
    elif len(node.value) > ENTRIES_LIMIT:
        problems.add(node, f"{what} has more than {ENTRIES_LIMIT} entries")
        return []
    return list(node.value)


class Fields:
    """One mapping with a closed list of keys; each key may be read once."""

    def __init__(self, node: Node, problems: Problems, what: str, allowed: Collection[str] | None) -> None:
        self.problems = problems
        self.what = what
        self.node = node
        self.line = line_of(node)
        self.nodes: dict[str, Node] = {}
        self.misspelt = False
        if not isinstance(node, MappingNode):
            problems.add(node, f"{what} must be a mapping: key: value")
            return
        for key_node, value in node.value:
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else ""
            if allowed is not None and key not in allowed:
                self.misspelt = True
                problems.add(key_node, f"unknown key {key!r} in {what}{did_you_mean(key, allowed)}")
            elif key in self.nodes:
                problems.add(key_node, f"the key {key!r} of {what} is there twice")
            else:
                self.nodes[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.nodes

    def line_of(self, key: str) -> int:
        """The line of a key's value; the mapping's own line if the key is not there."""
        node = self.nodes.get(key)
        return self.line if node is None else line_of(node)

    def text(self, key: str, default: str = "") -> str:
        """The text at a key."""
        node = self.nodes.get(key)
        return default if node is None else scalar(node, self.problems, f"{self.what}.{key}")

    def texts(self, key: str) -> tuple[str, ...] | None:
        """The list of texts at a key, None where the key is not there; an entry that is there twice is a problem."""
        node = self.nodes.get(key)
        if node is None:
            return None
        found: dict[str, None] = {}
        for entry in entries(node, self.problems, f"{self.what}.{key}"):
            text = scalar(entry, self.problems, f"an entry of {self.what}.{key}")
            if text in found:
                self.problems.add(entry, f"{text!r} is twice in {self.what}.{key}")
            found[text] = None
        return tuple(found)

    def words(self, key: str, known: Collection[str], kind: str) -> tuple[str, ...] | None:
        """The list of texts at a key, each of which must be known."""
        found = self.texts(key)
        for entry in getattr(self.nodes.get(key), "value", ()) if found else ():
            if isinstance(entry, ScalarNode) and entry.value and entry.value not in known:
                self.problems.add(entry, f"unknown {kind} {entry.value!r}{did_you_mean(entry.value, known)}")
        return found

    def flag(self, key: str) -> bool | None:
        """The truth value at a key, None where the key is not there."""
        node = self.nodes.get(key)
        if node is None:
            return None
        if not isinstance(node, ScalarNode) or node.tag != _TAG + "bool":
            self.problems.add(node, f"{self.what}.{key} must be true or false")
            return None
        return str(node.value).lower() == "true"

    def number(self, key: str, lowest: int, highest: int) -> int | None:
        """The whole number at a key, None where the key is not there."""
        node = self.nodes.get(key)
        if node is None:
            return None
        if isinstance(node, ScalarNode) and node.tag == _TAG + "int" and str(node.value).isdecimal():
            value = int(node.value[:20])
            if lowest <= value <= highest:
                return value
        self.problems.add(node, f"{self.what}.{key} must be a whole number from {lowest} to {highest}")
        return None
