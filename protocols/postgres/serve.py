"""One user of PostgreSQL: greet, identify, open the session, dial, relay, clean up.

Two tasks relay, one each way, over one Conversation. The way up stops where a command is held: that await is the
back-pressure; the way back goes on. What the user reads of trouble is a PostgreSQL error: FATAL before the
session runs and at its end, ERROR in it. Nothing is decided here.

Gate.settings read here: login_seconds, query_limit, drain; login.py names its own. Gate.shared keeps cancel keys
and catalogues. Source: PostgreSQL 18 docs 54.2; postgres note 2 to 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from protocols.postgres import dial as dialling
from protocols.postgres import startup
from protocols.postgres.cancels import LONG_SECRET_BYTES, SECRET_BYTES, cancel_keys
from protocols.postgres.login import HOW_TO_LOG_IN, INVALID_AUTHORIZATION, authenticate, greet
from protocols.postgres.relay import Relay
from protocols.postgres.wording import fatal, notice, option_settings, options_setting, without_own
from protocols.postgres.world import Worlds
from proxy.core.errors import LoginRefused, PeerError, Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import Command, Frame
from proxy.core.gate import Gate, Pending
from proxy.core.parties import Credential, Identity, Target
from proxy.core.peers import peers_of
from proxy.core.session import OnHold, Session
from proxy.core.stream import Stream
from proxy.core.writers import UserWriter
from recorder.tape import OUT, Kind

LOGIN_SECONDS: Final = 60.0  # PostgreSQL's authentication_timeout
CLOSE_SECONDS: Final = 10.0
HEAR_SECONDS: Final = 0.3  # from a cancel to the answer of what it hit
STOP_TRIES: Final = 3
STOP_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end; never raises but CancelledError."""
    log = _log.bind(peer=user.info("peer"))
    try:
        await _serve(user, gate, log)
    except LoginRefused as refused:
        log.warning("login refused", reason=refused.text)
        await _say(user, fatal("28P01", refused.text, hint=refused.hint or HOW_TO_LOG_IN))
    except UserPeerError as error:
        log.warning("user broke the protocol or the connection", error=str(error))
        await _say(user, fatal(error.code or "08P01", str(error)))
    except EOFError as error:
        why = error.args[0] if error.args and isinstance(error.args[0], str) else "end of file"
        log.info("user went away before logging in", reason=why)
    except TimeoutError:
        log.warning("login took too long")
        await _say(user, fatal("57014", "canceling authentication due to timeout"))
    finally:
        await asyncio.shield(user.close())


async def _serve(user: Stream, gate: Gate, log: Any) -> None:
    keys = cancel_keys(gate.shared, gate.clock)
    async with asyncio.timeout(float(gate.settings.get("login_seconds", LOGIN_SECONDS))):
        message = await greet(user, gate.settings)
        if message is None:
            return
        if isinstance(message, startup.CancelRequest):
            found = await keys.cancel(message.pid, message.secret, str(user.info("peer")))
            log.info("cancel request", known=found)
            return
        if gate.settings.get("refuse"):
            raise UserPeerError(str(gate.settings["refuse"]), "53300")
        identity = await authenticate(user, gate, message)
    log = log.bind(identity=identity.display)
    target = _target(gate, message.parameters)
    log = log.bind(target=target.name)
    await user.write(startup.encode_auth(startup.AUTH_OK))
    try:
        tape = gate.recorder.open(
            protocol="postgres",
            identity=_identity_map(identity),
            target=target.name,
            mode=target.recording,
            run=_shown(options_setting(message.parameters, "gatecast.run") or ""),
            more=_described(message.parameters, target, user),
            recipients=target.encrypt_to,
        )
    except TapeError as error:
        log.error("no tape, no session", error=str(error))
        await _say(user, fatal("58030", "the session cannot be recorded, so it is not opened"))
        return
    session = Session(gate, identity, target, tape)
    log = log.bind(session=session.id)
    await _run(user, gate, session, message, log)


async def _run(user: Stream, gate: Gate, session: Session, message: startup.StartupMessage, log: Any) -> None:
    """Run an opened session; closes its tape whatever happens."""
    reason = "failed"
    last = b""
    try:
        reason, last = await _connect_and_relay(user, gate, session, message, log)
    except TapeError as error:
        log.error("recording failed, the session ends", error=str(error))
        reason, last = f"recording failed: {error}", fatal("58030", "the session can no longer be recorded, so it ends")
    except PeerError as error:
        log.info("session ended by a peer", error=str(error))
        reason = str(error)
        if isinstance(error, UserPeerError):
            last = fatal(error.code or "08P01", str(error))
        else:
            last = fatal(error.code or "08006", str(error))
    except Exception:  # a bug of ours or a service's: the session ends, and whoever runs serve() logs it
        reason, last = "internal error", fatal("XX000", "internal error of the gateway; the session ends")
        raise
    except asyncio.CancelledError:
        reason, last = "terminated", fatal("57P01", "terminating connection due to administrator command")
        raise
    finally:
        await asyncio.shield(_finish(user, session, reason, last, log))


