"""From the configuration to what SSH listeners and targets get: keys, certificates, trust, settings; and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from proxy.checking import check_config
from proxy.config import ConfigErrors, Loaded, load_config
from proxy.core.doors import SshDoor
from proxy.core.errors import ConfigError
from proxy.identity.ssh_ca import HOST_SECONDS, Authority, AuthorityFiles, load_authority
from proxy.identity.ssh_certificate import read_certificate_line
from proxy.services import open_services
from proxy.snapshot import read_snapshot
from proxy.ssh_doors import NAMES_LIMIT, HostCertificates, door_of, trust_of
from tests.identity.ssh_kit import public_of, write_private
from tests.identity.stores import Clock

KEY = ed25519.Ed25519PrivateKey.generate()
LINE = public_of(KEY).line
CONFIG = """\
listeners:
  - name: front
    protocol: ssh
    address: 127.0.0.1:0
    ssh: LISTENER
targets:
  - name: web
    protocol: ssh
    host: web.internal
    credential: {user: deploy, key_file: id}
    limits: {max_connections: 9}
    ssh: TARGET
rules: []
"""


def write(folder: Path, listener: str = "{}", target: str = f"{{host_keys: '{LINE}'}}") -> Path:
    path = folder / "gatecast.yaml"
    path.write_text(CONFIG.replace("LISTENER", listener).replace("TARGET", target))
    write_private(folder / "id", KEY)
    return path


def load(path: Path) -> Loaded:
    return load_config(path, frozenset({"ssh"}))


def door(path: Path) -> SshDoor:
    loaded = load(path)
    return door_of(loaded, loaded.config.listeners[0])


def wrong(path: Path) -> str:
    with pytest.raises(ConfigErrors) as caught:
        check_config(path)
    (problem,) = caught.value.problems
    return problem.removeprefix(f"{path}:")


# -- listeners --------------------------------------------------------------------------------------------


def test_a_listener_without_keys_gets_those_of_the_state(tmp_path: Path) -> None:
    path = write(tmp_path, "{names: [gate.example.com, gate]}")
    found = door(path)
    files = AuthorityFiles.of(tmp_path / ".gatecast")
    made = load_authority(files.host_key).public
    (line,) = found.host_certificates("")
    certificate = read_certificate_line(line)
    assert certificate.key.blob == made.blob
    assert certificate.principals == ("gate.example.com", "gate")
    assert certificate.authority.blob == files.host_ca().public.blob
    (line,) = found.host_certificates("web")
    assert read_certificate_line(line).principals == ("web",)
    assert "PRIVATE KEY" in found.host_keys[0].reveal()
    assert "PRIVATE" not in repr(found)
    assert door(path).host_keys == found.host_keys, "the next start has the same"
    assert found.methods == ("publickey", "keyboard-interactive", "password")


def test_a_listener_with_keys_of_its_own(tmp_path: Path) -> None:
    ecdsa = ed25519.Ed25519PrivateKey.generate()
    write_private(tmp_path / "one", KEY)
    write_private(tmp_path / "two", ecdsa)
    authority = Authority(ed25519.Ed25519PrivateKey.generate())
    given = authority.sign_host(public_of(ecdsa), ["gate.example.com"])
    (tmp_path / "two-cert.pub").write_text(given.line + " comment\n")
    write_private(tmp_path / "ca", KEY)
    path = write(
        tmp_path,
        "{host_keys: [one, two], host_certificates: two-cert.pub, host_ca: ca, banner: hi, login: [publickey]}",
    )
    found = door(path)
    assert found.host_certificates("") == (given.line,)
    lines = found.host_certificates("web")
    assert [read_certificate_line(line).key.blob for line in lines] == [public_of(KEY).blob, public_of(ecdsa).blob]
    assert {read_certificate_line(line).authority.blob for line in lines} == {public_of(KEY).blob}
    assert (found.banner, found.methods, len(found.host_keys)) == ("hi", ("publickey",), 2)
    assert not (tmp_path / ".gatecast").exists(), "nothing was to be made"


def test_host_certificates_are_kept_and_signed_again_in_time() -> None:
    clock = Clock()
    held = HostCertificates(Authority(KEY, clock), (public_of(KEY),), ("gate",), (), clock)
    first = held("web")
    clock.advance(HOST_SECONDS / 2 - 1)
    assert held("web") is first
    clock.advance(1)
    (line,) = held("web")
    assert (line,) != first
    assert read_certificate_line(line).valid_before == int(clock.now + HOST_SECONDS)
    for name in ("*", "a,b", "x" * 256, "a\nb", " "):
        assert held(name) == ()
    for number in range(NAMES_LIMIT + 5):
        held(f"host{number}")
    assert len(held._kept) == NAMES_LIMIT


def test_keys_of_listeners_that_are_wrong(tmp_path: Path) -> None:
    assert "5: listeners[0].ssh: " in wrong(write(tmp_path, "{host_keys: none}"))
    write_private(tmp_path / "open", KEY, mode=0o644)
    assert "others may read the key" in wrong(write(tmp_path, "{host_keys: open}"))
    assert "others may read the key" in wrong(write(tmp_path, "{host_ca: open}"))
    write_private(tmp_path / "key", KEY)
    user = Authority(KEY).sign_host(public_of(ed25519.Ed25519PrivateKey.generate()), ["x"])
    (tmp_path / "stranger-cert.pub").write_text(user.line)
    text = "{host_keys: key, host_certificates: stranger-cert.pub}"
    assert "is of none of the host keys" in wrong(write(tmp_path, text))
    assert "holds no certificate" in wrong(write(tmp_path, "{host_keys: key, host_certificates: key.pub}"))
    assert "5: listeners[0].ssh: names are those of hosts" in wrong(write(tmp_path, "{names: [gate, '*.example.com']}"))


def test_a_host_s_name_that_cannot_be_certified_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "odd,name")
    with pytest.raises(ConfigError, match="no comma"):
        door(write(tmp_path))


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = check_config(path)
    assert found["listeners"][0]["host_key"] == "a host key that the first start makes"
    assert not (tmp_path / ".gatecast").exists()
    door(path)
    assert check_config(path)["listeners"][0]["host_key"].startswith("ssh-ed25519 SHA256:")


def test_secrets_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert not [text for text in check_config(path)["warnings"] if "credential" in text]
    (tmp_path / "id").unlink()
    path.write_text(path.read_text().replace("key_file: id", "key_file: id, passphrase_env: NOT_SET_ANYWHERE"))
    found = [text for text in check_config(path)["warnings"] if "credential" in text]
    assert "NOT_SET_ANYWHERE is not set here" in found[0]
    assert "id cannot be read here" in found[1]


# -- trust ------------------------------------------------------------------------------------------------


def test_whose_user_certificates_count(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "cas.pub").write_text(f"# the agency\n\n{public_of(other).line} agency\n{LINE}\n")
    snapshot = read_snapshot(write(tmp_path, "{user_cas: {file: cas.pub, groups: [ops]}}"), b"k" * 32)
    assert tmp_path / "cas.pub" in snapshot.files
    trust = trust_of(snapshot)
    assert trust.own is not None
    assert trust.own.blob == AuthorityFiles.of(tmp_path / ".gatecast").user_ca().public.blob
    (one, two) = trust.listeners["front"]
    assert (one.key.blob, one.groups, two.key.blob) == (public_of(other).blob, frozenset({"ops"}), public_of(KEY).blob)


def test_authorities_that_cannot_be_read_have_their_line(tmp_path: Path) -> None:
    for content, why in (
        ("", "holds no public key"),
        ("ssh-ed25519 AAAA\n", "cas.pub:1: is no public key"),
        (None, "No s"),
    ):
        if content is None:
            (tmp_path / "cas.pub").unlink()
        else:
            (tmp_path / "cas.pub").write_text(content)
        problem = wrong(write(tmp_path, "{user_cas: cas.pub}"))
        assert problem.startswith("5: listeners[0].ssh.user_cas: ")
        assert why in problem


def test_a_reload_changes_whom_it_trusts(tmp_path: Path) -> None:
    (tmp_path / "cas.pub").write_text(LINE + "\n")
    path = write(tmp_path)
    with open_services(path) as services:
        assert services.identities._ssh.trust.listeners == {"front": ()}
        own = services.identities._ssh.trust.own
        write(tmp_path, "{user_cas: cas.pub}")
        services.configure(read_snapshot(path, services.hash_key))
        assert [one.key.blob for one in services.identities._ssh.trust.listeners["front"]] == [public_of(KEY).blob]
        assert services.identities._ssh.trust.own == own


# -- targets ----------------------------------------------------------------------------------------------


def test_the_settings_of_a_target(tmp_path: Path) -> None:
    other = public_of(ed25519.Ed25519PrivateKey.generate()).line
    (tmp_path / "known").write_text(f"# hosts\nweb.internal {LINE}\n\n@cert-authority *.internal {LINE} c\n")
    (tmp_path / "host_ca.pub").write_text(f"{other} ours\n")
    text = (
        f"{{known_hosts: known, host_keys: ['{LINE} comment'], host_ca: [host_ca.pub, '{LINE}'], exec_only: true,"
        " logins: [root, 'app-*'], env: [], record_contents: /etc/*, hold_when_unsure: true, rekey: 256 MiB,"
        " host_key_alias: web}"
    )
    snapshot = read_snapshot(write(tmp_path, target=text), b"k" * 32)
    target = snapshot.targets["web"]
    assert (target.port, target.database, target.host) == (22, "deploy", "web.internal")
    assert target.settings == {
        "login": "deploy",
        "known_hosts": (f"web.internal {LINE}", f"@cert-authority *.internal {LINE} c"),
        "host_keys": (LINE,),
        "host_ca": (other, LINE),
        "host_key_alias": "web",
        "exec_only": True,
        "env": (),
        "logins": ("root", "app-*"),
        "record_contents": ("/etc/*",),
        "hold_when_unsure": True,
        "rekey": 256 << 20,
        "connect_timeout_seconds": 15.0,
        "max_connections": 9,
    }
    assert {tmp_path / "known", tmp_path / "host_ca.pub"} <= snapshot.files


@pytest.mark.parametrize(
    ("content", "target", "why"),
    [
        ("web ssh-ed25519\n", "{known_hosts: known}", "known:1: a line is names"),
        (f"# x\n@trusted web {LINE}\n", "{known_hosts: known}", "known:2: knows no @trusted"),
        ("# nothing\n", "{known_hosts: known}", "known: holds no host key"),
        ("\xff", "{known_hosts: none}", "none: cannot be read"),
        ("", "{host_keys: 'ssh-ed25519 AAAA'}", "ssh.host_keys: is no public key"),
        ("", "{host_ca: 'ssh-ed25519 AAAAB'}", "ssh.host_ca: is no public key"),
        ("", "{host_ca: nowhere}", "nowhere: cannot be read"),
    ],
    ids=[
        "no key",
        "marker",
        "empty",
        "no file",
        "host key",
        "host ca",
        "no ca file",
    ],  # LINE is another in each process
)
def test_host_keys_that_cannot_be_read(tmp_path: Path, content: str, target: str, why: str) -> None:
    (tmp_path / "known").write_text(content, encoding="latin-1")
    problem = wrong(write(tmp_path, target=target))
    assert problem.startswith("7: targets[0]: ")
    assert why in problem
