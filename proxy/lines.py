"""YAML read with the line of every key, so that each error of a configuration file says where it is.

The text is composed into nodes by ruamel.yaml (pure, safe: no tags make objects) and turned into plain dicts, lists
and scalars here, with the line of each path beside them. YAML 1.2: ``yes`` and ``on`` are strings, not booleans.

Deliberately refused: duplicate keys (the last would win in silence), keys that are not strings, tags, merge keys,
several documents. Aliases are allowed; NODE_LIMIT bounds what they expand to. Specification: YAML 1.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.core.errors import ConfigError

TEXT_LIMIT: Final = 4 * 1024 * 1024  # 10,000 targets of 400 bytes; ruamel.yaml composes about 1 MB/s
NODE_LIMIT: Final = 500_000  # what TEXT_LIMIT can hold; an alias bomb ("billion laughs") ends here
DEPTH_LIMIT: Final = 64  # the deepest path of the configuration model has 6 parts

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain data. lines: 1-based line of each path (a key's line for a mapping's value)."""

    name: str
    text: str
    data: Any  # whatever the file holds: the model checks it
    lines: Mapping[Place, int]

    def line(self, path: Place) -> int:
        """Return the line of the path, or of its nearest parent that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: Place, message: str) -> str:
        """Return ``file:line: path: message``."""
        where = dotted(path)
        return f"{self.name}:{self.line(path)}: {where + ': ' if where else ''}{message}"

    def only(self, *keys: str) -> str:
        """Return the text with every line blanked that is not of these top-level keys: lines keep their numbers."""
        starts = {line: str(path[0]) for path, line in self.lines.items() if len(path) == 1}
        rows: list[str] = []
        section = ""
        for number, row in enumerate(self.text.splitlines(), 1):
            section = starts.get(number, section)
            rows.append(row if section in keys else "")
        return "\n".join(rows) + "\n"


def dotted(path: Place) -> str:
    """Write a path as people do: ``targets[0].host``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(path: Path) -> Document:
    """Read and parse a file. Raises ConfigError, with the line where there is one."""
    try:
        with path.open("rb") as file:
            raw = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > TEXT_LIMIT:
        raise ConfigError(f"{path}: is larger than {TEXT_LIMIT} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8") from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text into data and lines. Raises ConfigError."""
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{name}:{line}: {error.problem or error.context or 'is not YAML'}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{name}:1: is not YAML: {type(error).__name__}") from error
    builder = _Builder(name)
    data = {} if node is None else builder.build(node, (), node.start_mark.line + 1)
    return Document(name, text, data, builder.lines)


class _Builder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Place, int] = {}
        self._nodes = 0

    def build(self, node: Node, path: Place, line: int) -> Any:
        self._nodes += 1
        if self._nodes > NODE_LIMIT or len(path) > DEPTH_LIMIT:
            raise ConfigError(f"{self.name}:{line}: the file is too large or too deep")
        self.lines[path] = line
        match node:
            case MappingNode():
                return self._mapping(node, path)
            case SequenceNode():
                return [
                    self.build(child, (*path, index), child.start_mark.line + 1)
                    for index, child in enumerate(node.value)
                ]
            case ScalarNode():
                return self._scalar(node, line)
            case _:
                raise ConfigError(f"{self.name}:{line}: is of no known kind")

    def _mapping(self, node: MappingNode, path: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise ConfigError(f"{self.name}:{line}: a key is not a word")
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{self.name}:{line}: merge keys (<<) are not read; write the keys out")
            if key in result:
                raise ConfigError(f"{self.name}:{line}: {dotted((*path, key))}: the key appears twice")
            result[key] = self.build(value_node, (*path, key), line)
        return result

    def _scalar(self, node: ScalarNode, line: int) -> str | int | float | bool | None:
        text: str = node.value
        match str(node.tag).removeprefix("tag:yaml.org,2002:"):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                try:
                    return int(text.replace("_", ""), 0) if text[:2].lower() in ("0x", "0o") else int(text)
                except ValueError:
                    return text
            case "float":
                try:
                    return float(text)
                except ValueError:
                    return text
            case "str" | "timestamp":
                return text
            case other:
                raise ConfigError(f"{self.name}:{line}: the tag {other} is not read here")