async def _finish(user: Stream, session: Session, reason: str, last: bytes, log: Any) -> None:
    """Tape the last word if the tape still takes it, say it, and close the tape."""
    if last:
        with contextlib.suppress(TapeError):
            session.tape.append(OUT, Kind.WIRE, last)
            await session.tape.written()
        await _say(user, last)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await session.close("closed" if reason in ("", "terminated") else "failed", reason)
    except (TapeError, TimeoutError) as error:
        log.error("the tape could not be closed", error=str(error))
    log.info("session closed", reason=reason or "done")


async def _connect_and_relay(
    user: Stream, gate: Gate, session: Session, message: startup.StartupMessage, log: Any
) -> tuple[str, bytes]:
    """Returns (why it ended, '' for a normal end; the last message for the user)."""
    target, parameters = session.target, message.parameters
    intent = options_setting(parameters, "gatecast.intent")
    if intent:
        session.intent(intent)
    replication = parameters.get("replication", "").lower() not in ("", "false", "off", "no", "0")

    async def on_hold(pending: Pending) -> None:
        text = f'connection held by rule "{pending.hold.rule}": approval {pending.id} is pending'
        writer = UserWriter(user, session)
        writer.send(None, Frame(notice(text), by_gate=True))
        await writer.flush()

    try:
        await _open(user, session, _opening(target, parameters, replication), on_hold)
    except Refused as refused:
        log.warning("session refused", rule=refused.deny.rule)
        text = f'access to "{target.name}" denied by rule "{refused.deny.rule}": {refused.deny.reason}'
        return f"refused by {refused.deny.rule}", fatal(INVALID_AUTHORIZATION, text)
    await session.tape.commit()
    limit = target.settings.get("max_connections")
    limit = limit if isinstance(limit, int) else None
    async with peers_of(gate.shared).place(f"postgres/{target.name}", limit) as free:
        if not free:
            log.warning("too many connections to the target", limit=limit)
            return "too many connections", fatal("53300", f'too many connections to "{target.name}"')
        return await _dial_and_relay(user, gate, session, message, replication, log)


async def _open(user: Stream, session: Session, commands: list[Command], on_hold: OnHold) -> None:
    """Decide the session's opening; a user who leaves meanwhile takes back what is held. Raises Refused, TapeError."""
    failure: Exception | None = None

    async def watch() -> None:
        await user.gone()
        session.withdraw()

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        try:
            for command in commands:
                await session.decide(command, on_hold)
        except Exception as error:  # out of the group as it is, not in an ExceptionGroup
            failure = error
        watching.cancel()
    if failure is not None:
        raise failure


async def _dial_and_relay(
    user: Stream, gate: Gate, session: Session, message: startup.StartupMessage, replication: bool, log: Any
) -> tuple[str, bytes]:
    target, parameters = session.target, message.parameters
    key_bytes = LONG_SECRET_BYTES if message.version >= startup.PROTOCOL_3_2 else SECRET_BYTES
    worlds = _worlds(gate)
    try:
        credential = await gate.credentials.get(session.identity, target)
        link = await dialling.dial(target, credential, _target_parameters(parameters, target))
    except dialling.TargetStartupError as error:
        return "refused by the target", fatal(error.code, str(error), more=error.fields)
    except TargetPeerError as error:
        log.warning("target cannot be reached", error=str(error))
        return "no target", fatal(error.code or "08004", str(error))
    log.info("session opened")
    try:
        world = await worlds.world(target, credential)
        relay = Relay(user, gate, session, link, world, parameters, replication, log)
        return await _with_cancel_key(gate, relay, link, target, credential, key_bytes)
    finally:
        await asyncio.shield(link.stream.close())


