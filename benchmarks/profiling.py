"""Folded stacks of benchmarks/sampler.py -> a table: which part of the house the time goes to, and which functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

FUNCTIONS_LIMIT: Final = 25
# The innermost frame that matches names the part. C code counts for the Python frame that called it.
PARTS: Final = (
    ("recorder/", "tape: pack, hash, compress, write"),
    ("proxy/policy/", "policy: rules, SQL facts"),
    ("proxy/masking/", "masks"),
    ("proxy/core/stream.py:_Transport.write", "sockets: write"),
    ("proxy/core/stream.py:SocketStream.write", "sockets: write"),
    ("proxy/core/stream.py", "sockets: read"),
    ("proxy/core/session.py", "the waist: decide, reveal, writers"),
    ("proxy/identity/", "identity"),
    ("proxy/store/", "store"),
    ("protocols/postgres/relay.py", "protocol: relay loop"),
    ("protocols/postgres/", "protocol: decode, conversation"),
    ("protocols/kubernetes/relay.py", "protocol: relay loop"),
    ("protocols/kubernetes/", "protocol: decode, conversation"),
    ("proxy/core/http/", "HTTP: heads, bodies, frames"),
    ("proxy/connections.py", "connections"),
    ("proxy/app.py", "event loop: select, callbacks, receive"),
    ("proxy/", "the rest of the house"),
)
# The frame that everything after the start is inside of: imports and configuration are not what is asked about.
_SERVING: Final = ";runners.py:Runner.run:"


def table(folded: str) -> str:
    """Return two Markdown tables: self time by part, and self time by function."""
    parts: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in folded.splitlines():
        if _SERVING not in line:
            continue
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        parts[_part(frames)] += int(count)
        functions[_function(frames)] += int(count)
    total = sum(parts.values()) or 1
    return (
        _show("part", parts, total, len(parts)) + "\n" + _show("function (with the C code it calls)", functions, total)
    )


def _part(frames: Sequence[str]) -> str:
    for frame in reversed(frames):
        for prefix, name in PARTS:
            if frame.startswith(prefix):
                return name
    return "outside of the house"


def _function(frames: Sequence[str]) -> str:
    """The innermost frame of ours; a library's functions count for their caller here."""
    for frame in reversed(frames):
        if frame.startswith(("proxy/", "protocols/", "recorder/")):
            return frame.rpartition(":")[0]
    return frames[-1].rpartition(":")[0]


def _show(what: str, counted: Counter[str], total: int, limit: int = FUNCTIONS_LIMIT) -> str:
    lines = [f"| {what} | share |", "|---|---|"]
    lines += [f"| {name} | {count / total:.1%} |" for name, count in counted.most_common(limit)]
    return "\n".join(lines) + "\n"
