"""What all proofs have in common: their fingerprint, why one is refused, and which names an identity may carry.

A name comes from a JWT or from the operator and goes into logs, tapes, errors and rules, so it is short and
printable. ``group:`` and ``local:`` are the gate's own prefixes (approvers; the operator on the admin socket);
a subject that starts with one could pass for what it is not, and is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

# PostgreSQL's longest password message, PG_MAX_AUTH_TOKEN_LENGTH (libpq/auth.h).
PROOF_LIMIT: Final = 65_535
# RFC 5321 4.5.3.1: an address has at most 254 characters; issuers' own ids are far shorter.
NAME_LIMIT: Final = 256
# Microsoft's tokens name at most 200 groups, Okta's 100; beyond a thousand somebody sends us a directory.
GROUPS_LIMIT: Final = 1000
# Person, orchestrator, agent, tool: real chains have two or three links.
AGENTS_LIMIT: Final = 8
RESERVED_PREFIXES: Final = ("group:", "local:")


class ProofRefused(Exception):
    """A proof does not hold. why is one of a few words for the log; the user is never told."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why = why
        self.detail = detail


def fingerprint(proof: str) -> str:
    """Return the SHA-256 (hex) of a proof. Raises ProofRefused if it is no text that UTF-8 can carry."""
    try:
        return hashlib.sha256(proof.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise ProofRefused("not-utf8") from error


def check_name(name: object, what: str) -> str:
    """Return the name of a group or an agent if it can be one. Raises ProofRefused."""
    if not isinstance(name, str) or not name:
        raise ProofRefused(f"bad-{what}", "not a name")
    if len(name) > NAME_LIMIT or not name.isprintable() or name != name.strip():
        raise ProofRefused(f"bad-{what}", "too long, or not printable")
    return name


def check_subject(name: object) -> str:
    """Return the name of a subject if it can be one. Raises ProofRefused."""
    subject = check_name(name, "subject")
    if subject.lower().startswith(RESERVED_PREFIXES):
        raise ProofRefused("bad-subject", "a reserved prefix")
    return subject


def check_groups(names: Iterable[object]) -> frozenset[str]:
    """Return the groups. Raises ProofRefused."""
    groups = frozenset(check_name(name, "group") for name in names)
    if len(groups) > GROUPS_LIMIT:
        raise ProofRefused("bad-group", "too many")
    return groups


def check_agents(names: Iterable[object]) -> tuple[str, ...]:
    """Return the chain of agents, nearest last. Raises ProofRefused."""
    agents = tuple(check_name(name, "agent") for name in names)
    if len(agents) > AGENTS_LIMIT:
        raise ProofRefused("bad-agent", "too many")
    return agents
