"""gatecast ssh ...: keys, certificates and authorities from the command line; and that tokens fit OpenSSH's prompt."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from proxy import cli
from proxy.identity import commands
from proxy.identity.proof import NAME_LIMIT
from proxy.identity.ssh_ca import AuthorityFiles
from proxy.identity.ssh_certificate import read_certificate_line, read_line
from tests.identity.ssh_kit import public_of, write_private
from tests.peers.ssh import KeyPair, client_environment, program, ssh_server

OPENSSH_PROMPT_LIMIT = 1023  # readpassphrase() of OpenSSH's client: a buffer of 1,024 bytes

CONFIG = """\
listeners:
  - {name: front, protocol: ssh, address: '127.0.0.1:0', ssh: {names: gate.example.com}}
targets:
  - name: web
    protocol: ssh
    host: web.internal
    credential: {user: deploy, password_env: PW}
    ssh: {host_keys: 'HOST'}
identity: {ssh: {certificate_max: 1h, key_max_days: 30}}
rules: []
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and a user's key."""
    key = ed25519.Ed25519PrivateKey.generate()
    write_private(tmp_path / "id", key)
    (tmp_path / "gatecast.yaml").write_text(CONFIG.replace("HOST", public_of(key).line))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert cli.main(["ssh", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["ssh", *words]) == 0
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["ssh", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("gatecast: ")
    return err


def test_a_certificate_is_made_listed_and_revoked(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--subject",
        "ana@example.com",
        "--group",
        "dba",
        "--agent",
        "claude",
        "--login",
        "deploy",
        "--valid",
        "30m",
    ]
    made = run(capsys, "certificate", "id.pub", *words, "--out", "id-cert.pub")
    certificate = read_certificate_line(Path("id-cert.pub").read_text())
    assert (certificate.line, certificate.serial) == (made["certificate"], made["serial"])
    assert certificate.key_id == "claude for ana@example.com"
    assert 1700 < certificate.valid_before - time.time() < 1801
    assert stat.S_IMODE(Path("id-cert.pub").stat().st_mode) & 0o022 == 0
    assert certificate.authority.blob == AuthorityFiles.of(house / ".gatecast").user_ca().public.blob
    (listed,) = run(capsys, "certificates", "--subject", "ana@example.com")
    assert (listed["serial"], listed["state"], listed["groups"]) == (made["serial"], "active", ["dba"])
    assert listed["proof"] == certificate.proof == made["proof"]
    assert run(capsys, "certificates", "--subject", "bob") == []
    text = said(capsys, "revoke", str(made["serial"]), "--reason", "lost")
    assert text == f"Certificate {made['serial']} of claude for ana@example.com is revoked.\n"
    assert run(capsys, "certificates")[0]["state"] == "revoked"
    assert "revoked" in said(capsys, "certificates")


def test_a_certificate_goes_to_the_output_alone(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "certificate", "id.pub", "--subject", "ana", "--login", "*", "--permit", "permit-pty",
                "--source-address", "10.0.0.0/8", "--force-command", "uptime", "--key-id", "x")  # fmt: skip
    certificate = read_certificate_line(text)
    assert 840 < certificate.valid_before - time.time() < 901, "15 minutes, where nothing is said"
    assert (certificate.principals, certificate.key_id) == (("*",), "x")
    assert certificate.critical == {"source-address": b"10.0.0.0/8", "force-command": b"uptime"}
    assert set(certificate.extensions) == {"permit-pty", "identity@gatecast"}


def test_certificates_that_are_not_made(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    who = ["--subject", "ana", "--login", "deploy"]
    assert "at most 3600 s" in failed(capsys, "certificate", "id.pub", *who, "--valid", "61m")
    assert "holds a private key; give the .pub file" in failed(capsys, "certificate", "id", *who)
    assert "No such file" in failed(capsys, "certificate", "none.pub", *who)
    assert "no good key" in failed(capsys, "certificate", "gatecast.yaml", *who)
    assert "no permit" in failed(capsys, "certificate", "id.pub", *who, "--permit", "permit-all")
    assert "named so" in failed(capsys, "certificate", "id.pub", "--subject", "local:root", "--login", "x")
    said(capsys, "certificate", "id.pub", *who, "--out", "id-cert.pub")
    assert "holds a certificate; give the .pub file of its key" in failed(capsys, "certificate", "id-cert.pub", *who)
    Path("folder").mkdir()
    assert "is no file" in failed(capsys, "certificate", "id.pub", *who, "--out", "folder")
    assert not list(house.glob(".folder*"))
    assert len(run(capsys, "certificates")) == 2, "what could not be written was noted all the same"
    with pytest.raises(SystemExit):
        cli.main(["ssh", "certificate", "id.pub", "--subject", "ana"])
    assert "--login" in capsys.readouterr().err


def test_certificates_of_others_are_revoked_by_their_authority(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "revoke", "4711", "--ca", "id.pub")
    assert found == {"serial": 4711, "authorities": [read_line(Path("id.pub").read_text()).fingerprint]}
    assert "was not issued here" in said(capsys, "revoke", "4711")
    assert "a serial is a number" in failed(capsys, "revoke", "x")
    assert "not 0" in failed(capsys, "revoke", "0")


def test_a_key_is_registered_shown_and_revoked(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = run(
        capsys, "key", "add", "id.pub", "--subject", "ana", "--group", "dba", "--login", "deploy", "--for", "7d"
    )
    key = read_line(Path("id.pub").read_text())
    assert (entry["fingerprint"], entry["proof"], entry["key"]) == (key.fingerprint, key.proof, key.line)
    assert (entry["note"], entry["logins"], entry["used"]) == ("someone@somewhere", ["deploy"], None)
    assert run(capsys, "key", "show", entry["id"]) == run(capsys, "key", "show", "./id.pub") == entry
    assert run(capsys, "key", "list") == [entry]
    assert key.fingerprint in said(capsys, "key", "list")
    assert "last used  never" in said(capsys, "key", "show", entry["id"])
    assert "is registered as" in failed(capsys, "key", "add", "id.pub", "--subject", "bob")
    assert "is revoked (since" in said(capsys, "key", "revoke", "id.pub")
    assert run(capsys, "key", "list", "--subject", "ana")[0]["state"] == "revoked"
    assert "take another key" in failed(capsys, "key", "add", "id.pub", "--subject", "ana")
    assert "no such key" in failed(capsys, "key", "show", "zzz")


def test_a_key_from_standard_input_and_its_longest_time(
    house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("id.pub").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert "at most 30 days" in failed(capsys, "key", "add", "-", "--subject", "ana", "--for", "31d")
    with Path("id.pub").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert run(capsys, "key", "add", "-", "--subject", "ana")["logins"] == ["*"]


def test_authorities_are_shown_as_they_are_used(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = AuthorityFiles.of(house / ".gatecast")
    found = run(capsys, "ca", "show")
    assert found["user"] == {"fingerprint": files.user_ca().fingerprint, "key": files.user_ca().public.line}
    line = f"@cert-authority gate.example.com,web {files.host_ca().public.line}"
    assert [one["known_hosts"] for one in found["host"]] == [line]
    assert set(run(capsys, "ca", "show", "--user")) == {"user"}
    text = said(capsys, "ca", "show", "--host", "--hosts", "*.prod")
    rows = [row for row in text.splitlines() if not row.startswith("#")]
    assert rows == [f"@cert-authority *.prod {files.host_ca().public.line} gatecast-host-ca"]
    assert "PRIVATE" not in text
    assert "patterns with commas" in failed(capsys, "ca", "show", "--hosts", "a b")


@pytest.mark.parametrize("subject", ["a", "x" * NAME_LIMIT])
def test_a_token_fits_the_password_prompt_of_openssh(tmp_path: Path, subject: str) -> None:
    """A JWT often does not; a token is an id and a secret, and grows with nobody's name or groups."""
    groups = [f"group-{number}" for number in range(500)]
    token = commands.token_issue(tmp_path / "g.db", subject, groups=groups)["token"]
    assert len(token.encode()) == 58 < OPENSSH_PROMPT_LIMIT


@pytest.mark.peer
def test_sshd_and_ssh_take_what_ca_show_prints(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An sshd that trusts our user CA lets our certificate in; ssh that trusts our host CA believes our host key's."""
    files = AuthorityFiles.of(house / ".gatecast")
    rows = {
        name: [row for row in said(capsys, "ca", "show", f"--{name}").splitlines() if not row.startswith("#")]
        for name in ("user", "host")
    }
    (house / "trusted").write_text(rows["user"][0] + "\n")
    (house / "known_hosts").write_text(rows["host"][0] + "\n")
    host = KeyPair(files.host_key)
    certificate = files.host_ca().sign_host(read_line(host.public.read_text()), ["gate.example.com"])
    (house / "host-cert.pub").write_text(certificate.line + "\n")
    settings = {
        "HostKey": str(host.file),
        "HostCertificate": str(house / "host-cert.pub"),
        "TrustedUserCAKeys": str(house / "trusted"),
    }
    with ssh_server(settings) as server:
        said(capsys, "certificate", "id.pub", "--subject", "ana", "--login", server.user, "--out", "id-cert.pub")

        def connect(name: str) -> subprocess.CompletedProcess[str]:
            command = [
                program("ssh", "openssh-client"), "-F", "none", "-p", str(server.port), "-i", str(house / "id"),
                "-o", f"UserKnownHostsFile={house / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes",
                "-o", "GlobalKnownHostsFile=none", "-o", f"HostKeyAlias={name}", "-o", "BatchMode=yes",
                "-o", "IdentitiesOnly=yes", f"{server.user}@{server.host}", "echo it works",
            ]  # fmt: skip
            return subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, env=client_environment(house)
            )

        done = connect("gate.example.com")
        assert done.stdout == "it works\n", f"{done.stderr}\n{server.log}"
        assert "ID ana (serial" in server.log
        assert connect("other.example.com").returncode == 255, "the host certificate is for one name"
