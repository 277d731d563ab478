"""The end of tapes: legal holds, expiry by two people, crypto-erasure, and the tombstone before anything is deleted.

Who asks gets a plan: what would go, and a token. Another person confirms the token; what is held, or no longer
due, by then is left out. Confirmed sessions are EXPIRED: nothing is deleted yet. Then, for each, the holds are asked
once more, a tombstone is appended to the node log (Tombstones; what fails there is tried again, and nothing goes
without), and only then the local files and the objects go. A hold beats all of it up to the tombstone.

Erasure takes the ``.keys`` files only: the content of an encrypted tape is gone for good with them, and tape, seals
and index still verify. It has a reason, two people and a tombstone ("erased") as well.

Holds and everything else that a person does are lines in the history (vault_state.py), and told to ``remark``.
A store that locks objects (WORM) refuses to delete them until its own term is over: that is tried again, daily.
Left out: who a person is (the admin socket knows, proxy/vault).
Source: recorder note, sections 6, 7 and 10.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, Protocol

from recorder.logentry import Tombstone
from recorder.retention import Hold, Retention, SessionFacts, held_by
from recorder.vault import BucketError, Vault, VaultError, object_name, remove_file
from recorder.vault_state import Item, Removal, State, VaultState

PLAN_SECONDS: Final = 86_400.0  # a day: the second person may be on another continent
PLANS_LIMIT: Final = 100  # ours: that wait for a second person
PLAN_SESSIONS_LIMIT: Final = 10_000  # ours: of one plan; the next one has the rest
TEXT_LIMIT: Final = 1000  # characters of a matter or a reason
REFUSED_PAUSE_SECONDS: Final = 86_400.0  # a lock of the store lasts for days or years
_WAS: Final = {State.ACTIVE, State.SEALED, State.UPLOADED, State.LOCAL_PURGED, State.CONFLICT}


class Tombstones(Protocol):
    """The node log (nodelog.NodeLog), as far as it is needed here."""

    def append(self, entries: Sequence[Tombstone]) -> object:
        """Make the tombstones durable, or raise. Blocks; equal ones may be appended twice."""


Remark = Callable[[str, str, str, Mapping[str, Any]], None]  # who, action, subject, detail


@dataclass(frozen=True, slots=True)
class Due:
    """A session whose term is over."""

    facts: SessionFacts
    days: int
    term: str
    held: Hold | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one person asked for; another one confirms it by its token."""

    token: str
    what: str
    asked_by: str
    at: float
    reason: str
    sids: tuple[str, ...]


