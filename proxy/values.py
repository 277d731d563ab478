"""The kinds of values that a configuration is made of: names, durations, sizes, addresses, lists of words.

Each is a type for pydantic with its JSON schema, or a function that reads the text. proxy/sections.py uses them.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"  # 63: PostgreSQL's NAMEDATALEN - 1, dbname= holds it
SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def parse_seconds(text: str) -> float:
    """Read a duration (30s, 10m, 12h, 7d, 500ms). Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text.strip(), re.ASCII)
    if found is None:
        raise ValueError("write a duration like 30s, 10m, 12h or 7d")
    return float(found[1]) * SECONDS[found[2]]


def _seconds(value: object) -> object:
    return parse_seconds(value) if isinstance(value, str) else value


def _bytes(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB|kB|MB|GB)", value.strip())
        if found is None:
            raise ValueError("write a size like 512KiB, 64MiB or 1GiB")
        return int(found[1]) * BYTES[found[2]]
    return value


def _address(value: str) -> str:
    parse_address(value)
    return value


def parse_address(value: str) -> Path | tuple[str, int]:
    """Split ``host:port``, ``[::1]:port``, ``*:port`` or ``unix:/path``; the host '' means every address.

    Raises ValueError.
    """
    if value.startswith("unix:"):
        return Path(value.removeprefix("unix:"))
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write an address as host:port, [::1]:port, *:port or unix:/path")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:5432")
    return "" if host == "*" else host, int(port)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def is_loopback(address: str) -> bool:
    """Tell whether an address is reachable from this machine only."""
    place = parse_address(address)
    if isinstance(place, Path):
        return True
    if place[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(place[0]).is_loopback
    except ValueError:
        return False


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Port = Annotated[int, Field(ge=1, le=65535)]
_DURATION = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$"}]
}
_SIZE = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+\s*(B|[KMG]iB|[kMG]B)$"}]}
Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0), WithJsonSchema(_DURATION)]
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0), WithJsonSchema(_SIZE)]
Address = Annotated[str, AfterValidator(_address)]
_WORDS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Words = Annotated[tuple[str, ...], BeforeValidator(_listed), WithJsonSchema(_WORDS)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_listed), WithJsonSchema(_WORDS)]


class Section(BaseModel):
    """What all sections share: an unknown key is an error, and nothing changes after the load."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)
