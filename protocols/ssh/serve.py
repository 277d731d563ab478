"""One user of SSH: greet, identify, open the session, dial, relay, clean up.

The user's name says which target is meant. A name that is none is that of a jump (jump.py): it may open connections
to targets only, each of which is served here again, over a channel. Trouble before the relay runs is told on what the
user starts (reception.py), the only text that every client shows; trouble in it, in a DISCONNECT.
Nothing is decided here.

Gate.settings read here: login_seconds, idle_seconds, refuse, ssh (see proxy/sections.py). Source: RFC 4253 11.1,
RFC 4254 5.1; ssh note 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fnmatch
from functools import lru_cache
from typing import Any, Final

import structlog

from protocols.ssh.commands import Conversation
from protocols.ssh.contents import content_for
from protocols.ssh.dial import dial
from protocols.ssh.jump import Jump
from protocols.ssh.login import UserLogin, split_name
from protocols.ssh.reception import BY_APPLICATION, Reception
from protocols.ssh.relay import Over, Relay
from protocols.ssh.transport import ChannelPipe, HostKey, ServerOptions, UserLeg, open_user
from proxy.core.doors import SshDoor
from proxy.core.errors import ConfigError, LoginRefused, PeerError, Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import Command
from proxy.core.gate import Gate
from proxy.core.parties import Identity, KeyLogin, Secret, Target
from proxy.core.peers import peers_of
from proxy.core.session import Session
from proxy.core.stream import Stream

LOGIN_SECONDS: Final = 60.0  # as protocols/postgres/serve.py; sshd's LoginGraceTime is 120
CLOSE_SECONDS: Final = 10.0
PROTOCOL_ERROR: Final = 2
NOT_AVAILABLE: Final = 7  # a failure; of code 11 some clients (asyncssh) show no text, as it is a normal end
TOO_MANY_CONNECTIONS: Final = 12
PROHIBITED: Final = 1  # RFC 4254 5.1
CONNECT_FAILED: Final = 2
HOST_KEYS_LIMIT: Final = 256  # kept: one a listener's key, and one a target's certificate

_log = structlog.get_logger(__name__)


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end; never raises but CancelledError."""
    log = _log.bind(peer=user.info("peer"))
    try:
        await _serve(user, gate, log)
    except LoginRefused as refused:
        log.warning("login refused", reason=refused.text)
    except UserPeerError as error:
        log.warning("user broke the protocol or the connection", error=str(error))
    except EOFError:
        log.info("user went away before logging in")
    except TimeoutError:
        log.warning("login took too long")
    finally:
        await asyncio.shield(user.close())


async def _serve(user: Stream, gate: Gate, log: Any) -> None:
    options = server_options(gate)
    login = UserLogin(gate, banner=options.banner)
    leg = await open_user(user, login, options)
    try:
        if gate.settings.get("refuse"):
            leg.disconnect(TOO_MANY_CONNECTIONS, str(gate.settings["refuse"]))
            return
        await serve_login(leg, login, gate, log)
    finally:
        await asyncio.shield(leg.close())


async def serve_login(leg: UserLeg, login: UserLogin, gate: Gate, log: Any) -> None:
    """Serve a user who has logged in."""
    proof = login.proof
    assert proof is not None, "a login without a proof"
    log = log.bind(identity=proof.identity.display, login=proof.how)
    name = split_name(login.user)
    target = gate.targets.find(name.target)
    if target is None or target.protocol != "ssh":
        await _serve_jump(leg, proof, gate, log, name.target if ":" in login.user else "")
    else:
        await serve_target(leg, name.login, target, proof, gate, log.bind(target=target.name))


async def _serve_jump(leg: UserLeg, proof: KeyLogin, gate: Gate, log: Any, named: str) -> None:
    async def serve_inner(pipe: ChannelPipe, login: UserLogin, target: Target, log: Any) -> None:
        inner = await open_user(pipe, login, server_options(gate, target.name))
        try:
            name = login.user.removesuffix(f":{target.name}")
            await serve_target(inner, name, target, proof, gate, log)
        finally:
            await asyncio.shield(inner.close())

    await Jump(leg, proof, gate, log, serve_inner, named).run()


async def serve_target(leg: UserLeg, login: str, target: Target, proof: KeyLogin, gate: Gate, log: Any) -> None:
    """Open the session of a user at a target, and run it."""
    target = dataclasses.replace(target, database=login or str(target.settings.get("login", "")))
    try:
        tape = gate.recorder.open(
            protocol="ssh",
            identity=_identity_map(proof.identity),
            target=target.name,
            mode=target.recording,
            more=_described(leg, target, proof),
            recipients=target.encrypt_to,
        )
    except TapeError as error:
        log.error("no tape, no session", error=str(error))
        leg.disconnect(NOT_AVAILABLE, "the session cannot be recorded, so it is not opened")
        return
    session = Session(gate, proof.identity, target, tape)
    log = log.bind(session=session.id)
    await _Connection(leg, session, proof, gate, log).run()


