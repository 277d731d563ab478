"""Who uses the gateway of the BigQuery tests, by which rules, and the thread that it runs in.

People is the fake of the gate's Identities. A Loop is shared by all gateways of a run: the workers that read SQL
belong to one event loop, and take half a second to start.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import uvloop

from proxy.core.errors import LoginRefused
from proxy.core.events import Command
from proxy.core.gate import Policy
from proxy.core.parties import Identity, KeyLogin, Target
from proxy.core.verdict import Allow, Verdict, combine
from proxy.policy.bigquery_workers import Analysts

T = TypeVar("T")
WAIT_SECONDS: Final = 60.0  # of a test for the gateway's thread

Rule = Callable[[Identity, Command], Verdict]


# -- who takes part -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """A user: the token that proves who it is, and the identity that it proves."""

    token: str
    identity: Identity


def person(name: str, *groups: str) -> Person:
    """A user of the tests."""
    proof = name.encode().hex().ljust(64, "0")
    return Person(f"canary-token-of-{name}-5e1d", Identity(f"{name}@acme.com", frozenset(groups), proof=proof))


ANA: Final = person("ana", "dev")
BOB: Final = person("bob", "dev")
MIA: Final = person("mia", "leads")  # she approves


class People:
    """The gate's Identities: tokens of ANA, BOB and MIA, until they are revoked. clock: for identities that end."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.revoked: set[str] = set()  # subjects
        self.clock = clock
        self._known = {each.token: each.identity for each in (ANA, BOB, MIA)}

    async def password(self, user: str, secret: str) -> Identity:
        identity = self._known.get(secret)
        if identity is None or not self.valid(identity):
            raise LoginRefused("the token was not accepted")
        return identity

    def valid(self, identity: Identity) -> bool:
        over = identity.expires_at is not None and self.clock() >= identity.expires_at
        return identity.subject not in self.revoked and not over

    def scram_verifier(self, user: str) -> str | None:
        return None

    async def local(self, user: str) -> Identity:
        raise LoginRefused("there are no local users")

    async def ssh_key(self, login: str, key: bytes) -> KeyLogin:
        raise LoginRefused("there are no keys")

    def ssh_proved(self, login: KeyLogin) -> None:
        raise AssertionError


def allow_all(identity: Identity, command: Command) -> Verdict:
    """The rule of those who trust."""
    return Allow("everything")


def policy_of(rule: Rule) -> Policy:
    """A Policy that asks the rule for each part of a command, as proxy/policy/rules.py does."""

    async def decide(identity: Identity, target: Target, command: Command) -> Verdict:
        return combine(rule(identity, part) for part in flat(command))

    return decide


def flat(command: Command) -> list[Command]:
    """The single commands that are decided: the parts of one that has them, else itself."""
    return [each for part in command.parts for each in flat(part)] if command.parts else [command]


# -- the thread -------------------------------------------------------------------------------------------


class Loop:
    """An event loop in a thread, and the workers that read SQL, which belong to it."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        self._ready.wait(WAIT_SECONDS)
        self.analysts = Analysts(workers=1)
        self.call(self.analysts.start())

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self.loop = runner.get_loop()
            self._over = asyncio.Event()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._ready.set()
        await self._over.wait()

    def call(self, work: Coroutine[Any, Any, T], seconds: float = WAIT_SECONDS) -> T:
        """Run something there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def close(self) -> None:
        """End it."""
        self.call(self.analysts.close())
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(WAIT_SECONDS)
