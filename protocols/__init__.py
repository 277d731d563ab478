"""The protocols: one folder each, found by load(). A folder here with PROTOCOL in its __init__ is a protocol."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache

from proxy.core.gate import Gate
from proxy.core.parties import Target
from proxy.core.stream import Stream


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol: its name, its closed set of verbs, and what answers a user's connection.

    alpn: the names that a listener's TLS offers (RFC 7301). check: looks at a configured target's settings when
    they are loaded, and raises ConfigError. background: what each process does beside its connections, with the gate
    of the protocol's first listener: run when users can be served, cancelled at the end. It may return where nothing is
    left to do, and is run again when another process of the gateway has died.
    """

    name: str
    verbs: frozenset[str]
    default_port: int
    serve: Callable[[Stream, Gate], Awaitable[None]]
    alpn: tuple[str, ...] = ()
    check: Callable[[Target], object] | None = None
    background: Callable[[Gate], Awaitable[None]] | None = None


@cache
def load() -> Mapping[str, Protocol]:
    """Import every folder here and return its PROTOCOL by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            protocol = getattr(importlib.import_module(f"{__name__}.{module.name}"), "PROTOCOL", None)
            if isinstance(protocol, Protocol):
                found[protocol.name] = protocol
    return found
