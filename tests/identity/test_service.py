"""The Identities service: which proof is which, revocation while running, and what it never lets out."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.core.errors import ConfigError, LoginRefused
from proxy.core.gate import Identities
from proxy.core.parties import Identity
from proxy.identity import commands, service
from proxy.identity.local import LocalUser, make_verifier
from proxy.identity.oidc import Issuer
from proxy.identity.proof import PROOF_LIMIT
from proxy.identity.service import REFUSED_TEXT, STALE_LIMIT_SECONDS, Service
from proxy.identity.throttle import FAILURES_LIMIT, SOURCES_LIMIT, WINDOW_SECONDS, Throttle, source_of
from proxy.identity.tokens import Tokens
from proxy.store.database import Database
from tests.identity.stores import Clock, make_key, opened, public_set, sign

URL = "https://id.example.com"
KEY = make_key("EC", "k")
# The password 'pencil' and the salt of RFC 7677 section 3, in PostgreSQL's form.
PENCIL = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


class House:
    """A service on a store, with its clocks."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.clock = Clock()
        self.tick = Clock(1000.0)
        self.path = database.path
        self.tokens = Tokens(database, clock=self.clock)
        self.changed = 0
        jwks = directory / "jwks.json"
        jwks.write_text(json.dumps(public_set(KEY)))
        self.issuer = Issuer(URL, ("gatecast",), jwks_file=jwks)
        self.users = [LocalUser("bob", PENCIL, frozenset({"dev"}))]
        self.service = Service(
            database,
            self.tokens,
            [self.issuer],
            self.users,
            clock=self.clock,
            monotonic=self.tick,
            on_change=self.note,
        )
        asyncio.run(self.service.refresh())

    def note(self) -> None:
        self.changed += 1

    def login(self, secret: str, user: str = "agent") -> Identity:
        return asyncio.run(self.service.password(user, secret))

    def refused(self, secret: str, user: str = "agent") -> str:
        with capture_logs() as logs, pytest.raises(LoginRefused) as caught:
            self.login(secret, user)
        assert caught.value.text == REFUSED_TEXT, "one text for every reason"
        assert caught.value.__context__ is None
        if len(secret) > 8:
            assert secret not in repr(logs)
        return str(logs[-1]["why"])

    def jwt(self, **more: Any) -> str:
        now = self.clock.now
        return sign({"iss": URL, "aud": "gatecast", "sub": "alice", "exp": now + 60, **more}, KEY, "ES256")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(tmp_path / "g.db") as database:
        yield House(database, tmp_path)


def test_it_is_what_a_gate_asks_for(house: House) -> None:
    identities: Identities = house.service
    assert identities is house.service


def test_the_subject_comes_from_the_proof_alone(house: House) -> None:
    secret, _ = house.tokens.issue("alice", ["dba"])
    for user in ("agent", "root", "bob", ""):
        assert house.login(secret.reveal(), user).subject == "alice"
        assert house.login(house.jwt(sub="carol"), user).subject == "carol"


def test_every_refusal_reads_the_same(house: House) -> None:
    live, token = house.tokens.issue("alice", seconds=50)
    locked, _ = house.tokens.issue("mallory")
    house.tokens.lock("mallory", "left the company")
    asyncio.run(house.service.refresh())
    assert house.refused("") == house.refused("password") == "neither-token-nor-jwt"
    assert house.refused("x" * (PROOF_LIMIT + 1)) == "too-long"
    assert house.refused("gct_" + "x" * (PROOF_LIMIT - 4)) == "malformed-token"
    assert house.refused("\udcff\udcfe") == "neither-token-nor-jwt"
    assert house.refused("gct_\udcff") == "not-utf8"
    assert house.refused("eyJ\udcff.a.b") == "malformed-jwt"
    assert house.refused(live.reveal() + "x") == "malformed-token"
    assert house.refused(locked.reveal()) == house.refused(house.jwt(sub="mallory")) == "revoked-or-locked"
    assert house.refused(house.jwt(iss="https://evil.example")) == "unknown-issuer"
    assert house.refused(house.jwt(exp=house.clock.now - 61)) == "expired_token"
    house.tokens.revoke(token.id)
    assert house.refused(live.reveal()) == "revoked-token"
    assert house.refused("x", live.reveal()) == "neither-token-nor-jwt"


