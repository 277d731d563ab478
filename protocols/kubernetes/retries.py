"""The second try of a port-forward that was refused: kubectl takes any refusal for a server without WebSocket.

What was refused stays refused for a moment, without another question to the rules, and without another tape.
Source: kubernetes note 1 and 6.
"""

from __future__ import annotations

import time
from typing import Final

from protocols.kubernetes.request_info import RequestInfo
from proxy.core.gate import Gate
from proxy.core.parties import Identity, Target

RETRY_SECONDS: Final = 2.0  # note 6
REFUSED_LIMIT: Final = 256  # remembered at a time; ours
_REFUSED: Final = "kubernetes/refused-forwards"


def retry_key(identity: Identity, target: Target, info: RequestInfo) -> tuple[str, str, str]:
    """What makes a request the same one as a moment ago."""
    return (identity.proof, target.name, info.raw)


def recent_refusal(gate: Gate, key: tuple[str, str, str]) -> tuple[int, bytes] | None:
    """The refusal that the same request got a moment ago, and that is on its tape. It is given out once."""
    known: dict[tuple[str, str, str], tuple[float, tuple[int, bytes]]] = gate.shared.setdefault(_REFUSED, {})
    found = known.pop(key, None)
    return found[1] if found is not None and time.monotonic() - found[0] <= RETRY_SECONDS else None


def remember(gate: Gate, key: tuple[str, str, str], answer: tuple[int, bytes]) -> None:
    """Keep a refusal for the second try."""
    known: dict[tuple[str, str, str], tuple[float, tuple[int, bytes]]] = gate.shared.setdefault(_REFUSED, {})
    if len(known) >= REFUSED_LIMIT:
        known.clear()
    known[key] = (time.monotonic(), answer)
