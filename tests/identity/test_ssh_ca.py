"""The authorities' keys: made once, private, shared by processes; what they refuse to sign."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from proxy.core.errors import ConfigError
from proxy.core.parties import Identity
from proxy.identity import ssh_ca
from proxy.identity.ssh_ca import (
    COMMAND_LIMIT,
    KEY_ID_LIMIT,
    NAME_LIMIT,
    VALID_LIMIT_SECONDS,
    Authority,
    AuthorityFiles,
    load_authority,
)
from proxy.identity.ssh_certificate import PRINCIPALS_LIMIT, read_key, read_line
from proxy.ssh_sections import CERTIFICATE_LIMIT_SECONDS
from tests.identity.ssh_kit import blob_of, make_rsa, public_of, text, write_private

KEY = public_of(ed25519.Ed25519PrivateKey.generate())
ANA = Identity("ana")


def authority() -> Authority:
    return Authority(ed25519.Ed25519PrivateKey.generate())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    files = AuthorityFiles.of(tmp_path / "state")
    assert not files.directory.exists()
    user, host = files.user_ca(), files.host_ca()
    assert user.public != host.public
    assert files.user_ca().public == user.public
    assert mode_of(files.directory) == 0o700
    assert {mode_of(path) for path in files.directory.iterdir() if path.suffix != ".pub"} == {0o600}
    line = (files.directory / "user_ca.pub").read_text()
    assert read_line(line).blob == user.public.blob
    assert line.endswith(" gatecast user CA\n")
    assert load_authority(files.host_key).public not in (user.public, host.public)
    (files.directory / "user_ca.pub").unlink()
    files.user_ca()
    assert (files.directory / "user_ca.pub").read_text() == line


def test_processes_that_race_use_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from proxy.identity.ssh_ca import AuthorityFiles;"
        "sys.stdin.readline(); print(AuthorityFiles.of(Path(sys.argv[1])).user_ca().fingerprint)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0].strip() for process in started}
    assert said == {AuthorityFiles.of(tmp_path).user_ca().fingerprint}
    assert sorted(path.name for path in (tmp_path / "ssh").iterdir()) == ["user_ca", "user_ca.pub"]


def test_who_comes_second_uses_the_first_one_s_key(tmp_path: Path) -> None:
    ssh_ca._place(tmp_path / "key", b"first", 0o600)
    ssh_ca._place(tmp_path / "key", b"second", 0o600)
    assert (tmp_path / "key").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_keys_of_others_are_loaded(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    openssh = write_private(tmp_path / "openssh", key)
    pem = tmp_path / "pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem.chmod(0o600)
    assert load_authority(openssh).fingerprint == load_authority(pem).fingerprint == public_of(key).fingerprint


def test_keys_that_are_not_taken(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()

    def why(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_authority(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value)

    path = write_private(tmp_path / "key", key, mode=0o640)
    assert "others may read the key" in why(path)
    assert "No such file" in why(tmp_path / "none")
    path.chmod(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, BestAvailableEncryption(b"CANARY")))
    assert "has a passphrase" in why(path)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"CANARY")))
    assert "has a passphrase" in why(path)
    path.write_bytes(b"CANARY")
    assert "holds no private key" in why(path)
    assert "CANARY" not in why(path)
    path.write_bytes(b"x" * 40_000)
    assert "longer than" in why(path)
    other = x25519.X25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert "does not sign" in why(path)
    write_private(tmp_path / "strong", make_rsa(2048))
    assert load_authority(tmp_path / "strong").public.kind == "ssh-rsa"
    weak = tmp_path / "weak"
    weak.write_bytes(make_rsa(1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    weak.chmod(0o600)
    assert "weak-key" in why(weak)


def test_host_certificates_are_for_names() -> None:
    made = authority().sign_host(KEY, ["db1", "db1.example.com", "db1"])
    assert (made.type, made.principals, made.key_id) == (2, ("db1", "db1.example.com"), "db1")
    assert made.extensions == made.critical == {}
    for names in ([], ["*"], ["*.example.com"], ["db?"], [""], ["a,b"], ["a\nb"], [" a"]):
        with pytest.raises(ConfigError):
            authority().sign_host(KEY, names)


def test_limits() -> None:
    ours = authority()
    for size in (NAME_LIMIT - 1, NAME_LIMIT):
        assert ours.sign_user(KEY, ANA, logins=["a" * size]).principals == ("a" * size,)
    with pytest.raises(ConfigError):
        ours.sign_user(KEY, ANA, logins=["a" * (NAME_LIMIT + 1)])
    many = [f"u{n}" for n in range(PRINCIPALS_LIMIT + 1)]
    assert len(ours.sign_user(KEY, ANA, logins=many[:-1]).principals) == PRINCIPALS_LIMIT
    with pytest.raises(ConfigError, match="at most 256"):
        ours.sign_user(KEY, ANA, logins=many)
    assert ours.sign_user(KEY, ANA, logins=["a"], key_id="k" * KEY_ID_LIMIT).key_id == "k" * KEY_ID_LIMIT
    for key_id in ("k" * (KEY_ID_LIMIT + 1), "a\nb", "a\x1b[2J"):
        with pytest.raises(ConfigError, match="key id"):
            ours.sign_user(KEY, ANA, logins=["a"], key_id=key_id)
    assert ours.sign_user(KEY, ANA, logins=["a"], force_command="c" * COMMAND_LIMIT).critical
    for command in ("", "a\0b", "c" * (COMMAND_LIMIT + 1)):
        with pytest.raises(ConfigError, match="forced command"):
            ours.sign_user(KEY, ANA, logins=["a"], force_command=command)
    for seconds in (0.0, -1.0, float("nan"), float("inf"), VALID_LIMIT_SECONDS + 1):
        with pytest.raises(ConfigError):
            ours.sign_user(KEY, ANA, logins=["a"], valid_seconds=seconds)
    assert VALID_LIMIT_SECONDS == CERTIFICATE_LIMIT_SECONDS, "of the configuration"
    crowd = Identity("ana", frozenset(f"group-{n:0200}" for n in range(500)))
    with pytest.raises(ConfigError, match=r"cannot be made \(too-long"):
        ours.sign_user(KEY, crowd, logins=["a"])


def test_serials_differ() -> None:
    ours = authority()
    assert len({ours.sign_user(KEY, ANA, logins=["a"]).serial for _ in range(50)}) == 50


def test_fido_keys_get_no_certificate() -> None:
    sk = read_key(
        text("sk-ssh-ed25519@openssh.com") + text(blob_of(ed25519.Ed25519PrivateKey.generate())[-32:]) + text("ssh:")
    )
    with pytest.raises(ConfigError, match="register the key"):
        authority().sign_user(sk, ANA, logins=["a"])
