"""Gateway tokens: ``gct_<id>_<secret>``, made by the operator for one subject, always with an end.

The secret is 43 characters of base 62: 256 bits. Only the SHA-256 of the whole token is stored; it needs no salt
and no slow hash, as nobody can guess 256 bits. The fixed prefix lets secret scanners find a token that leaked,
and the id in the middle names it in logs. All functions block for one short transaction (the command line);
the gate uses check(), which does not.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable
from typing import Final

from proxy.core.errors import GatecastError
from proxy.core.parties import Identity, Secret
from proxy.identity.proof import ProofRefused, check_agents, check_groups, check_subject, fingerprint
from proxy.store import tokens as rows
from proxy.store.database import Database
from proxy.store.tokens import Lock, Token

PREFIX: Final = "gct_"
ISSUER: Final = "gatecast"
DAY_SECONDS: Final = 86_400.0
DEFAULT_SECONDS: Final = 30 * DAY_SECONDS
MAX_SECONDS: Final = 90 * DAY_SECONDS  # unless configured: identity.tokens.max_days
NOTE_LIMIT: Final = 1000
LIST_LIMIT: Final = 10_000

_ID_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 10
_SECRET_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_LENGTH: Final = 43  # 43 * log2(62) = 256.03 bits
_SHAPE: Final = re.compile(rf"gct_([a-z2-9]{{{_ID_LENGTH}}})_[A-Za-z0-9]{{{_SECRET_LENGTH}}}")


class TokenError(GatecastError):
    """What the operator asked of a token cannot be; the text says why."""


class Tokens:
    """The gateway tokens of one store."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float] = time.time, max_seconds: float = MAX_SECONDS
    ) -> None:
        self._database = database
        self._clock = clock
        self._max_seconds = max_seconds

    def issue(
        self,
        subject: str,
        groups: Iterable[str] = (),
        agents: Iterable[str] = (),
        seconds: float | None = None,
        note: str = "",
    ) -> tuple[Secret, Token]:
        """Make a token; it is shown now or never. seconds: its life, 30 days if None. Raises TokenError, StoreError."""
        life = min(DEFAULT_SECONDS, self._max_seconds) if seconds is None else seconds
        if not 0 < life <= self._max_seconds:
            raise TokenError(f"a token lives at most {self._max_seconds / DAY_SECONDS:g} days, and more than none")
        if len(note) > NOTE_LIMIT or not note.isprintable():
            raise TokenError(f"a note is one line of at most {NOTE_LIMIT} characters")
        try:
            names = check_subject(subject), tuple(sorted(check_groups(groups))), check_agents(agents)
        except ProofRefused as error:
            raise TokenError(f"a subject, group or agent cannot be named so ({error})") from error
        token_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        text = f"{PREFIX}{token_id}_{''.join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))}"
        now = self._clock()
        token = Token(token_id, fingerprint(text), *names, note, created=now, expires=now + life)
        self._database.call(rows.insert(token))
        return Secret(text), token

    def revoke(self, token_id: str) -> Token:
        """End a token now; a second time changes nothing. Takes the id or the whole token. Raises TokenError."""
        shape = _SHAPE.fullmatch(token_id)
        token = self._database.call(rows.revoke(shape[1] if shape else token_id, self._clock()))
        if token is None:
            raise TokenError("there is no such token; gatecast token list shows them")
        return token

    def listing(self, subject: str | None = None) -> list[Token]:
        """Return the newest tokens, of one subject or of all; at most LIST_LIMIT."""
        return self._database.call(rows.listing(subject, LIST_LIMIT))

    def lock(self, subject: str, reason: str = "") -> Lock:
        """Let a subject in no more, whatever its proof, and end its sessions' commands."""
        entry = Lock(subject, reason[:NOTE_LIMIT], self._clock())
        self._database.call(rows.lock(entry))
        return entry

    def unlock(self, subject: str) -> bool:
        """Let a subject in again; False if it was not locked."""
        return self._database.call(rows.unlock(subject))

    def locks(self) -> list[Lock]:
        """Return all locks."""
        return self._database.call(rows.locks)

    async def check(self, text: str) -> tuple[Identity, str]:
        """Return whose token it is, and the token's id. Raises ProofRefused, StoreError."""
        digest = fingerprint(text)
        shape = _SHAPE.fullmatch(text)
        if shape is None:
            raise ProofRefused("malformed-token")
        token = await self._database.run(rows.find(shape[1]), durable=False)
        # The comparison also runs for a token that nobody knows, so that both answers take as long.
        same = hmac.compare_digest(digest, token.hash if token is not None else "0" * 64)
        if token is None or not same:
            raise ProofRefused("unknown-token")
        state = token.state(self._clock())
        if state != "active":
            raise ProofRefused(f"{state}-token", token.id)
        identity = Identity(token.subject, frozenset(token.groups), token.agents, ISSUER, digest, token.expires)
        return identity, token.id


def looks_like_token(text: str) -> bool:
    """Tell a gateway token from any other proof by its prefix."""
    return text.startswith(PREFIX)