def test_a_token_in_place_of_the_user_name_is_not_logged(house: House) -> None:
    for proof in (house.tokens.issue("alice")[0].reveal(), house.jwt()):
        with capture_logs() as logs, pytest.raises(LoginRefused):
            house.login("wrong", proof)
        assert proof[8:40] not in repr(logs)
    with capture_logs() as logs, pytest.raises(LoginRefused):
        house.login("wrong", "a\n\x1b[2J" + "b" * 1000)
    assert len(logs[0]["user"]) < 300
    assert logs[0]["user"].isprintable()


def test_a_canary_is_in_no_log_error_or_file(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    secret, token = house.tokens.issue("alice")
    canary = secret.reveal().rpartition("_")[2]
    bad = house.jwt(aud="other")
    errors = []
    house.login(secret.reveal())
    house.tokens.revoke(token.id)
    for proof in (secret.reveal(), bad):
        try:
            house.login(proof)
        except LoginRefused as error:
            errors.append(repr(error) + error.text + error.hint)
    assert len(errors) == 2
    asyncio.run(house.service.refresh())
    written = capsys.readouterr()
    everything = repr(errors) + written.out + written.err + repr(secret) + f"{secret}" + repr(token)
    for part in (canary, bad, bad.rpartition(".")[2]):
        assert part not in everything
        for file in house.path.parent.glob("g.db*"):
            assert part.encode() not in file.read_bytes()


def test_revocation_by_another_process_counts_while_running(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    issued = commands.token_issue(path, "alice")

    async def serve() -> float:
        with opened(path) as database:
            changed = asyncio.Event()
            held = Service(database, Tokens(database), on_change=changed.set)
            await held.refresh()
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                running = group.create_task(held.run())
                identity = await held.password("agent", issued["token"])
                assert held.valid(identity)
                await asyncio.to_thread(commands.token_revoke, path, issued["id"])
                revoked_at = time.monotonic()
                await changed.wait()
                took = time.monotonic() - revoked_at
                assert not held.valid(identity)
                running.cancel()
            return took

    assert asyncio.run(serve()) < 1.0
    assert commands.token_list(path)[0]["used"] is not None, "the last use is written when the service ends"


def test_valid_ends_with_the_proof(house: House) -> None:
    secret, _ = house.tokens.issue("alice", seconds=100)
    identity = house.login(secret.reveal())
    house.clock.advance(99)
    assert house.service.valid(identity)
    house.clock.advance(1)
    assert not house.service.valid(identity)


def test_a_lock_ends_every_proof_and_is_undone(house: House) -> None:
    identities = [house.login(house.tokens.issue("alice")[0].reveal()), house.login(house.jwt())]
    house.tokens.lock("alice")
    assert all(house.service.valid(identity) for identity in identities), "not read yet"
    asyncio.run(house.service.refresh())
    assert house.changed == 1
    assert not any(house.service.valid(identity) for identity in identities)
    house.tokens.unlock("alice")
    asyncio.run(house.service.refresh())
    assert all(house.service.valid(identity) for identity in identities)


def test_nobody_is_valid_when_the_store_is_silent(house: House) -> None:
    identity = house.login(house.tokens.issue("alice")[0].reveal())
    house.tick.advance(STALE_LIMIT_SECONDS - 0.1)
    assert house.service.valid(identity)
    house.tick.advance(0.1)
    assert not house.service.valid(identity)
    asyncio.run(house.service.refresh())
    assert house.service.valid(identity)


def test_a_broken_store_refuses_logins_and_run_goes_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, _ = house.tokens.issue("alice")
    house.service._database.call(lambda c: c.execute("DROP TABLE tokens") and None)
    assert house.refused(secret.reveal()) == "store"
    rounds = 0

    async def pause(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "sleep", pause)
    with capture_logs() as logs, pytest.raises(KeyboardInterrupt):
        asyncio.run(house.service.run())
    assert [entry["event"] for entry in logs] == ["revocations-unknown"] * 3


def test_valid_is_fast(house: House) -> None:
    real = Service(house.service._database, house.tokens, [], house.users)
    asyncio.run(real.refresh())
    identity = house.login(house.tokens.issue("alice")[0].reveal())
    # One microsecond on a quiet machine; the bound leaves room for a busy one.
    assert min(timeit.repeat(lambda: real.valid(identity), number=10_000, repeat=5)) / 10_000 < 3e-6


def test_local_users(house: House) -> None:
    assert house.service.scram_verifier("bob") == PENCIL
    assert house.service.scram_verifier("alice") is None
    identity = asyncio.run(house.service.local("bob"))
    assert (identity.subject, identity.groups, identity.issuer) == ("bob", frozenset({"dev"}), "local")
    assert house.service.valid(identity)
    with pytest.raises(LoginRefused):
        asyncio.run(house.service.local("alice"))
    changed = [LocalUser("bob", make_verifier("another"), frozenset({"dev"}))]
    house.service.configure([house.issuer], changed)
    assert not house.service.valid(identity), "a new password ends the sessions of the old one"
    house.service.configure([], [])
    assert house.changed == 2
    assert house.service.scram_verifier("bob") is None
    assert house.refused(house.jwt()) == "unknown-issuer"


def test_a_lock_holds_for_local_users(house: House) -> None:
    house.tokens.lock("bob")
    asyncio.run(house.service.refresh())
    with pytest.raises(LoginRefused):
        asyncio.run(house.service.local("bob"))


def test_a_bad_configuration_changes_nothing(house: House) -> None:
    for issuers, users in (([house.issuer] * 2, []), ([], house.users * 2)):
        with pytest.raises(ConfigError, match="twice"):
            house.service.configure(issuers, users)
    assert house.service.scram_verifier("bob") == PENCIL


def test_verifiers() -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert make_verifier("pencil", salt=salt) == PENCIL
    assert make_verifier("pencil") != make_verifier("pencil")
    assert "WG5d8" not in repr(LocalUser("bob", PENCIL))
    for bad in ("", "pässword", "a\n"):
        with pytest.raises(ConfigError):
            make_verifier(bad)
    for bad in (
        "",
        "pencil",
        PENCIL + "x",
        PENCIL.replace("4096", "4095"),
        PENCIL.replace("qY=", "q="),
        "md5" + "0" * 32,
    ):
        with pytest.raises(ConfigError):
            LocalUser("bob", bad)
    with pytest.raises(ConfigError):
        LocalUser("local:bob", PENCIL)


def test_last_use_is_written_lazily(house: House) -> None:
    secret, _ = house.tokens.issue("alice")
    house.login(secret.reveal())
    asyncio.run(house.service.refresh())
    assert house.tokens.listing()[0].used is None
    house.tick.advance(service.FLUSH_SECONDS)
    asyncio.run(house.service.refresh())
    assert house.tokens.listing()[0].used == house.clock.now


def test_throttle_by_source() -> None:
    tick = Clock(0.0)
    throttle = Throttle(tick)
    for _ in range(FAILURES_LIMIT - 1):
        throttle.failure("192.0.2.1:50000")
    assert throttle.wait_seconds("192.0.2.1:50001") == 0
    throttle.failure("192.0.2.1:50002")
    assert throttle.wait_seconds("192.0.2.1:50003") > 0
    assert throttle.wait_seconds("192.0.2.2:50003") == 0
    tick.advance(throttle.wait_seconds("192.0.2.1"))
    assert throttle.wait_seconds("192.0.2.1:50003") == 0
    for _ in range(1000):
        throttle.failure("192.0.2.1")
    assert throttle.wait_seconds("192.0.2.1") <= 2 * WINDOW_SECONDS
    for number in range(SOURCES_LIMIT):
        throttle.failure(f"source-{number}")
    assert len(throttle._sources) == SOURCES_LIMIT
    assert throttle.wait_seconds("192.0.2.1") == 0, "forgotten: the table is bounded"


def test_admit(house: House) -> None:
    for _ in range(FAILURES_LIMIT):
        house.service.admit("[2001:db8::1]:5000")
        house.service.note_failure("[2001:db8::1]:5000")
    with pytest.raises(LoginRefused, match="too many"):
        house.service.admit("[2001:db8::2]:5001")
    house.service.admit("[2001:db8:0:1::1]:5001")


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.1:5432", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]:5432", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("memory", "memory"),
    ],
)
def test_sources(peer: str, source: str) -> None:
    assert source_of(peer) == source
