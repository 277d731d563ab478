"""The vault of a running gateway: opened with the other services, run beside the connections, asked by administrators.

Who asks is whom the admin socket names (a token's subject, or ``local:<unix user>``); what removes tapes or their keys
takes two of them (recorder/vault_expiry.py). Each action is a line of the vault's history and of the log, and is told
to ``remark``: the place where the node log can be told of it, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.admin.server import Handler
from proxy.admin.wire import AdminError, Caller
from proxy.config import Loaded
from proxy.core.errors import ConfigError
from proxy.sections import VaultSection
from proxy.vault.settings import open_buckets, pace_of, retention_of
from proxy.vault.task import VaultTask
from recorder.retention import Hold
from recorder.vault import Vault, VaultError
from recorder.vault_expiry import Due, Expiry, Plan, Remark, Tombstones
from recorder.vault_state import State

CACHE_NAME: Final = "vault-cache"  # in the state directory: fetched sessions
SHOWN_LIMIT: Final = 1000  # sessions of a plan that an answer lists; the rest is counted

Who = Callable[[Caller, Mapping[str, Any]], Awaitable[str]]

log = structlog.get_logger(__name__)


class VaultService:
    """See the module. live: the configuration of this moment. Raises ConfigError."""

    def __init__(
        self, tapes: Path, live: Callable[[], Loaded], tombstones: Tombstones | None, remark: Remark | None = None
    ) -> None:
        loaded = live()
        section = loaded.config.vault
        assert section is not None
        self._live = live
        bucket, keys = open_buckets(section, loaded.resolve)
        try:
            self.vault = Vault(
                tapes, bucket, keys, cache=loaded.state / CACHE_NAME, labels=self._labels, read_back=section.read_back
            )
        except VaultError as error:
            raise ConfigError(str(error)) from error
        self._tell = remark
        self.expiry = Expiry(self.vault, lambda: retention_of(self._section()), tombstones, self._remark)
        self.task = VaultTask(self.vault, self.expiry, lambda: pace_of(self._section()))

    def close(self) -> None:
        """Close vault.db, after the background task has ended."""
        self.vault.close()

    def _section(self) -> VaultSection:
        return self._live().config.vault or VaultSection()

    def _labels(self, target: str) -> Mapping[str, str] | None:
        return next((one.labels for one in self._live().config.targets if one.name == target), None)

    def _remark(self, who: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        log.warning(f"vault-{action}", by=who, subject=subject, detail=dict(detail))
        if self._tell is not None:
            self._tell(who, action, subject, detail)

    # -- what the admin socket answers ----------------------------------------------------------------

    def methods(self, who: Who) -> dict[str, Handler]:
        """The methods, for AdminServer. who(caller, params) names the person, by a token in params if there is one."""

        def answering(work: Callable[[str, Mapping[str, Any]], Awaitable[Any]]) -> Handler:
            async def handler(caller: Caller, params: Mapping[str, Any]) -> Any:
                try:
                    return await work(await who(caller, params), params)
                except VaultError as error:
                    raise AdminError("refused", str(error)) from error

            return handler

        return {
            "vault.hold": answering(self._hold),
            "vault.release": answering(self._release),
            "vault.expire": answering(self._expire),
            "vault.erase": answering(self._erase),
            "vault.confirm": answering(self._confirm),
            "vault.retry": answering(self._retry),
        }

    async def _hold(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        session = _text(params, "session")
        if session:
            session = await self._one_session(session)
        made = await self.expiry.hold(
            Hold(
                "",
                _text(params, "matter"),
                who,
                0.0,
                session,
                _text(params, "target"),
                _text(params, "subject"),
                _time(params, "since"),
                _time(params, "until"),
            )
        )
        return hold_json(made)

    async def _release(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return hold_json(await self.expiry.release(_text(params, "id"), who, _text(params, "reason")))

    async def _expire(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        found, plan = await self.expiry.plan_expiry(who)
        return {
            "plan": plan_json(plan),
            "count": len(found),
            "sessions": [due_json(one) for one in found[:SHOWN_LIMIT]],
        }

    async def _erase(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        session = await self._one_session(_text(params, "session"))
        return {"plan": plan_json(await self.expiry.plan_erasure(session, who, _text(params, "reason")))}

    async def _confirm(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        removals = await self.expiry.confirm(_text(params, "token_of_plan"), who)
        self.task.wake()
        return {"confirmed_by": who, "sessions": [one.sid for one in removals], "what": [one.what for one in removals]}

    async def _retry(self, who: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Put conflicts back into the queue, after a person has looked at them."""
        vault, state = self.vault, self.vault.state
        moved = []
        for item in await vault.do(state.in_state, State.CONFLICT):
            await vault.do(state.move, item.path, "retry", sha256="")
            moved.append(item.path)
        await vault.do(state.record, vault.clock(), who, "retry", "", {"files": moved})
        self.task.wake()
        return {"files": moved}

    async def _one_session(self, name: str) -> str:
        found = await self.vault.do(self.vault.state.find_sessions, name.upper()) if name else []
        if len(found) != 1:
            raise VaultError(f"{'several sessions begin' if found else 'the vault knows no session that begins'} so")
        return found[0]


def due_json(due: Due) -> dict[str, Any]:
    """A session whose term is over."""
    facts = due.facts
    return {
        "sid": facts.sid,
        "target": facts.target,
        "subject": facts.subject,
        "ended": facts.ended,
        "days": due.days,
        "term": due.term,
        "held_by": due.held.id if due.held else "",
    }


def plan_json(plan: Plan | None) -> dict[str, Any] | None:
    """A plan that waits for a second person."""
    if plan is None:
        return None
    return {"token": plan.token, "asked_by": plan.asked_by, "at": plan.at, "sessions": len(plan.sids)}


def hold_json(hold: Hold) -> dict[str, Any]:
    """A hold; times are seconds since the epoch."""
    return {name: getattr(hold, name) for name in hold.__slots__}


def holds_json(holds: Sequence[Hold]) -> list[dict[str, Any]]:
    """Several holds."""
    return [hold_json(hold) for hold in holds]


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name) or ""
    if not isinstance(value, str):
        raise AdminError("malformed", f"{name} is a text")
    return value


def _time(params: Mapping[str, Any], name: str) -> float | None:
    value = params.get(name)
    if value is not None and not isinstance(value, int | float):
        raise AdminError("malformed", f"{name} is a time in seconds since the epoch")
    return value
