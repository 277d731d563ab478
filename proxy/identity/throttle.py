"""Slows down a source of failed logins: a bucket of FAILURES_LIMIT that refills over WINDOW_SECONDS.

Tokens of 256 bits cannot be guessed; this keeps a broken or hostile client from making us check signatures and
SCRAM proofs all day, and local users' passwords from being tried by the thousand. A source is an address without
its port; IPv6 counts by /64, which is what one customer gets. The table is bounded: the source that failed
longest ago is forgotten first.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

FAILURES_LIMIT: Final = 20  # people mistype a few times; a script behind the same NAT adds some
WINDOW_SECONDS: Final = 60.0
SOURCES_LIMIT: Final = 10_000


class Throttle:
    """Failed logins by source."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source -> failures, as of when

    def failure(self, peer: str) -> None:
        """Count a failed login. peer: host or host:port."""
        source = source_of(peer)
        now = self._clock()
        self._sources[source] = (min(self._level(source, now) + 1, 2 * FAILURES_LIMIT), now)
        self._sources.move_to_end(source)
        if len(self._sources) > SOURCES_LIMIT:
            self._sources.popitem(last=False)

    def wait_seconds(self, peer: str) -> float:
        """Return how long the source has to wait before it may try again; 0 if it may now."""
        over = self._level(source_of(peer), self._clock()) - (FAILURES_LIMIT - 1)
        return math.ceil(over * WINDOW_SECONDS / FAILURES_LIMIT) if over > 0 else 0.0

    def _level(self, source: str, now: float) -> float:
        failures, since = self._sources.get(source, (0.0, now))
        return max(0.0, failures - max(0.0, now - since) * FAILURES_LIMIT / WINDOW_SECONDS)


def source_of(peer: str) -> str:
    """Return the part of a peer's address that failures are counted by."""
    address = address_of(peer)
    if address is None:
        return _host(peer)[:256]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def address_of(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address of a peer (host, host:port, [host]:port), unmapped to IPv4; None if there is none."""
    try:
        address = ipaddress.ip_address(_host(peer).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _host(peer: str) -> str:
    if peer.startswith("["):
        return peer[1:].partition("]")[0]
    return peer.partition(":")[0] if peer.count(":") == 1 else peer
