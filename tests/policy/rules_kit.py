"""What the tests of the rules share: targets, a vocabulary, commands as a protocol would make them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from proxy.core.events import Command, Kind
from proxy.core.parties import Identity, Target
from proxy.policy.rules import RuleSet, load_rules

SHOP: Final = Target("shop-prod", "postgres", database="shop", labels={"env": "prod"})
LAB: Final = Target("lab", "postgres", database="lab", labels={"env": "test"})
BOX: Final = Target("box", "ssh")
TARGETS: Final = (SHOP, LAB, BOX)

VERBS: Final = {
    "postgres": ("CONNECT", "SELECT", "INSERT", "UPDATE", "DELETE", "DROP TABLE", "SET", "BEGIN", "COMMIT", "DO"),
    "ssh": ("CONNECT", "EXEC"),
}
DETECTORS: Final = ("email", "card")

ANA: Final = Identity("ana@acme.com", frozenset({"dba", "staff"}), issuer="https://id.acme.com")
BOT: Final = Identity("bob@acme.com", frozenset({"agents"}), ("planner", "claude-code"))

NOON: Final = 1_767_614_400.0  # Monday, 2026-01-05 12:00:00 UTC

READ_KINDS: Final[dict[str, Kind]] = {
    "SELECT": "read",
    "INSERT": "write",
    "UPDATE": "write",
    "DELETE": "delete",
    "DROP TABLE": "define",
    "SET": "session",
    "BEGIN": "session",
    "COMMIT": "session",
    "CONNECT": "session",
    "DO": "execute",
    "UNPARSABLE": "unknown",
}


def rules(
    text: str,
    targets: Collection[Target] | None = TARGETS,
    clock: Callable[[], float] = lambda: NOON,
) -> RuleSet:
    """Load rules written without their 'rules:' line."""
    body = text if "rules:" in text else "rules:\n" + text
    return load_rules(body, "rules.yaml", targets, verbs=VERBS, detectors=DETECTORS, clock=clock)


def sql(verb: str, *tables: str, text: str = "", **facts: Any) -> Command:  # facts are of any type
    """A Command as the protocol makes it of one statement."""
    kind = READ_KINDS[verb]
    known: dict[str, Any] = {
        "tables_read": tables if kind == "read" else (),
        "tables_written": () if kind == "read" else tables,
        "tables": tables,
        "opaque": verb in ("DO", "UNPARSABLE"),
    }
    return Command("postgres", verb, kind, text or f"{verb} {', '.join(tables)}", objects=tables, facts=known | facts)


CONNECT: Final = Command("postgres", "CONNECT", "session", "connect")


def several(*parts: Command) -> Command:
    """A text of several statements."""
    objects = tuple(dict.fromkeys(name for part in parts for name in part.objects))
    return Command("postgres", "MULTI", "write", "; ".join(part.text for part in parts), objects=objects, parts=parts)
