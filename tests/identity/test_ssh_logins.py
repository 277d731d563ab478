"""Whom SSH keys and certificates stand for: trust, dates, logins, options, revocation; and what the log alone says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from proxy.admission import Admission
from proxy.connections import Connection, _current
from proxy.core.errors import ConfigError, LoginRefused
from proxy.core.parties import Identity, KeyLogin
from proxy.identity import ssh_logins
from proxy.identity.local import LocalUser, make_verifier
from proxy.identity.service import Service
from proxy.identity.ssh_ca import BACKDATED_SECONDS, DEFAULT_PERMITS, DEFAULT_SECONDS, PERMITS, pack_identity
from proxy.identity.ssh_certificate import FOREVER, read_certificate
from proxy.identity.ssh_keys import DEFAULT_SECONDS as KEY_SECONDS
from proxy.identity.ssh_keys import Keys, SshKeyError, named, sign_and_note
from proxy.identity.ssh_logins import SshTrust, UserAuthority
from proxy.identity.tokens import Tokens
from tests.identity.ssh_kit import PEER, SshHouse, blob_of, craft, make_rsa, public_of
from tests.identity.stores import opened

KEY = ed25519.Ed25519PrivateKey.generate()
BLOB = blob_of(KEY)
PUBLIC = public_of(KEY)
ANA = Identity(
    "ana@example.com", frozenset({"dba", "dev"}), ("orchestrator", "claude"), "https://id.example.com", "ab12"
)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[SshHouse]:
    with opened(tmp_path / "g.db") as database:
        yield SshHouse.build(database)


# -- our own certificates ---------------------------------------------------------------------------------


def test_a_certificate_carries_the_identity_of_its_making(house: SshHouse) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy", "root"], key_id="laptop")
    found = house.login(made.blob)
    end = float(int(house.clock.now + DEFAULT_SECONDS))
    assert found.identity == replace(ANA, proof=made.proof, expires_at=end)
    assert found.logins == frozenset({"deploy", "root"})
    assert found.permits == DEFAULT_PERMITS
    assert found.force_command is None
    assert f"laptop serial {made.serial}, ends " in found.how
    assert PUBLIC.fingerprint in found.how
    assert 0 <= made.serial < 1 << 63
    assert house.service.valid(found.identity)


def test_it_ends_with_the_proof_that_asked_for_it(house: SshHouse) -> None:
    now = house.clock.now
    brief = replace(ANA, expires_at=now + 30)
    assert house.own.sign_user(PUBLIC, brief, logins=["x"]).valid_before == int(now + 30)
    long = replace(ANA, expires_at=now + 3000)
    assert house.own.sign_user(PUBLIC, long, logins=["x"], valid_seconds=60).valid_before == int(now + 60)
    with pytest.raises(ConfigError, match="has ended"):
        house.own.sign_user(PUBLIC, replace(ANA, expires_at=now), logins=["x"])


def test_its_edges_by_our_clock(house: SshHouse) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy"], valid_seconds=900)
    start = house.clock.now
    assert made.valid_after == start - BACKDATED_SECONDS
    house.clock.now = made.valid_after - 1
    assert house.refused(made.blob) == "certificate-not-yet-valid"
    house.clock.now = made.valid_after
    held = house.login(made.blob)
    house.clock.now = made.valid_before - 1
    assert house.login(made.blob).identity == held.identity
    assert house.service.valid(held.identity)
    house.clock.now = made.valid_before
    assert house.refused(made.blob) == "certificate-expired"
    assert not house.service.valid(held.identity), "a session of it ends with it"


def test_logins_are_its_principals(house: SshHouse) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy"])
    assert house.refused(made.blob, "root") == "wrong-login"
    assert house.refused(made.blob, "Deploy") == "wrong-login"
    unknown_yet = house.login(made.blob, "")
    assert unknown_yet.allows("deploy")
    assert not unknown_yet.allows("root"), "a jump asks when it knows the login"
    everything = house.own.sign_user(PUBLIC, ANA, logins=["*"])
    assert house.login(everything.blob, "root").logins is None
    assert house.login(everything.blob, "").allows("anybody")
    nobody = house.ours(BLOB, principals=())
    assert house.refused(nobody) == house.refused(nobody, "") == "no-principals"
    with pytest.raises(ConfigError, match="which logins"):
        house.own.sign_user(PUBLIC, ANA, logins=[])


def test_permits_are_its_extensions(house: SshHouse) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy"], permits=["permit-X11-forwarding"])
    assert house.login(made.blob).permits == {"permit-X11-forwarding"}
    bare = house.own.sign_user(PUBLIC, ANA, logins=["deploy"], permits=())
    assert house.login(bare.blob).permits == frozenset()
    odd = house.ours(BLOB, [("permit-everything", None), ("permit-pty", None), ("x@y", "z")])
    assert house.login(odd).permits == {"permit-pty"}, "unknown extensions mean nothing"
    with pytest.raises(ConfigError, match="permit-all is no permit"):
        house.own.sign_user(PUBLIC, ANA, logins=["deploy"], permits=["permit-all"])


def test_a_forced_command(house: SshHouse) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy"], force_command="rsync --server --sender . /ä")
    assert house.login(made.blob).force_command == "rsync --server --sender . /ä"
    for nothing in (None, ""):
        assert house.refused(house.ours(BLOB, critical=[("force-command", nothing)])) == "bad-force-command"


@pytest.mark.parametrize(
    ("source", "peer", "fits"),
    [
        ("192.0.2.0/24", "192.0.2.7:50022", True),
        ("192.0.2.7", "192.0.2.7:50022", True),
        ("10.0.0.0/8,192.0.2.0/24", "192.0.2.7:1", True),
        ("192.0.2.0/24", "[::ffff:192.0.2.7]:1", True),
        ("2001:db8::/32", "[2001:db8::1]:22", True),
        ("192.0.2.8", "192.0.2.7:50022", False),
        ("2001:db8::/32", "192.0.2.7:1", False),
        ("0.0.0.0/0", "[2001:db8::1]:22", False),
        ("0.0.0.0/0", "unix", False),
        ("0.0.0.0/0", "", False),
    ],
)
def test_a_source_address(house: SshHouse, source: str, peer: str, fits: bool) -> None:
    made = house.own.sign_user(PUBLIC, ANA, logins=["deploy"], source_addresses=source.split(","))
    if fits:
        assert house.login(made.blob, peer=peer).identity.subject == ANA.subject
    else:
        assert house.refused(made.blob, peer=peer) == "wrong-source-address"


@pytest.mark.parametrize(
    "source", ["192.0.2.7/24", "192.0.2.0/24,", "everywhere", "", "192.0.2.0/24, 10.0.0.0/8", "!192.0.2.0/24"]
)
def test_a_source_address_that_cannot_be_read_is_nowhere(house: SshHouse, source: str) -> None:
    assert house.refused(house.ours(BLOB, critical=[("source-address", source)])) == "bad-source-address"
    if source != "192.0.2.0/24,":
        with pytest.raises(ConfigError, match="source address"):
            house.own.sign_user(PUBLIC, ANA, logins=["x"], source_addresses=[source])


@pytest.mark.parametrize("name", ["verify-required", "no-touch-required", "expires@example.com", "Force-command", ""])
def test_critical_options_that_we_do_not_honour_are_refused(house: SshHouse, name: str) -> None:
    assert house.refused(house.ours(BLOB, critical=[(name, None)])) == "unknown-critical-option"


def test_a_host_certificate_is_no_user(house: SshHouse) -> None:
    host = house.own.sign_host(PUBLIC, ["deploy"])
    assert house.refused(host.blob) == "not-a-user-certificate"
    assert house.refused(house.ours(BLOB, type=2)) == "not-a-user-certificate"


def test_our_authority_s_key_used_by_hand_is_not_enough(house: SshHouse) -> None:
    after = int(house.clock.now)
    assert house.refused(craft(BLOB, house.own_key, after=after, before=after + 60)) == "no-identity"
    for said in ("", "[]", "{}", '{"v":2}', '{"v":1,"subject":"x"}', "[" * 5000, pack_identity(ANA)[:-2],
                 pack_identity(replace(ANA, issuer="x")).replace('"x"', "7")):  # fmt: skip
        blob = craft(BLOB, house.own_key, after=after, before=after + 60, extensions=[("identity@gatecast", said)])
        assert house.refused(blob) == "bad-identity-extension"
    for subject in ("group:dba", "a\nb"):
        said = pack_identity(replace(ANA, subject=subject))
        blob = craft(BLOB, house.own_key, after=after, before=after + 60, extensions=[("identity@gatecast", said)])
        assert house.refused(blob) == "bad-subject"


# -- certificates of others -------------------------------------------------------------------------------


def test_another_authority_names_the_person_and_the_configuration_the_groups(house: SshHouse) -> None:
    blob = craft(BLOB, house.other, key_id="bob@agency.example", principals=["deploy", "root"])
    found = house.login(blob, "root")
    issuer = f"ssh-ca:{public_of(house.other).fingerprint}"
    proof = read_certificate(blob).proof
    assert found.identity == Identity("bob@agency.example", frozenset({"contractors"}), (), issuer, proof, None)
    assert found.logins == frozenset({"deploy", "root"})
    assert house.refused(blob, "admin") == "wrong-login"
    assert house.refused(craft(BLOB, house.other, principals=["*"])) == "wrong-login", "no wildcard of theirs"


def test_another_authority_cannot_say_who_somebody_is_in_our_words(house: SshHouse) -> None:
    blob = craft(BLOB, house.other, key_id="bob", extensions=[("identity@gatecast", pack_identity(ANA))])
    assert house.login(blob).identity.subject == "bob"
    assert house.login(blob).identity.groups == {"contractors"}
    for name in ("local:root", "group:dba", "", " bob", "a\x1b[2Jb"):
        assert house.refused(craft(BLOB, house.other, key_id=name)) == "bad-subject"


def test_the_principal_as_the_person(house: SshHouse) -> None:
    house.trust(UserAuthority(public_of(house.other), "principal"))
    assert house.login(craft(BLOB, house.other, key_id="4711", principals=["deploy"])).identity.subject == "deploy"
    assert house.refused(craft(BLOB, house.other, principals=["deploy", "root"])) == "bad-subject"


def test_an_authority_counts_at_its_listener_alone(house: SshHouse) -> None:
    blob = craft(BLOB, house.other)
    assert house.login(blob).identity.groups == {"contractors"}
    assert house.refused(blob, listener="back") == "unknown-authority"
    assert house.refused(craft(BLOB, KEY)) == "unknown-authority", "its own key is no authority"
    stranger = ed25519.Ed25519PrivateKey.generate()
    assert house.refused(craft(BLOB, stranger, signer_blob=blob_of(house.other))) == "bad-signature"


def test_an_authority_that_is_taken_out_takes_its_sessions_with_it(house: SshHouse) -> None:
    identity = house.login(craft(BLOB, house.other)).identity
    assert house.service.valid(identity)
    house.trust()
    assert not house.service.valid(identity)


def test_the_end_of_another_s_certificate(house: SshHouse) -> None:
    end = int(house.clock.now) + 60
    assert house.login(craft(BLOB, house.other, before=end)).identity.expires_at == end
    assert house.login(craft(BLOB, house.other, before=FOREVER)).identity.expires_at is None
    assert house.login(craft(BLOB, house.other, before=FOREVER - 1)).identity.expires_at == float(FOREVER - 1)
    assert "ends never," in house.login(craft(BLOB, house.other, before=FOREVER - 1)).how
    assert "ends 2027-" in house.login(craft(BLOB, house.other, before=end)).how


def test_certificates_that_were_forgotten_do_not_hold(house: SshHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_logins, "REMEMBERED_LIMIT", 2)
    found = [house.login(craft(BLOB, house.other, serial=n)).identity for n in (1, 2)]
    assert [house.service.valid(one) for one in found] == [True, True]
    third = house.login(craft(BLOB, house.other, serial=3)).identity
    assert [house.service.valid(one) for one in (*found, third)] == [False, True, True]
    assert not house.service.valid(Identity("bob", issuer=found[0].issuer, proof="00")), "never seen"


# -- registered keys --------------------------------------------------------------------------------------


def test_a_registered_key(house: SshHouse) -> None:
    assert house.refused(BLOB) == "unknown-key"
    entry = house.keys.add(PUBLIC, "ana@example.com", ["dba"], ["claude"], note="laptop")
    found = house.login(BLOB, "anybody")
    assert found.identity == Identity(
        "ana@example.com", frozenset({"dba"}), ("claude",), "gatecast", PUBLIC.proof, house.clock.now + KEY_SECONDS
    )
    assert (found.permits, found.logins, found.force_command) == (PERMITS, None, None)
    assert found.how == f"key {PUBLIC.fingerprint} ({entry.id})"
    house.clock.advance(KEY_SECONDS - 1)
    assert house.login(BLOB).identity == found.identity
    house.clock.advance(1)
    assert house.refused(BLOB) == "expired-key"
    assert not house.service.valid(found.identity)


def test_a_registered_key_for_some_logins(house: SshHouse) -> None:
    house.keys.add(PUBLIC, "ana", logins=["deploy"])
    assert house.login(BLOB, "deploy").logins == frozenset({"deploy"})
    assert house.refused(BLOB, "root") == "wrong-login"
    assert not house.login(BLOB, "").allows("root")


def test_a_key_is_registered_once_and_never_again_when_revoked(house: SshHouse) -> None:
    entry = house.keys.add(PUBLIC, "ana", seconds=100)
    with pytest.raises(SshKeyError, match=f"as {entry.id} for ana, and active: revoke it first"):
        house.keys.add(PUBLIC, "bob")
    house.clock.advance(100)
    second = house.keys.add(PUBLIC, "bob", seconds=100)
    assert house.login(BLOB).identity.subject == "bob"
    assert house.keys.revoke(second.id).revoked == house.clock.now
    house.clock.advance(1000)
    with pytest.raises(SshKeyError, match="revoked: take another key"):
        house.keys.add(PUBLIC, "ana")
    assert house.refused(BLOB) == "revoked-key"
    with pytest.raises(SshKeyError, match="no such key"):
        house.keys.revoke("nothing")


def test_a_revocation_counts_for_every_registration_of_a_key(house: SshHouse) -> None:
    first = house.keys.add(PUBLIC, "ana", seconds=100)
    house.clock.advance(100)
    house.keys.add(PUBLIC, "ana", seconds=100)
    assert house.login(BLOB).identity.subject == "ana"
    house.keys.revoke(first.id)
    assert house.refused(BLOB) == "revoked-key"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan"), 366 * 86400.0])
def test_a_registered_key_always_ends(house: SshHouse, seconds: float) -> None:
    with pytest.raises(SshKeyError, match="at most 365 days"):
        house.keys.add(PUBLIC, "ana", seconds=seconds)


@pytest.mark.parametrize("subject", ["", "local:root", "a\nb"])
def test_names_that_cannot_be(house: SshHouse, subject: str) -> None:
    with pytest.raises(SshKeyError, match="named so"):
        house.keys.add(PUBLIC, subject)


def test_weak_keys_do_not_log_in(house: SshHouse) -> None:
    assert house.refused(blob_of(make_rsa(1024))) == "weak-key"
    assert house.refused(b"\0\0\0\7ssh-dss") == "unknown-key-type"
    assert house.refused(b"") == house.refused(b"\xff" * 50) == "malformed-key"


def test_the_last_use_is_noted(house: SshHouse) -> None:
    entry = house.keys.add(PUBLIC, "ana")
    found = house.login(BLOB)
    house.service._submit_used()
    assert house.keys.find_now(entry.id).used is None, "offered, but nothing was signed"
    house.clock.advance(5)
    house.service.ssh_proved(found)
    house.service._submit_used()
    assert house.keys.find_now(entry.id).used == house.clock.now


def test_the_door_brings_the_address_and_the_listener(house: SshHouse) -> None:
    """What a protocol asks of the gate's identities is asked for the connection that asks, and counted for it."""
    admission = Admission(house.service)
    blob = craft(BLOB, house.other, critical=[("source-address", "192.0.2.0/24")])

    async def ask(peer: str, listener: str) -> tuple[KeyLogin, Connection]:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(listener, "ssh", peer, 0.0, task)
        _current.set(connection)
        return await admission.ssh_key("deploy", blob), connection

    found, connection = asyncio.run(ask(PEER, "front"))
    assert connection.unproved, "until it has signed"
    assert connection.identity is None
    for peer, listener in (("198.51.100.1:2", "front"), (PEER, "back")):
        with pytest.raises(LoginRefused):
            asyncio.run(ask(peer, listener))

    async def prove() -> Connection:
        offered, connection = await ask(PEER, "front")
        admission.ssh_proved(offered)
        return connection

    proved = asyncio.run(prove())
    assert not proved.unproved
    assert proved.identity == found.identity
    assert proved.subject == "ana@example.com"