class Expiry:
    """All of the module. retention() is asked each time: a reload changes it. Methods raise VaultError."""

    def __init__(
        self,
        vault: Vault,
        retention: Callable[[], Retention],
        tombstones: Tombstones | None,
        remark: Remark = lambda who, action, subject, detail: None,
    ) -> None:
        self.vault = vault
        self.retention = retention
        self.tombstones = tombstones
        self._remark = remark

    @property
    def _state(self) -> VaultState:
        return self.vault.state

    # -- holds ----------------------------------------------------------------------------------------

    async def hold(self, hold: Hold) -> Hold:
        """Put a legal hold in force (id and at are given to it here); what is EXPIRED but not gone is spared."""
        if not hold.matter.strip():
            raise VaultError("a legal hold names its matter")
        made = replace(hold, id=f"hold_{secrets.token_hex(5)}", at=self.vault.clock(), matter=hold.matter[:TEXT_LIMIT])
        await self.vault.do(self._add_hold, made)
        self._remark(made.by, "hold-added", made.id, scope_of(made))
        return made

    def _add_hold(self, hold: Hold) -> None:
        with self._state.transaction() as db:
            db.execute(
                "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', NULL)",
                (
                    hold.id,
                    hold.matter,
                    hold.by,
                    hold.at,
                    hold.session,
                    hold.target,
                    hold.subject,
                    hold.since,
                    hold.until,
                ),
            )
            self._state.record(hold.at, hold.by, "hold-added", hold.id, scope_of(hold))
            for removal in self._state.removals():
                self._spare_if_held(removal)

    async def release(self, hold: str, by: str, reason: str) -> Hold:
        """End a hold."""
        found = await self.vault.do(self._release, hold, by, reason[:TEXT_LIMIT])
        self._remark(by, "hold-released", hold, {"matter": found.matter, "reason": reason[:TEXT_LIMIT]})
        return found

    def _release(self, hold: str, by: str, reason: str) -> Hold:
        with self._state.transaction() as db:
            found = next((one for one in self._state.holds() if one.id == hold), None)
            if found is None:
                raise VaultError(f"no hold {hold[:50]} is in force; gatecast vault hold list shows them")
            now = self.vault.clock()
            db.execute("UPDATE holds SET released_by = ?, released_at = ? WHERE id = ?", (by, now, hold))
            self._state.record(now, by, "hold-released", hold, {"matter": found.matter, "reason": reason})
            return replace(found, released_by=by, released_at=now)

    # -- plans ----------------------------------------------------------------------------------------

    async def due(self) -> list[Due]:
        """Return the sessions whose term is over, with the hold that keeps one; at most PLAN_SESSIONS_LIMIT."""
        return await self.vault.do(self._due)

    def _due(self) -> list[Due]:
        retention, now, holds = self.retention(), self.vault.clock(), self._state.holds()
        found: list[Due] = []
        for facts in self._state.ended_before(now):
            if retention.expires_at(facts) > now:
                continue
            found.append(Due(facts, *retention.term_of(facts), held=held_by(holds, facts)))
            if len(found) >= PLAN_SESSIONS_LIMIT:
                break
        return found

    async def plan_expiry(self, who: str) -> tuple[list[Due], Plan | None]:
        """The dry run: what is due, and a plan for what is not held; None if that is nothing."""
        found = await self.due()
        sids = tuple(one.facts.sid for one in found if one.held is None)
        return found, await self.vault.do(self._keep_plan, "all", who, "", sids) if sids else None

    async def plan_erasure(self, sid: str, who: str, reason: str) -> Plan:
        """Ask for the keys of an encrypted session to be destroyed."""
        if not reason.strip():
            raise VaultError("an erasure has a reason")
        return await self.vault.do(self._plan_erasure, sid, who, reason[:TEXT_LIMIT])

    def _plan_erasure(self, sid: str, who: str, reason: str) -> Plan:
        items = self._state.of_session(sid)
        if not items:
            raise VaultError(f"the vault knows no session {sid[:50]}")
        if any(item.kind == "segment" and item.state is State.ACTIVE for item in items):
            raise VaultError("the session has not ended, or its end is not a minute old; try again later")
        if not [item for item in items if item.kind == "keys" and item.state in _WAS]:
            raise VaultError("the session is not encrypted, or erased already: there are no keys of it to destroy")
        self._refuse_if_held(sid)
        return self._keep_plan("keys", who, reason, (sid,))

    def _keep_plan(self, what: str, who: str, reason: str, sids: tuple[str, ...]) -> Plan:
        now = self.vault.clock()
        # The token stands for exactly this list: who confirms it has seen this plan and no other.
        digest = sha256("\n".join(sids).encode()).hexdigest()[:8]
        plan = Plan(f"{what}-{digest}-{secrets.token_hex(8)}", what, who, now, reason, sids)
        with self._state.transaction() as db:
            db.execute("DELETE FROM plans WHERE at < ?", (now - PLAN_SECONDS,))
            if db.execute("SELECT count(*) FROM plans").fetchone()[0] >= PLANS_LIMIT:
                raise VaultError(f"{PLANS_LIMIT} plans wait for a second person already")
            db.execute(
                "INSERT INTO plans VALUES (?, ?, ?, ?, ?, ?)",
                (plan.token, what, who, now, reason, json.dumps(sids)),
            )
            self._state.record(now, who, f"{_word(what)}-asked", digest, {"sessions": len(sids), "reason": reason})
        return plan

    async def confirm(self, token: str, who: str) -> list[Removal]:
        """The second person says yes; return what will go. The background task does the rest (work)."""
        if self.tombstones is None:
            raise VaultError("there is no node log to put tombstones in: nothing is deleted without one")
        removals = await self.vault.do(self._confirm, token, who)
        for removal in removals:
            self._remark(who, f"{_word(removal.what)}-confirmed", removal.sid, {"policy": removal.policy})
        return removals

    def _confirm(self, token: str, who: str) -> list[Removal]:
        now = self.vault.clock()
        with self._state.transaction() as db:
            row = db.execute("SELECT * FROM plans WHERE token = ? AND at >= ?", (token, now - PLAN_SECONDS)).fetchone()
            if row is None:
                raise VaultError("no plan of this token waits; a plan holds for a day, and is confirmed once")
            if row["asked_by"] == who:
                raise VaultError(f"{who} asked for this: somebody else has to confirm it")
            db.execute("DELETE FROM plans WHERE token = ?", (token,))
            both = f"asked by {row['asked_by']}, confirmed by {who}"
            removals = []
            for sid in json.loads(row["sids"]):
                policy = self._policy_now(sid, row["what"], row["reason"])
                if policy is not None:
                    removals.append(Removal(sid, row["what"], policy, both, now))
            for removal in removals:
                self._expire(removal)
            names = [removal.sid for removal in removals]
            self._state.record(now, who, f"{_word(row['what'])}-confirmed", token, {"by": both, "sessions": names})
        return removals

    def _policy_now(self, sid: str, what: str, reason: str) -> str | None:
        """The words for the tombstone; None if the session is held, gone or no longer due at this moment."""
        known = self._state.session(sid)
        if known is None or held_by(self._state.holds(), known[0]) is not None or self._state.is_going(sid, what):
            return None
        if what == "keys":
            return f"erased: {reason}"
        if not any(self._state.ended_before(self.vault.clock(), sid)):
            return None
        days, term = self.retention().term_of(known[0])
        over = self.retention().expires_at(known[0]) <= self.vault.clock()
        return f"retention: {days} days ({term})" if over else None

    def _expire(self, removal: Removal) -> None:
        with self._state.transaction() as db:
            db.execute(
                'INSERT OR REPLACE INTO removals (sid, what, policy, who, "when") VALUES (?, ?, ?, ?, ?)',
                (removal.sid, removal.what, removal.policy, removal.who, removal.when),
            )
            for item in self._targets(removal):
                if item.state in _WAS:
                    self._state.move(item.path, "expire")

    def _targets(self, removal: Removal) -> list[Item]:
        items = self._state.of_session(removal.sid)
        return [item for item in items if removal.what == "all" or item.kind == "keys"]

    # -- the work -------------------------------------------------------------------------------------

    async def work(self) -> int:
        """Bury and delete what two people have decided on; return how many sessions are gone now.

        What the store refuses stays on the list. Raises BucketError where the store does not answer, and whatever
        the node log raises: nothing is deleted then.
        """
        done = 0
        for removal in await self.vault.do(self._state.removals):
            if not removal.tombstoned:
                if await self.vault.do(self._spare_if_held, removal):
                    continue
                if self.tombstones is None:
                    raise VaultError("there is no node log to put tombstones in: nothing is deleted without one")
                stone = Tombstone(removal.sid, removal.policy, removal.who, round(removal.when * 1e9))
                await asyncio.to_thread(self.tombstones.append, [stone])
                await self.vault.do(self._bury, removal)
            done += await self._delete(removal)
        return done

    def _bury(self, removal: Removal) -> None:
        with self._state.transaction() as db:
            db.execute("UPDATE removals SET tombstoned = 1 WHERE sid = ? AND what = ?", (removal.sid, removal.what))
            for item in self._targets(removal):
                if item.state is State.EXPIRED:
                    self._state.move(item.path, "tombstone")

    async def _delete(self, removal: Removal) -> bool:
        """Delete what is TOMBSTONED of a session; True once all of it is gone."""
        whole = True
        now = self.vault.clock()
        await asyncio.to_thread(self.vault.clear_cache, removal.sid)
        for item in await self.vault.do(self._targets, removal):
            if item.state is not State.TOMBSTONED or item.gone_at is not None:
                continue
            if item.next_try > now:
                whole = False
                continue
            await asyncio.to_thread(remove_file, self.vault.directory / item.path)
            try:
                await self._delete_object(item)
            except BucketError as error:
                whole = False
                pause = now + REFUSED_PAUSE_SECONDS
                fields = {"error": str(error), "attempts": item.attempts + 1, "next_try": pause}
                await self.vault.do(self._state.note, item.path, **fields)
                continue
            await self.vault.do(self._state.note, item.path, gone_at=now, error="")
        if whole:
            await self.vault.do(
                self._state.record, now, "vault", f"{_word(removal.what)}-done", removal.sid, {"policy": removal.policy}
            )
        return whole

    async def _delete_object(self, item: Item) -> None:
        # An upload that was under way when the session expired may have made the object all the same.
        if (item.kind == "keys" and self.vault.keys is None) or self.vault.bucket is None:
            return
        bucket, name = self.vault.bucket_of(item), object_name(item.path, item.kind)
        if await bucket.head(name) is None:
            return
        await bucket.delete(name)
        if await bucket.head(name) is not None:
            raise BucketError(f"{name}: deleted, but it is still there")

    # -- what both sides share ------------------------------------------------------------------------

    def _refuse_if_held(self, sid: str) -> None:
        known = self._state.session(sid)
        hold = held_by(self._state.holds(), known[0]) if known else None
        if hold is not None:
            raise VaultError(f"the session is held by {hold.id} ({hold.matter}); release the hold first")

    def _spare_if_held(self, removal: Removal) -> bool:
        """Take back an expiry that a hold has overtaken; a tombstone is final."""
        known = self._state.session(removal.sid)
        hold = held_by(self._state.holds(), known[0]) if known and not removal.tombstoned else None
        if hold is None:
            return False
        with self._state.transaction() as db:
            for item in self._targets(removal):
                if item.state is State.EXPIRED:
                    self._state.note(item.path, state=item.was, was="")
            db.execute("DELETE FROM removals WHERE sid = ? AND what = ?", (removal.sid, removal.what))
            self._state.record(self.vault.clock(), "vault", "spared", removal.sid, {"hold": hold.id})
        return True


def scope_of(hold: Hold) -> dict[str, Any]:
    """What a hold says, for the history."""
    names = ("matter", "session", "target", "subject", "since", "until")
    return {name: value for name in names if (value := getattr(hold, name))}


def _word(what: str) -> str:
    return "erase" if what == "keys" else "expire"
