"""Certificates between gatecast and OpenSSH's own ssh-keygen, both ways; and a host certificate that ssh believes."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from proxy.core.parties import Identity
from proxy.identity.ssh_ca import AuthorityFiles, PrivateKey, load_authority
from proxy.identity.ssh_certificate import HOST, RSA_BITS_MIN, read_certificate_line, read_line
from proxy.identity.ssh_logins import UserAuthority
from tests.identity.ssh_kit import SshHouse, make_rsa, public_of, write_private
from tests.identity.stores import opened

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="install openssh-client"),
]
ANA = Identity("ana@example.com", frozenset({"dba"}), ("claude",), "gatecast")


def keygen(*arguments: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["ssh-keygen", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, input=stdin,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def house(tmp_path: Path) -> Iterator[SshHouse]:
    with opened(tmp_path / "g.db") as database:
        yield SshHouse.build(database)


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: make_rsa(RSA_BITS_MIN),
    ],
)
def test_ssh_keygen_reads_what_we_sign(tmp_path: Path, make: object) -> None:
    holder: PrivateKey = make()  # type: ignore[operator]
    authority = load_authority(write_private(tmp_path / "ca", make()))  # type: ignore[operator]
    made = authority.sign_user(
        public_of(holder),
        ANA,
        logins=["deploy", "root"],
        key_id="ana's laptop",
        source_addresses=["10.0.0.0/8", "2001:db8::/32"],
        force_command="uptime -p",
        permits=["permit-pty", "permit-port-forwarding"],
    )
    (tmp_path / "id-cert.pub").write_text(made.line + "\n")
    shown = keygen("-L", "-f", tmp_path / "id-cert.pub")
    lines = [line.strip() for line in shown.splitlines()]
    assert f"Type: {made.kind} user certificate" in lines
    assert f"Serial: {made.serial}" in lines
    assert 'Key ID: "ana\'s laptop"' in lines
    assert any(line.startswith("Signing CA:") and authority.fingerprint in line for line in lines)
    where = {name: lines.index(name) for name in ("Principals:", "Critical Options:", "Extensions:")}
    assert lines[where["Principals:"] + 1 : where["Critical Options:"]] == ["deploy", "root"]
    options = lines[where["Critical Options:"] + 1 : where["Extensions:"]]
    assert options == ["force-command uptime -p", "source-address 10.0.0.0/8,2001:db8::/32"]
    assert [line for line in lines[where["Extensions:"] + 1 :] if "identity@gatecast" not in line] == [
        "permit-port-forwarding",
        "permit-pty",
    ]


def test_ssh_keygen_knows_our_keys(tmp_path: Path) -> None:
    files = AuthorityFiles.of(tmp_path)
    files.user_ca()
    files.host_ca()
    assert files.host_key.exists()
    for name in ("user_ca", "host_ca", "host_ed25519"):
        shown = keygen("-l", "-f", files.directory / name)
        assert read_line((files.directory / f"{name}.pub").read_text()).fingerprint in shown
        assert keygen("-y", "-f", files.directory / name).split()[1] in (files.directory / f"{name}.pub").read_text()


@pytest.mark.parametrize(
    ("kind", "more"), [("ed25519", []), ("ecdsa", []), ("rsa", ["-b", "3072"]), ("rsa", ["-b", "2048"])]
)
def test_we_read_what_ssh_keygen_signs(tmp_path: Path, house: SshHouse, kind: str, more: list[str]) -> None:
    for name in ("ca", "id"):
        keygen("-q", "-t", kind, *more, "-N", "", "-f", tmp_path / name)
    authority = read_line((tmp_path / "ca.pub").read_text())
    house.trust(UserAuthority(authority, groups=frozenset({"ops"})))
    keygen(
        "-q", "-s", tmp_path / "ca", "-I", "bob@agency.example", "-n", "deploy,root", "-z", "4711",
        "-V", "20260101000000:20400101000000", "-O", "clear", "-O", "permit-pty", "-O", "permit-agent-forwarding",
        "-O", "no-x11-forwarding", "-O", "force-command=uptime", "-O", "source-address=192.0.2.0/24",
        "-O", "extension:note@agency.example=any thing", tmp_path / "id.pub",
    )  # fmt: skip
    blob = base64.b64decode((tmp_path / "id-cert.pub").read_text().split()[1])
    found = house.login(blob)
    assert (found.identity.subject, found.identity.groups) == ("bob@agency.example", frozenset({"ops"}))
    assert found.identity.expires_at == 2_208_988_800.0
    assert found.permits == {"permit-pty", "permit-agent-forwarding"}
    assert (found.force_command, found.logins) == ("uptime", frozenset({"deploy", "root"}))
    assert "serial 4711" in found.how
    assert house.refused(blob, peer="198.51.100.1:2") == "wrong-source-address"
    assert house.refused(blob, login="admin") == "wrong-login"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-n", "deploy", "-O", "verify-required"], "unknown-critical-option"),
        (["-n", "deploy", "-O", "critical:only@agency.example=x"], "unknown-critical-option"),
        ([], "no-principals"),
        (["-n", "deploy", "-h"], "not-a-user-certificate"),
        (["-n", "deploy", "-V", "20200101000000:20200102000000"], "certificate-expired"),
        (["-n", "deploy", "-V", "20500101000000:20510102000000"], "certificate-not-yet-valid"),
        (["-n", "admin"], "wrong-login"),
    ],
)
def test_what_ssh_keygen_signs_and_we_refuse(tmp_path: Path, house: SshHouse, options: list[str], why: str) -> None:
    for name in ("ca", "id"):
        keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
    house.trust(UserAuthority(read_line((tmp_path / "ca.pub").read_text())))
    keygen("-q", "-s", tmp_path / "ca", "-I", "bob", *options, tmp_path / "id.pub")
    assert house.refused(base64.b64decode((tmp_path / "id-cert.pub").read_text().split()[1])) == why


def test_sha1_signatures_of_ssh_keygen_are_refused(tmp_path: Path, house: SshHouse) -> None:
    for name in ("ca", "id"):
        keygen("-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", tmp_path / name)
    house.trust(UserAuthority(read_line((tmp_path / "ca.pub").read_text())))
    keygen("-q", "-s", tmp_path / "ca", "-t", "ssh-rsa", "-I", "bob", "-n", "deploy", tmp_path / "id.pub")
    blob = base64.b64decode((tmp_path / "id-cert.pub").read_text().split()[1])
    assert house.refused(blob) == "bad-signature-algorithm"


def test_host_certificates_of_ssh_keygen_are_read(tmp_path: Path) -> None:
    for name in ("ca", "host"):
        keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
    keygen("-q", "-h", "-s", tmp_path / "ca", "-I", "gate", "-n", "gate.example.com", tmp_path / "host.pub")
    found = read_certificate_line((tmp_path / "host-cert.pub").read_text())
    assert (found.type, found.principals) == (HOST, ("gate.example.com",))