# -- what ends them ---------------------------------------------------------------------------------------


def test_a_revoked_serial(house: SshHouse) -> None:
    mine = sign_and_note(house.keys, house.own, PUBLIC, named("ana", [], []), logins=["deploy"])
    theirs = craft(BLOB, house.other, serial=77)
    held = [house.login(mine.blob).identity, house.login(theirs).identity]
    other = house.login(craft(BLOB, house.other, serial=78)).identity
    known = house.keys.revoke_certificate(house.own.fingerprint, mine.serial, "lost")
    assert known is not None
    assert (known.subject, known.revoked) == ("ana", house.clock.now)
    assert house.keys.revoke_certificate(public_of(house.other).fingerprint, 77) is None
    house.refresh()
    assert [house.service.valid(one) for one in held] == [False, False]
    assert house.service.valid(other), "another serial of the same authority"
    assert house.refused(mine.blob) == house.refused(theirs) == "certificate-revoked"
    for serial in (0, 1 << 64, -1):
        with pytest.raises(SshKeyError):
            house.keys.revoke_certificate(house.own.fingerprint, serial)


def test_a_serial_is_revoked_of_one_authority_only(house: SshHouse) -> None:
    identity = house.login(craft(BLOB, house.other, serial=77)).identity
    house.keys.revoke_certificate(house.own.fingerprint, 77)
    house.refresh()
    assert house.service.valid(identity)


