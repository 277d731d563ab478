"""gatecast replay FILE --against TARGET: from the arguments to the exit code.

The target must say ``sandbox: true`` in gatecast.yaml: what was recorded is executed on it, writes too. It is logged
in to as the gateway does, with the credential of the configuration, so this runs where the gateway's files are.

Exit codes: 0 all that ran came out the same; 1 something differs; 2 something could not be replayed; an error is 1.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import secrets
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TextIO

import uvloop

from protocols.postgres.dial import TargetLoginError
from protocols.postgres.recorded import Opening, RecordedAnswers, Script
from protocols.postgres.sandbox import Sandbox
from proxy import __version__
from proxy.core.errors import ConfigError, GatecastError, TargetPeerError
from proxy.core.parties import Identity, Target
from proxy.credentials.static import StaticCredentials
from proxy.logging import configure
from proxy.policy.sql import SqlReader
from proxy.reexecution.emulate import Rollback
from proxy.reexecution.report import Report, exit_code
from proxy.reexecution.run import Plan, Run
from proxy.reexecution.trail import Trail
from proxy.sections import parse_seconds
from proxy.services import credentials_of, node_log_of
from proxy.snapshot import Snapshot, read_snapshot
from recorder.cipher import AuditorKey
from recorder.export import wall_time
from recorder.ledger import NodeLedger
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.tape import Recorder

TIMEOUT_LIMIT_SECONDS: Final = 86_400.0
KEY_BYTES: Final = 32  # of the run's hashes
# Reported by the server as they were: the same data is shown by them. All may be set at the start of a session.
_SHOWN_BY: Final = (
    "client_encoding", "DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings", "search_path",
    "extra_float_digits", "bytea_output",
)  # fmt: skip
# Of the recording's own start-up, what must not be asked of the sandbox.
_NOT_PASSED: Final = frozenset(("is_superuser", "session_authorization", "replication"))


class ReexecutionError(GatecastError):
    """The session cannot be run again; the text says why, or what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run again. first and last are numbers of commands; ignored are names of result columns."""

    first: int = 1
    last: int | None = None
    timeout_seconds: float = 60.0
    stop_at_first: bool = False
    rollback: bool = False
    dry_run: bool = False
    as_json: bool = False
    colour: bool = False
    ignored: frozenset[str] = frozenset()


def against_main(config: Path, tape: Path, given: Namespace, out: TextIO, keys: Sequence[AuditorKey] = ()) -> int:
    """Run by the arguments of the command line (arguments.py). Raises as against() does."""
    configure("error")  # what goes wrong is said once, at the end
    try:
        timeout_seconds = parse_seconds(given.timeout)
    except ValueError as error:
        raise ReexecutionError(f"--timeout {given.timeout}: {error}") from None
    options = Options(
        first=_number("--from", given.start) or 1,
        last=_number("--to", given.stop),
        timeout_seconds=timeout_seconds,
        stop_at_first=given.stop_at_first,
        rollback=given.rollback,
        dry_run=given.dry_run,
        as_json=given.json,
        colour=out.isatty() and not given.no_colour and not os.environ.get("NO_COLOR"),
        ignored=frozenset(given.ignore),
    )
    return against(config, tape, given.against, options, out, keys)


def _number(name: str, text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit()):
        raise ReexecutionError(f"{name} {text}: with --against it is the number of a command, as the report has them")
    return None if text is None else int(text)


def against(config: Path, tape: Path, name: str, options: Options, out: TextIO, keys: Sequence[AuditorKey] = ()) -> int:
    """Run a tape again on the target of that name (or name/database). Returns the exit code.

    keys: those that may be tried on an encrypted tape.

    Raises ConfigError, ReexecutionError, TargetPeerError, TapeError, OSError, FormatError.
    """
    if not 0 < options.timeout_seconds <= TIMEOUT_LIMIT_SECONDS:
        raise ReexecutionError("--timeout is above 0, at most a day")
    if options.first < 1 or (options.last is not None and options.last < options.first):
        raise ReexecutionError("--from and --to are numbers of commands, from 1 on, and --from is not behind --to")
    snapshot = read_snapshot(config, secrets.token_bytes(KEY_BYTES))
    target = sandbox_target(snapshot, name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_against(snapshot, TapeReader(tape, keys), TapeReader(tape, keys), target, options, out))


def sandbox_target(snapshot: Snapshot, name: str) -> Target:
    """Find the target, which must be a sandbox. Raises ConfigError with the line to add."""
    wanted, _, database = name.partition("/")
    target = snapshot.targets.get(wanted)
    if target is None:
        known = ", ".join(sorted(each.name for each in snapshot.loaded.config.targets if each.sandbox)) or "none"
        raise ConfigError(f"{snapshot.loaded.path}: there is no target {wanted}; sandboxes: {known}")
    index, section = next(
        (index, each) for index, each in enumerate(snapshot.loaded.config.targets) if each.name == wanted
    )
    if not section.sandbox:
        text = (
            f"target {wanted} is not a sandbox, and what was recorded would be executed on it; "
            f'if that is right, add to this target the line "sandbox: true"'
        )
        raise ConfigError(snapshot.loaded.document.error(("targets", index), text))
    return replace(target, database=database or target.database or target.name)


async def _against(
    snapshot: Snapshot, tape: TapeReader, again: TapeReader, target: Target, options: Options, out: TextIO
) -> int:
    """tape and again are the same one: each side of the conversation is read on its own."""
    said: Mapping[str, Any] = tape.header.map_
    if said.get("protocol") != "postgres":
        raise ReexecutionError(f"this is a session of {said.get('protocol')}: only PostgreSQL's can be run again")
    script = Script(tape.records())
    opening = script.opening
    _check(opening)
    reader = SqlReader()
    plan = Plan(secrets.token_bytes(KEY_BYTES), options.first, options.last, options.ignored)
    run = Run(script, RecordedAnswers(again.records()), reader, plan)
    if not await run.start():
        raise ReexecutionError("the session never got to its target: there is nothing to run")
    head: dict[str, Any] = {
        "session": tape.header.sid,
        "recorded_on": f"{said.get('target', '')} at {wall_time(tape.header.wall0_ns)}",
        "sandbox": f"{target.name}/{target.database}",
        "dry_run": options.dry_run,
        "rollback": options.rollback,
        "notes": [],
    }
    report = Report(out, as_json=options.as_json, colour=options.colour)
    if options.dry_run:
        report.begin(head)
        await _report(run, report, options)
        report.end(head, 0)
        return 0
    async with _sandbox(snapshot, target, start_parameters(opening, run.parameters), options) as sandbox:
        head["notes"] = _notes(run.parameters, sandbox.parameters, options)
        recipients = target.encrypt_to
        origin = snapshot.targets.get(str(said.get("target", "")))
        if tape.encrypted and not recipients and origin is not None:
            recipients = origin.encrypt_to  # what was secret there is no less so here
        trail = Trail(target, tape.header.sid, f"operator:{getpass.getuser()}", recipients, tape.encrypted)
        return await _run_on(snapshot, trail, run, sandbox, report, head, options)


async def _run_on(
    snapshot: Snapshot,
    trail: Trail,
    run: Run,
    sandbox: Sandbox,
    report: Report,
    head: dict[str, Any],
    options: Options,
) -> int:
    recorder = _recorder(snapshot)
    try:
        trail.open(recorder)
        failed = "interrupted"
        try:
            emulation = Rollback(sandbox, SqlReader()) if options.rollback else None
            if emulation is not None:
                await emulation.begin()
            run.connect(sandbox, trail, emulation)
            head["recorded_as"] = trail.sid
            report.begin(head)
            await _report(run, report, options)
            if emulation is not None:
                await emulation.end()
            failed = ""
        except TargetPeerError as error:
            failed = str(error)
            report.end(head, 1, failed)
            raise ReexecutionError(f"{head['sandbox']}: {error}") from error
        finally:
            await asyncio.shield(trail.close(failed))
    finally:
        await asyncio.to_thread(recorder.close)
    code = exit_code(report.states)
    report.end(head, code)
    return code


async def _report(run: Run, report: Report, options: Options) -> None:
    async with aclosing(run.entries()) as entries:
        async for entry in entries:
            report.entry(entry)
            if options.stop_at_first and entry.state == "different":
                return


def _check(opening: Opening) -> None:
    refused = opening.refused
    if refused is not None:
        raise ReexecutionError(f"the session was refused by {refused.rule}: there is nothing to run")
    if opening.replication:
        raise ReexecutionError("a replication session cannot be run again")


def start_parameters(opening: Opening, reported: Mapping[str, str]) -> dict[str, str]:
    """The start-up parameters for the sandbox: the recording's own, then how its server showed values.

    What the recorded server reported comes from its configuration, too (TimeZone, DateStyle), which is another here.
    """
    asked = {name: value for name, value in opening.parameters.items() if name.lower() not in _NOT_PASSED}
    lowered = {name.lower() for name in asked}
    for name in _SHOWN_BY:
        if name in reported and name.lower() not in lowered:
            asked[name] = reported[name]
    return asked


def _notes(recorded: Mapping[str, str], sandbox: Mapping[str, str], options: Options) -> list[str]:
    notes = []
    versions = [each.get("server_version", "unknown") for each in (recorded, sandbox)]
    if versions[0] != versions[1]:
        notes.append(f"recorded on PostgreSQL {versions[0]}, the sandbox is {versions[1]}")
    for name in _SHOWN_BY:
        if recorded.get(name) != sandbox.get(name):
            notes.append(f"{name} was {recorded.get(name)!r}, the sandbox has {sandbox.get(name)!r}")
    if options.rollback:
        notes.append("everything runs in one transaction, which is rolled back at the end")
    return notes


@asynccontextmanager
async def _sandbox(
    snapshot: Snapshot, target: Target, parameters: Mapping[str, str], options: Options
) -> AsyncIterator[Sandbox]:
    credentials = StaticCredentials(credentials_of(snapshot))
    try:
        credential = await credentials.get(Identity(f"operator:{getpass.getuser()}"), target)
        sandbox = await Sandbox.open(target, credential, parameters, options.timeout_seconds)
    except TargetLoginError as error:
        raise ReexecutionError(f"{target.name}: {error}: {error.reason}") from error
    except TargetPeerError as error:
        raise ReexecutionError(f"{target.name}: {error}") from error
    try:
        yield sandbox
    finally:
        await asyncio.shield(sandbox.close())


def _recorder(snapshot: Snapshot) -> Recorder:
    """A recorder beside the gateway's own, which may be running: tapes have names of their own."""
    loaded = snapshot.loaded
    config = loaded.config
    key = SealKey.load(loaded.state / config.recorder.key_file)
    node_log, boot = node_log_of(loaded), secrets.token_hex(8)
    return Recorder(
        loaded.state / config.recorder.directory,
        key,
        node=node_log.directory.name,
        boot=boot,
        ledger=NodeLedger(node_log, boot, __version__),
    )
