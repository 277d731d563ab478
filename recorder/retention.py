"""How long tapes are kept, and what keeps them longer: terms, legal holds. Pure.

A term says what sessions it is for and for how many days they are kept, from their end. Of all terms that match, the
LONGEST wins; the default is for sessions that no term matches. What cannot be told of a session (the verdicts of an
encrypted tape, the labels of a target that is no longer configured) matches: a doubt keeps a tape, and never
ends it. A legal hold beats every term; it has a matter, a scope, and nobody but a person who releases it ends it.

Left out: where tapes are (vault.py), who may end them (vault_expiry.py).
Source: recorder note, section 10; the default is PCI DSS 10.5.1's 12 months and some, the local part its three months.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

DAY_SECONDS: Final = 86_400.0
DEFAULT_DAYS: Final = 400
DEFAULT_LOCAL_DAYS: Final = 90
VERDICTS: Final = ("allow", "deny", "held-allow", "held-deny")


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is known of a session; None: cannot be told. Times are seconds since the epoch, ended 0 while it lasts."""

    sid: str
    protocol: str
    target: str
    subject: str
    started: float
    ended: float = 0.0
    labels: Mapping[str, str] | None = None
    verdicts: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """Keep what matches for so many days. Patterns have * and ?; no patterns at all means any."""

    days: int
    name: str = ""
    protocol: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, facts: SessionFacts) -> bool:
        """Tell whether the term is for this session."""
        if not (_fits(self.protocol, facts.protocol) and _fits(self.target, facts.target)):
            return False
        if not _fits(self.subject, facts.subject):
            return False
        if self.verdict and facts.verdicts is not None and not facts.verdicts & _spelled(self.verdict):
            return False
        labels = facts.labels
        return labels is None or all(fnmatchcase(labels.get(key, ""), value) for key, value in self.labels.items())


@dataclass(frozen=True, slots=True)
class Retention:
    """All terms."""

    terms: tuple[Term, ...] = ()
    default_days: int = DEFAULT_DAYS
    local_days: float = DEFAULT_LOCAL_DAYS

    def term_of(self, facts: SessionFacts) -> tuple[int, str]:
        """Return for how many days the session is kept, and which term says so."""
        found = [term for term in self.terms if term.matches(facts)]
        if not found:
            return self.default_days, "default"
        longest = max(found, key=lambda term: term.days)
        return longest.days, longest.name or "unnamed"

    def expires_at(self, facts: SessionFacts) -> float:
        """Return when the session's term is over; only of one that has ended."""
        return facts.ended + self.term_of(facts)[0] * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold. Each part of the scope that is given must fit; without any it covers every session."""

    id: str
    matter: str
    by: str
    at: float
    session: str = ""
    target: str = ""
    subject: str = ""
    since: float | None = None
    until: float | None = None
    released_by: str = ""
    released_at: float | None = None

    def covers(self, facts: SessionFacts) -> bool:
        """Tell whether the hold is in force and keeps this session."""
        if self.released_at is not None or (self.session and self.session != facts.sid):
            return False
        if not (_fits((self.target,), facts.target) and _fits((self.subject,), facts.subject)):
            return False
        if self.until is not None and facts.started > self.until:
            return False
        return self.since is None or not facts.ended or facts.ended >= self.since


def held_by(holds: Iterable[Hold], facts: SessionFacts) -> Hold | None:
    """Return a hold that keeps the session, None if there is none."""
    return next((hold for hold in holds if hold.covers(facts)), None)


def _fits(patterns: Sequence[str], value: str) -> bool:
    given = [pattern for pattern in patterns if pattern]
    return not given or any(fnmatchcase(value, pattern) for pattern in given)


def _spelled(words: Sequence[str]) -> frozenset[str]:
    """held stands for both of its outcomes."""
    return frozenset(words) | ({"held-allow", "held-deny"} if "held" in words else frozenset())