async def _with_cancel_key(
    gate: Gate, relay: Relay, link: dialling.TargetLink, target: Target, credential: Credential, key_bytes: int
) -> tuple[str, bytes]:
    keys = cancel_keys(gate.shared, gate.clock)

    under_way = False

    async def forward() -> None:
        nonlocal under_way
        if relay.withdraw() or not relay.busy or not link.secret:
            return  # held, or idle: a late cancel must not hit the next statement
        if under_way:
            return  # one at a time: a flood of them is no flood of connections to the target
        under_way = True
        try:
            with contextlib.suppress(TargetPeerError):  # the user is not told of a cancel's fate either way
                await dialling.cancel(target, credential, link.pid, link.secret, link.address)
        finally:
            under_way = False

    secret = keys.add(link.pid, forward, key_bytes) if link.secret else b""
    try:
        return await relay.run(secret)
    finally:
        if secret:
            keys.remove(link.pid, secret)
            if relay.abandoned:
                await asyncio.shield(_stop(link, forward))


async def _stop(link: dialling.TargetLink, cancel: Callable[[], Awaitable[None]]) -> None:
    """Cancel what runs for nobody; again where nothing is heard of it: it had not begun when the cancel came."""
    with contextlib.suppress(TimeoutError, TargetPeerError):
        async with asyncio.timeout(STOP_SECONDS):
            for _ in range(STOP_TRIES):
                await cancel()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEAR_SECONDS):
                        await link.stream.read(1)
                        return


def _target(gate: Gate, parameters: Mapping[str, str]) -> Target:
    """Find the target by the name in front of the slash. Raises UserPeerError (3D000)."""
    user = parameters.get("user", "")
    if not user:
        raise UserPeerError("no PostgreSQL user name specified in startup packet", INVALID_AUTHORIZATION)
    # pg_basebackup and pg_receivewal cannot name a database: PGOPTIONS="-c gatecast.target=NAME" does it for them.
    asked = options_setting(parameters, "gatecast.target") or parameters.get("database") or user
    name, _, database = asked.partition("/")
    target = gate.targets.find(name)
    if target is None or target.protocol != "postgres":
        raise UserPeerError(f'gatecast has no target "{name}"; connect with dbname=TARGET or TARGET/DATABASE', "3D000")
    return dataclasses.replace(target, database=database or target.database or name)


def _target_parameters(parameters: Mapping[str, str], target: Target) -> dict[str, str]:
    """The start-up parameters for the target: the user's own, but for who and where."""
    passed = {key: value for key, value in parameters.items() if key not in ("user", "database")}
    if "options" in passed:
        passed["options"] = without_own(passed["options"])
        if not passed["options"]:
            del passed["options"]
    return {"user": "", "database": target.database, **passed}


def _opening(target: Target, parameters: Mapping[str, str], replication: bool) -> list[Command]:
    text = f"connect to {target.name}/{_shown(target.database)}"
    facts: dict[str, Any] = {"application_name": _shown(parameters.get("application_name", ""))}
    commands = [Command("postgres", "CONNECT", "session", text, facts=facts)]
    if replication:
        facts = {**facts, "replication": True, "statements": (), "resolved": {}}
        commands.append(Command("postgres", "REPLICATION", "transfer", f"{text} for replication", facts=facts))
    # What a SET would be asked about is asked about here too; harmless settings pass as session business.
    settings = option_settings(parameters)
    settings.update({name.lower(): value for name, value in parameters.items() if name.lower() not in _NOT_SETTINGS})
    for name, value in settings.items():
        if not name.startswith("gatecast."):
            name, value = _shown(name), _shown(value)
            facts = {"setting": (name, value), "statements": (), "resolved": {}}
            commands.append(Command("postgres", "SET", "session", f"SET {name} = {value!r}", facts=facts))
    return commands


_NOT_SETTINGS: Final = frozenset(("user", "database", "replication", "options"))


def _identity_map(identity: Identity) -> dict[str, Any]:
    return {
        "subject": identity.subject,
        "agents": list(identity.agents),
        "groups": sorted(identity.groups),
        "issuer": identity.issuer,
        "proof": identity.proof,
    }


def _described(parameters: Mapping[str, str], target: Target, user: Stream) -> dict[str, Any]:
    return {
        "database": _shown(target.database),
        "login": _shown(parameters.get("user", "")),
        "application_name": _shown(parameters.get("application_name", "")),
        "peer": str(user.info("peer")),
        "tls": str(user.info("version") or ""),
    }


def _shown(text: str) -> str:
    """A start-up parameter for rules, tapes and people: what is not UTF-8 is U+FFFD. The target gets the bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _worlds(gate: Gate) -> Worlds:
    worlds: Worlds = gate.shared.setdefault("postgres.worlds", Worlds(gate.reader))
    return worlds


async def _say(user: Stream, data: bytes) -> None:
    """A last word, if the user still listens."""
    with contextlib.suppress(PeerError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await user.write(data)
