"""A gateway in a process of its own, for suites of others: ``python -m tests.postgres.run_gateway --target-port N``.

It changes nothing that a suite could see: everything is allowed, every database name is a target that leads to the
database of that name, and whoever knows the token is logged in at the target as the user that the connection names
(with --password, by that password). Reader, recorder and masks are the real ones; every session is recorded, and on
the way out every tape must verify. Clients that hold the GIL while they wait (psycopg's old cancel) cannot share a
process with the gateway, and a test-suite in another language has none to share.

Prints ``port PORT token TOKEN`` once it listens; ends at the end of its standard input or on SIGTERM, and then prints
``tapes COUNT bytes SIZE``. Never for use outside tests: it is a gate that is always open.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import ssl
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from proxy.core.errors import LoginRefused
from proxy.core.parties import Credential, Identity, Secret, Target
from tests.fakes import TOKEN, FakeIdentities
from tests.peers.certificates import Authority
from tests.postgres.gateway import gateway


class AnyoneWithToken(FakeIdentities):
    """Whoever has the token is who the connection says."""

    async def password(self, user: str, secret: str) -> Identity:
        if secret != TOKEN:
            raise LoginRefused("the token was not accepted")
        return replace(self.identity, subject=user)


@dataclasses.dataclass
class SameUser:
    """The target's user is the one that the connection named."""

    secret: Secret | None

    async def get(self, identity: Identity, target: Target) -> Credential:
        return Credential(identity.subject, self.secret)


@dataclasses.dataclass
class EveryDatabase:
    """Every name is a target: the database of that name."""

    host: str
    port: int
    recording: str = "written"

    def find(self, name: str) -> Target | None:
        settings: dict[str, object] = {"sslmode": "disable"}
        return Target(name, "postgres", host=self.host, port=self.port, database=name, settings=settings,
                      recording="durable" if self.recording == "durable" else "written")  # fmt: skip


def _tls() -> ssl.SSLContext:
    with tempfile.TemporaryDirectory() as folder:
        pair = Authority(Path(folder)).issue("localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_file, pair.key_file)
    return context


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.run_gateway", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 to listen on; 0 = a free one")
    parser.add_argument("--target-host", default="127.0.0.1")
    parser.add_argument("--target-port", type=int, required=True)
    parser.add_argument("--password", help="what every user logs in to the target with")
    parser.add_argument("--recording", choices=("written", "durable"), default="written")
    parser.add_argument("--tls", action="store_true", help="offer TLS, with a certificate made for the occasion")
    parser.add_argument("--no-verify", action="store_true", help="do not verify the tapes at the end")
    options = parser.parse_args()
    tls = _tls() if options.tls else None
    services: dict[str, Any] = {
        "targets": EveryDatabase(options.target_host, options.target_port, options.recording),
        "identities": AnyoneWithToken(),
        "credentials": SameUser(Secret(options.password) if options.password is not None else None),
    }
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with gateway(
        options.target_port, listen_port=options.port, tls=tls, verify_tapes=not options.no_verify, **services
    ) as running:
        print(f"port {running.port} token {TOKEN}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while sys.stdin.buffer.read(4096):
                pass
        tapes = running.tape_files()
        print(f"tapes {len(tapes)} bytes {sum(tape.stat().st_size for tape in tapes)}", flush=True)


if __name__ == "__main__":
    main()