class _Connection:
    """One user at one target, from the opening of the tape to its end."""

    def __init__(self, leg: UserLeg, session: Session, proof: KeyLogin, gate: Gate, log: Any) -> None:
        self._leg = leg
        self._session = session
        self._proof = proof
        self._gate = gate
        self._log = log
        self._reception = Reception(leg, session, log)
        target = session.target
        self._conversation = Conversation(
            target, target.database, gate.shell, content_for(gate.shell), proof.permits, proof.force_command
        )

    async def run(self) -> None:
        """Run an opened session; closes its tape whatever happens."""
        over = Over("failed")
        try:
            over = await self._connect_and_relay()
        except TapeError as error:
            self._log.error("recording failed, the session ends", error=str(error))
            over = Over(f"recording failed: {error}")
            self._leg.disconnect(NOT_AVAILABLE, "the session can no longer be recorded, so it ends")
        except PeerError as error:
            self._log.info("session ended by a peer", error=str(error))
            fault = "the target's fault: " if isinstance(error, TargetPeerError) else ""
            over = Over(f"{fault}{error}", _code(error))
        except Exception:  # a bug of ours or a service's: the session ends, and whoever runs serve() logs it
            over = Over("internal error")
            self._leg.disconnect(NOT_AVAILABLE, "internal error of the gateway; the session ends")
            raise
        except asyncio.CancelledError as cancelled:
            why = str(cancelled.args[0]) if cancelled.args else "terminated by the gateway's administrator"
            over = Over(f"terminated: {why}")
            self._leg.disconnect(BY_APPLICATION, why)
            raise
        finally:
            await asyncio.shield(self._finish(over))

    async def _finish(self, over: Over) -> None:
        if over.reason:
            self._leg.disconnect(over.code, over.reason)  # the first DISCONNECT counts
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._session.close("closed" if _normal(over.reason) else "failed", over.reason)
        except (TapeError, TimeoutError) as error:
            self._log.error("the tape could not be closed", error=str(error))
        self._log.info("session closed", reason=over.reason or "done")

    async def _connect_and_relay(self) -> Over:
        session, target = self._session, self._session.target
        login = target.database
        facts = {"login": login}
        command = Command("ssh", "CONNECT", "session", f"connect to {login}@{target.name}", facts=facts)
        try:
            await self._reception.decide(command)
        except Refused as refused:
            self._log.warning("session refused", rule=refused.deny.rule)
            text = f'access to "{target.name}" denied by rule "{refused.deny.rule}": {refused.deny.reason}'
            await self._turn_away(PROHIBITED, text)
            return Over(f"refused by {refused.deny.rule}")
        await session.tape.commit()
        limit = target.settings.get("max_connections")
        limit = limit if isinstance(limit, int) else None
        async with peers_of(self._gate.shared).place(f"ssh/{target.name}", limit) as free:
            if not free:
                self._log.warning("too many connections to the target", limit=limit)
                await self._turn_away(PROHIBITED, f'too many connections to "{target.name}"')
                return Over("too many connections")
            return await self._dial_and_relay()

    async def _dial_and_relay(self) -> Over:
        session, target = self._session, self._session.target
        try:
            credential = await self._gate.credentials.get(session.identity, target)
            self._check_login(credential.user)
            link = await dial(target, credential, target.database or credential.user)
        except TargetPeerError as error:
            self._log.warning("target cannot be reached", error=str(error))
            await self._turn_away(CONNECT_FAILED, str(error))
            return Over("no target")
        self._log.info("session opened")
        idle = float(self._gate.settings.get("idle_seconds") or 0)
        lobby = self._reception.lobby
        self._conversation.adopt(lobby.seats.values())
        relay = Relay(self._leg, link, session, self._conversation, idle, self._log, lobby.kept)
        try:
            return await relay.run()
        finally:
            with contextlib.suppress(TapeError):
                relay.finish()
            await asyncio.shield(link.close())

    async def _turn_away(self, code: int, text: str) -> None:
        await self._reception.turn_away(code, text)

    def _check_login(self, own: str) -> None:
        """Whether the gateway may log in under this name: its credential's own, or one the target's logins name."""
        login = self._session.target.database or own
        if not self._proof.allows(login):
            raise TargetPeerError(f'the certificate is not for the login "{login}"')
        logins = self._session.target.settings.get("logins", ())
        assert isinstance(logins, tuple)
        if login and login != own and not any(fnmatch.fnmatchcase(login, glob) for glob in logins):
            raise TargetPeerError(f'the login "{login}" is not configured for {self._session.target.name}')


def _normal(reason: str) -> bool:
    """Whether a session that ended so is closed, and has not failed."""
    return not reason or reason.startswith("terminated")


def server_options(gate: Gate, name: str = "") -> ServerOptions:
    """What the listener's settings say to the transport; name: the target for which an inner connection is answered."""
    door = gate.settings["ssh"]
    assert isinstance(door, SshDoor), "a listener of ssh without its keys"
    certificates = door.host_certificates(name)
    return ServerOptions(
        host_keys=tuple(_host_key(key, certificates) for key in door.host_keys),
        banner="" if name else door.banner,
        login_seconds=float(gate.settings.get("login_seconds", LOGIN_SECONDS)),
        methods=frozenset(door.methods),
    )


@lru_cache(maxsize=HOST_KEYS_LIMIT)
def _host_key(key: Secret, certificates: tuple[str, ...]) -> HostKey:
    """Read a host key, with the certificate that is for it; one value for equal ones, as connections share it."""
    private = key.reveal().encode()
    for certificate in certificates:
        with contextlib.suppress(ConfigError):  # it is another key's
            return HostKey(private, certificate.encode())
    return HostKey(private)


def _identity_map(identity: Identity) -> dict[str, Any]:
    return {
        "subject": identity.subject,
        "agents": list(identity.agents),
        "groups": sorted(identity.groups),
        "issuer": identity.issuer,
        "proof": identity.proof,
    }


def _described(leg: UserLeg, target: Target, proof: KeyLogin) -> dict[str, Any]:
    return {
        "login": target.database,
        "proof": proof.how,
        "peer": str(leg.info("peer")),
        "client": str(leg.info("client_version") or ""),
    }


def _code(error: PeerError) -> int:
    """The code of RFC 4253 11.1 that goes with an error."""
    if error.code.isdigit():
        return int(error.code)
    return PROTOCOL_ERROR if isinstance(error, UserPeerError) else NOT_AVAILABLE
