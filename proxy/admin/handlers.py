"""The functions behind the admin socket, one for each method.

Who is the approver? A gateway token or a JWT sent along (GATECAST_TOKEN) proves a subject with its groups, like a
login. Without one it is the operator at this machine, whom the kernel names: ``local:<unix user>``, with the
groups that the configuration gives to that user. A mere name (``--as``) would prove nothing, so there is none. A
rule names its approvers either way; a local operator is listed like everybody else: ``local:root``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from proxy.admin.server import Handler
from proxy.admin.wire import AdminError, Caller
from proxy.approvals import LIST_LIMIT, Approvals
from proxy.core.errors import LoginRefused
from proxy.core.parties import Identity
from proxy.store.approvals import STATES, Record

# In a list, the text is a line on a screen; approvals.show has all that is kept.
LIST_TEXT_LIMIT: Final = 500

log = structlog.get_logger(__name__)


class Logins(Protocol):
    """What is needed of the Identities here."""

    async def password(self, user: str, secret: str) -> Identity: ...


class Sessions(Protocol):
    """The sessions that are open now."""

    def live(self) -> list[dict[str, Any]]:
        """Return each open session as JSON: id, identity, target, protocol, started, held, ..."""

    def kill(self, session: str, by: str) -> bool:
        """End a session; False if it is not open."""


@dataclasses.dataclass(frozen=True, slots=True)
class Admin:
    """What the methods act on. reload answers what was loaded, or raises ConfigError and changes nothing."""

    approvals: Approvals
    logins: Logins
    sessions: Sessions
    reload: Callable[[], Awaitable[Mapping[str, Any]]]
    status: Callable[[], Mapping[str, Any]]
    operator_groups: Callable[[], Mapping[str, frozenset[str]]] = lambda: {}

    def methods(self) -> dict[str, Handler]:
        """Return the methods, for AdminServer."""
        return {
            "approvals.list": self._list,
            "approvals.show": self._show,
            "approvals.approve": lambda caller, params: self._decide(caller, params, True),
            "approvals.deny": lambda caller, params: self._decide(caller, params, False),
            "sessions.live": self._live,
            "sessions.kill": self._kill,
            "config.reload": self._reload,
            "status": self._status,
        }

    async def _list(self, caller: Caller, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        state = _text(params, "state")
        if state is not None and state not in STATES:
            raise AdminError("malformed", f"a state is one of {', '.join(STATES)}")
        limit = params.get("limit", LIST_LIMIT)
        if not isinstance(limit, int):
            raise AdminError("malformed", "limit is a number")
        found = await self.approvals.listing(state, _text(params, "subject"), _text(params, "target"), limit)
        return [_short(record_json(record)) for record in found]

    async def _show(self, caller: Caller, params: Mapping[str, Any]) -> dict[str, Any]:
        return record_json(await self.approvals.find(_needed(params, "id")))

    async def _decide(self, caller: Caller, params: Mapping[str, Any], approve: bool) -> dict[str, Any]:
        approval = _needed(params, "id")
        by = await self._approver(caller, _text(params, "token"))
        record = await self.approvals.decide(approval, by, approve, _text(params, "reason") or "")
        return record_json(record)

    async def _approver(self, caller: Caller, token: str | None) -> Identity:
        if token is None:
            groups = self.operator_groups().get(caller.user, frozenset())
            return Identity(f"local:{caller.user}", frozenset(groups), issuer="admin-socket")
        try:
            return await self.logins.password(f"local:{caller.user}", token)
        except LoginRefused as error:
            raise AdminError("login-refused", f"{error.text}: the token proves nobody who may decide") from error

    async def who(self, caller: Caller, params: Mapping[str, Any]) -> str:
        """Name the person who asks, as approvals do: by the token in params, or as the operator at this machine."""
        return (await self._approver(caller, _text(params, "token"))).subject

    async def _live(self, caller: Caller, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.sessions.live()

    async def _kill(self, caller: Caller, params: Mapping[str, Any]) -> dict[str, Any]:
        session = _needed(params, "id")
        if not self.sessions.kill(session, f"local:{caller.user}"):
            raise AdminError("unknown", f"no session {session[:100]} is open; gatecast sessions live shows them")
        log.warning("session-killed", session=session, by=f"local:{caller.user}")
        return {"id": session, "killed": True}

    async def _reload(self, caller: Caller, params: Mapping[str, Any]) -> dict[str, Any]:
        log.info("reload-asked", by=f"local:{caller.user}")
        return dict(await self.reload())

    async def _status(self, caller: Caller, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.status(), "approvals_waiting": self.approvals.waiting}


def record_json(record: Record) -> dict[str, Any]:
    """Return an approval as JSON: times are seconds since the epoch."""
    value = dataclasses.asdict(record)
    del value["process"]
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def _short(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "text": value["text"][:LIST_TEXT_LIMIT]}


def _text(params: Mapping[str, Any], name: str) -> str | None:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise AdminError("malformed", f"{name} is a text")
    return value


def _needed(params: Mapping[str, Any], name: str) -> str:
    value = _text(params, name)
    if not value:
        raise AdminError("malformed", f"{name} is missing")
    return value
