"""Dialling a real sshd: host keys and certificates, known_hosts in all its forms, ways to log in, and what fails."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.ssh.dial import dial
from proxy.core.errors import TargetPeerError
from proxy.core.parties import Credential, Secret, Target
from tests.peers.ssh import SshServer, certify, make_key, program, ssh_server

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def server() -> Iterator[SshServer]:
    with ssh_server() as running:
        yield running


def target(server: SshServer, **settings: object) -> Target:
    return Target("box", "ssh", host=server.host, port=server.port, settings=settings)


def login(server: SshServer) -> Credential:
    return Credential(server.user, key_file=str(server.login.file))


async def outcome(place: Target, credential: Credential, user: str) -> str:
    """Dial and leave again; return the host key's fingerprint."""
    leg = await dial(place, credential, user)
    try:
        return str(leg.info("host_key"))
    finally:
        await leg.close()


def refused(place: Target, credential: Credential, user: str) -> str:
    with pytest.raises(TargetPeerError) as caught:
        asyncio.run(outcome(place, credential, user))
    return str(caught.value)


def fingerprint(public: Path) -> str:
    return subprocess.check_output([program("ssh-keygen"), "-lf", str(public)], text=True).split()[1]


def test_pinned(server: SshServer) -> None:
    place = target(server, host_keys=(server.host_key.line,))
    assert asyncio.run(outcome(place, login(server), server.user)) == fingerprint(server.host_key.public)


def test_another_key_is_pinned(server: SshServer, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")
    text = refused(target(server, host_keys=(other.line,)), login(server), server.user)
    assert "host key is not trusted" in text
    assert fingerprint(server.host_key.public) in text and fingerprint(other.public) in text


@pytest.mark.parametrize(
    "form", ["plain", "hashed", "authority", "revoked", "revoked authority", "elsewhere", "address"]
)
def test_known_hosts(server: SshServer, tmp_path: Path, form: str) -> None:
    file = tmp_path / "known_hosts"
    place, name = target(server, known_hosts=str(file)), f"[{server.host}]:{server.port}"
    line, authority = server.host_key.line, server.host_authority.line
    lines = {
        "plain": f"{name} {line}\n",
        "hashed": f"{name} {line}\n",
        "authority": f"@cert-authority {server.host} {authority}\n",
        "revoked": f"{name} {line}\n@revoked * {line}\n",
        "revoked authority": f"@cert-authority * {authority}\n@revoked * {authority}\n",
        "elsewhere": f"other.example {line}\n",
        "address": f"other.example,{name} {line}\n",
    }
    file.write_text(lines[form])
    if form == "hashed":
        subprocess.run([program("ssh-keygen"), "-H", "-f", str(file)], check=True, capture_output=True)
        assert server.host not in file.read_text()
    if form in ("plain", "hashed", "authority", "address"):
        assert asyncio.run(outcome(place, login(server), server.user)) == fingerprint(server.host_key.public)
    else:
        words = "revoked" if "revoked" in form else f"known_hosts has no key for {server.host}"
        assert words in refused(place, login(server), server.user)


def test_an_authority_of_hosts(server: SshServer) -> None:
    place = target(server, host_ca=(server.host_authority.line,))
    assert asyncio.run(outcome(place, login(server), server.user)) == fingerprint(server.host_key.public)
    place = target(server, host_ca=(server.host_authority.line,), host_key_alias="another.example")
    assert "principal" in refused(place, login(server), server.user)
    place = target(server, host_ca=(server.user_authority.line,))
    assert "not trusted" in refused(place, login(server), server.user)


def test_a_user_certificate(server: SshServer, tmp_path: Path) -> None:
    key = make_key(tmp_path, "short")
    certificate = certify(server.user_authority, key, [server.user])
    place = target(server, host_keys=(server.host_key.line,))
    alone = Credential(server.user, key_file=str(key.file))
    assert "refused the gateway's login" in refused(place, alone, server.user)
    certified = Credential(server.user, key_file=str(key.file), certificate_file=str(certificate))
    assert asyncio.run(outcome(place, certified, server.user))


def test_a_key_with_a_passphrase(server: SshServer, tmp_path: Path) -> None:
    file = tmp_path / "locked"
    file.write_bytes(server.login.file.read_bytes())
    file.chmod(0o600)
    words = ["-q", "-p", "-P", "", "-N", "correct horse", "-f", str(file)]
    subprocess.run([program("ssh-keygen"), *words], check=True, capture_output=True)
    place = target(server, host_keys=(server.host_key.line,))
    right = Credential(server.user, key_file=str(file), passphrase=Secret("correct horse"))
    assert asyncio.run(outcome(place, right, server.user))
    for wrong in (Secret("canary-7421"), None):
        text = refused(place, Credential(server.user, key_file=str(file), passphrase=wrong), server.user)
        assert "key or certificate for the target cannot be read" in text and "canary" not in text


def test_a_password_that_is_wrong_or_not_wanted(server: SshServer) -> None:
    place = target(server, host_keys=(server.host_key.line,))
    text = refused(place, Credential(server.user, secret=Secret("canary-7421")), server.user)
    assert text == f"the target refused the gateway's login as {server.user} (it takes: publickey)"


def test_the_gates_own_files_and_agent_are_not_used(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_bytes(server.login.file.read_bytes())
    (tmp_path / ".ssh" / "known_hosts").write_text(server.known_hosts())
    (tmp_path / ".ssh" / "config").write_text("Host *\n  User nobody\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    place = target(server, host_keys=(server.host_key.line,))
    assert "refused the gateway's login" in refused(place, Credential(server.user), server.user)
    assert "one of known_hosts, host_keys and host_ca" in refused(target(server), login(server), server.user)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_host_keys(tmp_path: Path, kind: str) -> None:
    """The pinned kind is asked for, although the server has a kind that is preferred elsewhere."""
    other = make_key(tmp_path, "host", kind)
    with ssh_server({"HostKey": str(other.file), "HostCertificate": "none"}) as server:
        place = target(server, host_keys=(server.host_key.line, other.line))
        assert asyncio.run(outcome(place, login(server), server.user)) == fingerprint(other.public)
