"""Static credentials: read where the configuration points, again when it changes, and never told to a user."""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.core import gate
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Identity, Target
from proxy.credentials.static import SECRET_LIMIT, StaticCredential, StaticCredentials

CANARY = "canary-9b1d-s3cret"
ALICE = Identity("alice")
PG = Target("orders", "postgres")


def get(credentials: StaticCredentials, target: Target = PG) -> Credential:
    return asyncio.run(credentials.get(ALICE, target))


def password(credentials: StaticCredentials) -> str:
    secret = get(credentials).secret
    assert secret is not None
    return secret.reveal()


def refused(credentials: StaticCredentials, target: Target = PG) -> str:
    """Return what the log says; what the user reads is checked here."""
    with capture_logs() as logs, pytest.raises(TargetPeerError) as caught:
        get(credentials, target)
    assert str(caught.value) == (f"the gateway has no usable credential for target {target.name}; ask its operator")
    everything = "".join(traceback.format_exception(caught.value)) + repr(logs)
    assert CANARY not in everything
    return str(logs[-1]["why"])


def by_file(path: Path) -> StaticCredentials:
    return StaticCredentials({"orders": StaticCredential("app", password_file=path)}, {})


def secret_file(path: Path, data: bytes = CANARY.encode(), mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_it_is_what_a_gate_asks_for() -> None:
    service: gate.Credentials = StaticCredentials({})
    assert service is not None


def test_from_the_environment_at_use() -> None:
    environment = {"PW": CANARY}
    credentials = StaticCredentials({"orders": StaticCredential("app", password_env="PW")}, environment)
    found = get(credentials)
    assert found.user == "app"
    assert found.secret is not None
    assert found.secret.reveal() == CANARY
    assert CANARY not in repr(found)
    environment["PW"] = "another"
    assert password(credentials) == "another"
    del environment["PW"]
    assert refused(credentials) == "the environment variable PW: it is missing or empty"
    environment["PW"] = CANARY + "\udcff"
    assert refused(credentials) == "the environment variable PW: it is not UTF-8"


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        (b"pw", "pw"),
        (b"pw\n", "pw"),
        (b"pw\r\n", "pw"),
        (b"pw\n\n", "pw\n"),
        (b" pw \n", " pw "),
        ("pä".encode(), "pä"),
    ],
)
def test_from_a_file(tmp_path: Path, data: bytes, secret: str) -> None:
    assert password(by_file(secret_file(tmp_path / "pw", data))) == secret


def test_a_rotated_file_counts_at_the_next_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = secret_file(tmp_path / "pw", b"one")
    credentials = by_file(file)
    assert password(credentials) == "one"
    secret_file(tmp_path / "next", b"two").replace(file)
    assert password(credentials) == "two"
    # Not changed: it is not read again, which a file of the same mark with other bytes shows.
    status = file.stat()
    file.write_bytes(b"TWO")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert password(credentials) == "two"
    credentials.configure({"orders": StaticCredential("app", password_file=file)})
    assert password(credentials) == "TWO"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "missing or empty"),
        (b"\n", "missing or empty"),
        (b"x" * (SECRET_LIMIT + 1), "longer than"),
        (CANARY.encode() + b"\0", "NUL"),
        (CANARY.encode() + b"\xff", "not UTF-8"),
    ],
)
def test_files_that_are_no_secret(tmp_path: Path, data: bytes, why: str) -> None:
    assert why in refused(by_file(secret_file(tmp_path / "pw", data)))


def test_the_longest_secret(tmp_path: Path) -> None:
    assert len(password(by_file(secret_file(tmp_path / "pw", b"x" * SECRET_LIMIT + b"\n")))) == SECRET_LIMIT


def test_what_is_missing(tmp_path: Path) -> None:
    assert "No such file" in refused(by_file(tmp_path / "none"))
    assert "directory" in refused(by_file(tmp_path))
    assert refused(StaticCredentials({}), Target("other", "postgres")) == "no credential is configured"


def test_without_a_password() -> None:
    assert get(StaticCredentials({"orders": StaticCredential("app")})) == Credential("app")


def test_a_certificate(tmp_path: Path) -> None:
    certificate, key = secret_file(tmp_path / "c.pem", mode=0o644), secret_file(tmp_path / "k.pem")
    source = StaticCredential("app", certificate_file=certificate, key_file=key)
    found = get(StaticCredentials({"orders": source}))
    assert (found.certificate_file, found.key_file) == (str(certificate), str(key))
    key.unlink()
    assert "k.pem cannot be read" in refused(StaticCredentials({"orders": source}))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1)])
def test_a_file_that_others_may_read_is_told_once(tmp_path: Path, mode: int, warned: int) -> None:
    file = secret_file(tmp_path / "pw", mode=mode)
    source = StaticCredential("app", password_file=file)
    credentials = StaticCredentials({"orders": source, "other": source}, {})
    with capture_logs() as logs:
        get(credentials)
        get(credentials, Target("other", "postgres"))
    assert [entry["event"] for entry in logs] == ["credential-file-open-to-others"] * warned


def test_references_that_contradict() -> None:
    with pytest.raises(ConfigError):
        StaticCredential("app", password_env="A", password_file=Path("b"))
    with pytest.raises(ConfigError):
        StaticCredential("app", passphrase_env="A", passphrase_file=Path("b"), key_file=Path("k"))
    for lonely in ({"certificate_file": Path("c")}, {"passphrase_env": "A"}, {"passphrase_file": Path("p")}):
        with pytest.raises(ConfigError, match="go with a key"):
            StaticCredential("app", **lonely)  # type: ignore[arg-type]


def test_a_key_with_a_passphrase_beside_a_password(tmp_path: Path) -> None:
    key, phrase = secret_file(tmp_path / "id"), secret_file(tmp_path / "phrase", b"open sesame\n")
    source = StaticCredential("root", password_env="PW", key_file=key, passphrase_file=phrase)
    found = get(StaticCredentials({"orders": source}, {"PW": CANARY}))
    assert (found.key_file, found.certificate_file) == (str(key), None)
    assert found.secret is not None
    assert found.passphrase is not None
    assert (found.secret.reveal(), found.passphrase.reveal()) == (CANARY, "open sesame")
    assert "sesame" not in repr(found)
    by_name = StaticCredential("root", key_file=key, passphrase_env="PHRASE")
    credentials = StaticCredentials({"orders": by_name}, {"PHRASE": CANARY})
    phrase_found = get(credentials).passphrase
    assert phrase_found is not None
    assert phrase_found.reveal() == CANARY
    assert (
        refused(StaticCredentials({"orders": by_name}, {})) == "the environment variable PHRASE: it is missing or empty"
    )


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o644, 1)])
def test_a_key_that_others_may_read_is_told(tmp_path: Path, mode: int, warned: int) -> None:
    source = StaticCredential("root", key_file=secret_file(tmp_path / "id", mode=mode))
    with capture_logs() as logs:
        get(StaticCredentials({"orders": source}, {}))
    assert [entry["event"] for entry in logs] == ["credential-file-open-to-others"] * warned