def test_a_locked_subject_and_a_revoked_key(house: SshHouse) -> None:
    house.keys.add(PUBLIC, "ana")
    made = house.own.sign_user(PUBLIC, named("ana", [], []), logins=["deploy"])
    by_key, by_certificate = house.login(BLOB).identity, house.login(made.blob).identity
    house.keys.revoke(PUBLIC.proof)
    house.refresh()
    assert not house.service.valid(by_key)
    assert house.service.valid(by_certificate)
    house.tokens.lock("ana")
    house.refresh()
    assert not house.service.valid(by_certificate)
    assert house.refused(made.blob) == "revoked-or-locked"


def test_a_certificate_falls_with_the_token_that_it_was_made_for(house: SshHouse) -> None:
    secret, token = house.tokens.issue("ana", ["dba"])
    identity = asyncio.run(house.service.password("x", secret.reveal()))
    noted = sign_and_note(house.keys, house.own, PUBLIC, identity, logins=["deploy"])
    unnoted = house.own.sign_user(PUBLIC, identity, logins=["deploy"])
    held = [house.login(one.blob).identity for one in (noted, unnoted)]
    assert held[0].groups == {"dba"}
    house.tokens.revoke(token.id)
    house.refresh()
    assert [house.service.valid(one) for one in held] == [False, False]
    assert house.refused(noted.blob) == "certificate-revoked"
    assert house.refused(unnoted.blob) == "revoked-or-locked"


