"""Record sessions of real clients through the real gateway, and run them again on another database."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.reexecution.command import Options, against
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.verify import verify
from tests.fakes import Rule, allow_all
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway

CONFIG = """\
state: state
listeners: [{{name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true}}]
targets:
  - {{name: shop, host: 127.0.0.1, port: {port}, database: {database}, credential: {{user: postgres}}}}
  - name: lab
    host: {host}
    port: {port}
    database: {sandbox}
    credential: {{user: postgres}}
    sslmode: disable
    recording: written
    sandbox: true
rules: []
"""


@dataclass
class Bench:
    """A recorded session, and a sandbox to run it on."""

    server: PostgresServer
    sandbox: str
    folder: Path
    tape: Path
    config: Path

    def run(self, target: str = "lab", **options: Any) -> tuple[int, dict[str, Any]]:
        """Run it again; returns the exit code and the report."""
        out = io.StringIO()
        code = against(self.config, self.tape, target, Options(as_json=True, **options), out)
        return code, json.loads(out.getvalue())

    def text(self, **options: Any) -> tuple[int, str]:
        """Run it again; returns the exit code and what an operator reads."""
        out = io.StringIO()
        return against(self.config, self.tape, "lab", Options(**options), out), out.getvalue()

    def change(self, text: str) -> None:
        """Change the sandbox."""
        self.server.run(text, dbname=self.sandbox)

    def own_tapes(self) -> list[TapeReader]:
        """The tapes of the re-executions so far, all of them verified."""
        key = SealKey.load(self.folder / "state" / "seal.key")
        paths = sorted((self.folder / "state" / "tapes").rglob("*.gct"))
        for path in paths:
            report = verify(path, key.public_keys())
            assert report.exit_code == 0, report
        return [TapeReader(path) for path in paths]


@contextmanager
def recorded(
    server: PostgresServer,
    folder: Path,
    schema: str,
    session: Callable[[Gateway], object],
    rule: Rule = allow_all,
    **services: Any,
) -> Iterator[Bench]:
    """Record what session does on a database of the schema; the sandbox is another one of the same schema."""
    with server.database("recording", schema) as database, server.database("sandbox", schema) as sandbox:
        with gateway(server.port, rule, database=database, **services) as gate:
            session(gate)
            while not gate.idle():
                pass
            tapes = gate.tape_files()
            assert len(tapes) == 1
            tape = folder / tapes[0].name
            tape.write_bytes(tapes[0].read_bytes())
        config = folder / "gatecast.yaml"
        config.write_text(CONFIG.format(port=server.port, database=database, sandbox=sandbox, host=server.host))
        (folder / "state").mkdir(mode=0o700)
        yield Bench(server, sandbox, folder, tape, config)


def states(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(state, text) of each command of a report."""
    return [(each["state"], " ".join(each["text"].split())) for each in report["commands"]]


def of(report: dict[str, Any], text: str) -> dict[str, Any]:
    """The one command of a report whose text begins so."""
    found = [each for each in report["commands"] if each["text"].startswith(text)]
    assert len(found) == 1, found
    one: dict[str, Any] = found[0]
    return one
