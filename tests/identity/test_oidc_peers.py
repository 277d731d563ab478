"""Tokens of a real OpenID Provider, through discovery, as users would bring them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.core.errors import LoginRefused
from proxy.core.parties import Identity
from proxy.identity import keys
from proxy.identity.oidc import Issuer
from proxy.identity.service import Service
from proxy.identity.tokens import Tokens
from tests.identity.stores import Clock, make_key, opened
from tests.peers import oidc

pytestmark = pytest.mark.peer

RSA = make_key("RSA", "rsa-1", use="sig")
EC = make_key("EC", "ec-1", use="sig")
ED = make_key("OKP", "ed-1", use="sig")
CLIENTS = [oidc.client("gatecast"), oidc.client("gatecast-ec", "ES256"), oidc.client("claude"), oidc.client("other")]
ACT: dict[str, dict[str, object]] = {"claude": {"act": {"sub": "planner"}, "groups": ["agents"]}}


@pytest.fixture(scope="module")
def provider() -> Iterator[oidc.Provider]:
    with oidc.running([RSA, EC, ED], CLIENTS, groups={"alice": ["dba", "dev"]}, extra=ACT) as found:
        yield found


ServiceOf = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceOf]:
    """Return a maker of services that trust an issuer, each on its own store."""
    with ExitStack() as stack:

        def make(issuer: str, monotonic: Clock | None = None, **settings: Any) -> Service:
            database = stack.enter_context(opened(tmp_path / f"{len(list(tmp_path.iterdir()))}" / "g.db"))
            trusted = Issuer(issuer, **{"audiences": ("gatecast", "gatecast-ec"), **settings})
            made = Service(database, Tokens(database), [trusted], monotonic=monotonic or Clock(1000.0))
            asyncio.run(made.refresh())
            return made

        yield make


def login(held: Service, token: str) -> Identity:
    return asyncio.run(held.password("agent", token))


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"])
def test_an_access_token_of_a_client(provider: oidc.Provider, service: ServiceOf, algorithm: str) -> None:
    held = service(provider.issuer, agent_claims=("client_id",))
    found = login(held, provider.access_token("claude", algorithm))
    assert (found.subject, found.agents, found.issuer) == ("claude", ("planner",), provider.issuer)
    assert found.groups == {"agents"}
    assert held.valid(found)


@pytest.mark.parametrize("client", ["gatecast", "gatecast-ec"])
def test_the_id_token_of_a_person(provider: oidc.Provider, service: ServiceOf, client: str) -> None:
    token = provider.log_in("alice", client)
    found = login(service(provider.issuer), token)
    assert found.subject == "alice"
    assert found.groups == {"dba", "dev"}
    by_mail = service(provider.issuer, subject_claim="email")
    assert login(by_mail, token).subject == "alice@example.com"


def test_a_token_for_another_application(provider: oidc.Provider, service: ServiceOf) -> None:
    token = provider.log_in("alice", "other")
    with pytest.raises(LoginRefused):
        login(service(provider.issuer), token)
    assert login(service(provider.issuer, audiences=("other",)), token).subject == "alice"


def test_a_token_of_another_provider_under_the_same_name(provider: oidc.Provider, service: ServiceOf) -> None:
    with oidc.running([make_key("RSA", "rsa-1", use="sig")], CLIENTS) as impostor:
        parts = impostor.access_token("claude", "RS256").split(".")
        good = provider.access_token("claude", "RS256").split(".")
    held = service(provider.issuer)
    login(held, ".".join(good))
    for forged in ([good[0], good[1], parts[2]], [good[0], parts[1], good[2]], parts):
        with pytest.raises(LoginRefused):
            login(held, ".".join(forged))


def test_the_provider_rotates_its_keys(service: ServiceOf) -> None:
    tick = Clock(1000.0)
    old, new = make_key("EC", "old", use="sig"), make_key("EC", "new", use="sig")
    rsa = make_key("RSA", "rsa", use="sig")
    with oidc.running([rsa, old], CLIENTS) as first:
        held = service(first.issuer, tick)
        before = first.access_token("claude", "ES256")
        login(held, before)
        port = urlsplit(first.issuer).port
        assert port is not None
    with oidc.running([rsa, new, old], CLIENTS, port=port) as second:
        assert second.issuer == first.issuer
        after = second.access_token("claude", "ES256")
        tick.advance(keys.REFRESH_SECONDS)
        asyncio.run(held.refresh())
        login(held, after)
        login(held, before)


def test_what_the_provider_publishes_is_read(provider: oidc.Provider) -> None:
    document = keys.by_discovery(provider.issuer)()
    assert {key.id for key in keys.read_keys(document)} == {"rsa-1", "ec-1", "ed-1"}
    assert all("d" not in key for key in json.loads(document)["keys"])