def test_a_certificate_of_a_local_user_falls_with_his_password(house: SshHouse) -> None:
    ana = LocalUser("ana", make_verifier("pencil"))
    trust = SshTrust(house.own.public)
    house.service.configure((), [ana], trust)
    made = house.own.sign_user(PUBLIC, ana.identity(), logins=["deploy"])
    identity = house.login(made.blob).identity
    assert house.service.valid(identity)
    house.service.configure((), [LocalUser("ana", make_verifier("other"))], trust)
    assert not house.service.valid(identity)
    assert house.refused(made.blob) == "revoked-or-locked"


def test_the_store_out_of_reach_lets_nobody_in(house: SshHouse) -> None:
    house.keys.add(PUBLIC, "ana")
    house.database.close()
    assert house.refused(BLOB) == "store"


REVOKE = """
import sys; from pathlib import Path
from proxy.identity.ssh_keys import Keys; from proxy.store.database import Database
store = Database(Path(sys.argv[1])).open()
keys = Keys(store)
keys.revoke_certificate(sys.argv[3], int(sys.argv[4])) if sys.argv[2] == "serial" else keys.revoke(sys.argv[3])
store.close()
"""


@pytest.mark.parametrize("what", ["serial", "key"])
def test_revocation_by_another_process_counts_within_a_second(tmp_path: Path, what: str) -> None:
    path = tmp_path / "g.db"

    async def serve() -> float:
        with opened(path) as database:
            changed = asyncio.Event()
            other = ed25519.Ed25519PrivateKey.generate()
            trust = SshTrust(None, {"front": (UserAuthority(public_of(other)),)})
            keys = Keys(database)
            entry = keys.add(PUBLIC, "ana")
            service = Service(database, Tokens(database), on_change=changed.set, trust=trust)
            await service.refresh()
            blob = craft(BLOB, other, serial=5) if what == "serial" else BLOB
            words = [public_of(other).fingerprint, "5"] if what == "serial" else [entry.id]
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                running = group.create_task(service.run())
                found = await service.ssh_key("deploy", blob, listener="front")
                assert service.valid(found.identity)
                command = [sys.executable, "-c", REVOKE, str(path), what, *words]
                await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
                revoked_at = time.monotonic()
                await changed.wait()
                took = time.monotonic() - revoked_at
                assert not service.valid(found.identity)
                with pytest.raises(LoginRefused):
                    await service.ssh_key("deploy", blob, listener="front")
                running.cancel()
            return took

    assert asyncio.run(serve()) < 1.0
