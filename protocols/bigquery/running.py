"""jobs.insert and jobs.query: what runs at the target, and may wait for a human before it does.

In order: every id that the request names is its caller's; the text is read; a verdict that is a refusal anyhow comes
before the dry run, which would tell whether a table is there; the dry run; the id of the job is claimed; the decision.
Decided at once, the request goes on as it came, with our limit of bytes, our labels and mark. Held, its user gets a job
that is PENDING, and the decision goes on as work of the session (held.py), under the caller's job id or one of ours.

What the caller himself only wants to have estimated (dryRun) makes no job, and is asked for by itself.
Source: bigquery note 5, 6, 7 and 11.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from protocols.bigquery import errors, holds
from protocols.bigquery.bodies import decoded, encoded, write_object
from protocols.bigquery.commands import command_of, merged, poll_of, taped, texts_of, with_estimate
from protocols.bigquery.dial import settings_of
from protocols.bigquery.dial_settings import Settings
from protocols.bigquery.effects import borrowed
from protocols.bigquery.estimates import Estimate, billed, capped, estimates_of
from protocols.bigquery.facts import KEPT_BEHIND, KEPT_DATASET, KEPT_PROJECT, KEPT_SQL
from protocols.bigquery.held import Held, labels_of, look, settle_open
from protocols.bigquery.ownership import (
    CHOSEN,
    Failure,
    hidden,
    job_key,
    learned,
    marked,
    named,
    not_found,
    refusal,
    repeat,
    request_id,
    shown,
)
from protocols.bigquery.pages import PAGE_LIMIT
from protocols.bigquery.paging import masked_result
from protocols.bigquery.polling import masked_errors, tell
from protocols.bigquery.requests import Asked
from protocols.bigquery.rewriting import forget as forget_schemas
from protocols.bigquery.rewriting import rewritten
from protocols.bigquery.turn import CUT, Missing, Turn, check_format
from protocols.bigquery.upstream import Lost, Upstream
from proxy.core.errors import GatecastError, TargetPeerError
from proxy.core.events import Command
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, ResponseHead
from proxy.core.jobs import Entry, Key
from proxy.core.session import Permit, Session
from proxy.core.warehouse import TEMPORARY, Analysis
from proxy.http.answers import outcome

NO_ESTIMATE: Final = Estimate()
_QUERY_MEMBERS: Final = (
    "jobReference", "queryId", "schema", "sessionInfo", "location",
)  # fmt: skip
_CHANGING: Final = frozenset({"define", "delete", "admin", "execute", "unknown"})
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def analysed(turn: Turn, asked: Asked) -> Analysis:
    """Read all SQL of a request. Raises TargetPeerError where nothing reads SQL here."""
    return await analysed_by(turn.gate, asked)


async def analysed_by(gate: Gate, asked: Asked) -> Analysis:
    """The same, for who has no turn."""
    texts = texts_of(asked)
    if not texts:
        return Analysis()
    if gate.warehouse is None:
        raise TargetPeerError("this gateway reads no SQL")
    return merged([await gate.warehouse.read(*each) for each in texts])


async def check_ids(turn: Turn, asked: Asked, analysis: Analysis) -> None:
    """See that every id in a request is its caller's. Raises Missing.

    A table of a hidden dataset holds somebody's result. Who owns it may read it again by SQL, but not where masks apply
    to it: its columns are named like nothing that a mask could know.
    """
    if session := asked.session_id:
        key = Key(turn.target_name, "session", asked.project, session)
        if not key.sane or await turn.jobs.find(key, turn.owner) is None:
            raise Missing(not_found("Session", asked.project, session[:100]))
    names = [(each.project, each.dataset, each.table) for each in (*analysis.tables_read, *analysis.tables_written)]
    names += [(each.project, each.dataset, each.table) for each in (*asked.sources, *borrowed(asked))]
    if asked.destination is not None:
        names.append((asked.destination.project, asked.destination.dataset, asked.destination.table))
    for project, dataset, table in dict.fromkeys(names):
        if not hidden(dataset) or dataset == TEMPORARY:
            continue
        entry = await turn.owned_table(asked, project, dataset, "" if "*" in table else table)
        if entry is not None and entry.masks:
            text = f"Access Denied: gatecast: masks apply to the rows of {dataset}.{table}; query the tables themselves"
            raise Missing(Failure(403, "accessDenied", text))


async def serve_run(turn: Turn, asked: Asked) -> bool:
    """Serve jobs.insert or jobs.query. Raises BadRequest, Missing, Refused, TargetPeerError, TapeError."""
    analysis = await analysed(turn, asked)
    await check_ids(turn, asked, analysis)
    data = taped(turn.head, asked.content)
    plain = command_of(asked, analysis, NO_ESTIMATE, turn.flow, data)
    if asked.dry_run and asked.job == "query":
        return await _dry(turn, asked, plain)
    asked, analysis, plain = await _rewritten(turn, asked, analysis, plain, data)
    await turn.refuse_early(plain)
    if asked.query is None:
        return await _Run(turn, asked, NO_ESTIMATE, plain).go()
    estimate = await estimated(turn.gate, turn.session, turn.upstream, asked, analysis)
    if estimate.error is not None:
        return await _not_valid(turn, asked, data, *estimate.error)
    return await _Run(turn, asked, estimate, with_estimate(plain, asked, analysis, estimate)).go()


async def _rewritten(
    turn: Turn, asked: Asked, analysis: Analysis, plain: Command, data: bytes
) -> tuple[Asked, Analysis, Command]:
    """The request with masks put in where it scans tables, or as it came. A guard is asked about what then runs."""
    settings = settings_of(turn.session.target)
    if asked.query is None or not settings.rewrite:
        return asked, analysis, plain
    masks = await turn.session.would_mask(plain)
    if not masks:
        return asked, analysis, plain
    account = await account_of(turn.gate, turn.session)
    found = await rewritten(turn.gate, asked, analysis, masks, turn.upstream.ask, settings=settings, account=account)
    if found is None:
        return asked, analysis, plain
    turn.session.mark("rewritten", f"{', '.join(found[2].tables)}; it came as: {asked.query.text}")
    return found[0], found[1], command_of(found[0], found[1], NO_ESTIMATE, turn.flow, data)


async def estimated(gate: Gate, session: Session, upstream: Upstream, asked: Asked, analysis: Analysis) -> Estimate:
    """Return what the target tells of a query, to the account that it will run as."""
    estimates = estimates_of(gate.shared, gate.warehouse)
    name = await account_of(gate, session)
    return await estimates.of(asked, analysis, settings_of(session.target), name, upstream.ask)


async def account_of(gate: Gate, session: Session) -> str:
    """Return whose eyes a session's target is seen with, and of which target."""
    credential = await gate.credentials.get(session.identity, session.target)
    secret = credential.secret.reveal() if credential.secret is not None else ""
    return f"{session.target.name} {credential.user or hashlib.sha256(secret.encode()).hexdigest()[:16]}"


async def _dry(turn: Turn, asked: Asked, command: Command) -> bool:
    """The caller's own dry run: nothing runs, and nothing is stored."""
    permit = await turn.decide(command)
    body = dict(asked.body or {})
    if asked.request_id:
        body["requestId"] = request_id(turn.owner, asked.request_id)
    response, answer = await turn.whole(asked, permit, write_object(body), safe=True)
    found = decoded(answer) if response.status == 200 else None
    if found is not None:
        answer = encoded(shown(found, turn.owner))
    return await turn.reply(asked, permit, response, answer, sent=len(asked.content))


async def _not_valid(turn: Turn, asked: Asked, data: bytes, status: int, body: bytes) -> bool:
    """The dry run has failed: so would the query. What it says names things, and no values: nothing was read."""
    command = poll_of(asked, f"(not valid)\n{asked.query.text if asked.query else ''}", turn.flow, data)
    permit = await turn.decide(command)
    fields = (("Content-Type", "application/json; charset=UTF-8"),)
    return await turn.reply(asked, permit, ResponseHead(status, "", fields, length=len(body)), body)


class _Run:
    """One job, from its claim to the answer of the request that asked for it."""

    def __init__(self, turn: Turn, asked: Asked, estimate: Estimate, command: Command) -> None:
        self._turn = turn
        self._asked = asked
        self._estimate = estimate
        self._command = command
        self._settings: Settings = settings_of(turn.session.target)
        self._inserts = asked.method.name != "jobs.query"
        self._body: dict[str, Any] = dict(asked.body or {})
        self._key = self._named()

    def _named(self) -> Key:
        """Give the job its id: the caller's, or one of ours; of a held jobs.query it is that of its requestId."""
        turn, asked = self._turn, self._asked
        random = secrets.token_hex(16)
        if self._inserts:
            name = asked.id("job") or holds.job_name(turn.owner, "", "", random)
            reference = {"projectId": asked.project, "jobId": name}
            reference |= {"location": asked.location} if asked.location else {}
            self._insert = {**self._body, "jobReference": reference}
        else:
            plain = holds.inserted(self._body, asked.project, "", asked.location)
            what = holds.digest(turn.target_name, asked.project, asked.location, plain)
            name = holds.job_name(turn.owner, asked.request_id, what, random)
            self._insert = holds.inserted(self._body, asked.project, name, asked.location)
        key = job_key(turn.target_name, asked.project, name, asked.location)
        if not key.sane:
            raise BadRequest(400, "the job has no valid id")
        return key

    def _entry(self) -> Entry:
        turn, asked = self._turn, self._asked
        query = asked.query
        facts: dict[str, Any] = {CHOSEN: True} if asked.destination is not None else {}
        if query is not None:
            facts |= {KEPT_SQL: query.text, KEPT_PROJECT: query.project, KEPT_DATASET: query.dataset}
            facts |= {KEPT_BEHIND: {view: list(tables) for view, tables in self._estimate.behind.items()}}
        return Entry(
            self._key,
            turn.owner,
            state="claimed",
            created=turn.gate.clock(),
            facts=facts,
            digest=holds.digest(turn.target_name, asked.project, asked.location, self._limited(self._insert)),
            mark=secrets.token_hex(16),
            session=turn.session.id,
        )

    # -- deciding -------------------------------------------------------------------------------------

    async def go(self) -> bool:
        """Claim, decide, send; returns whether the connection can take another request."""
        turn = self._turn
        entry = self._entry()
        known = await self._known(entry)
        if known is not None:
            return await self._again(known, entry)
        request = write_object(self._limited(self._insert))
        held = Held(
            turn.gate, turn.session, turn.shared, entry, turn.flow, request, turn.log, self._asked.job_timeout_ms
        )
        claimed = self._inserts
        sent = done = False
        try:
            deciding = turn.shared.spawn(outcome(turn.session.decide(self._command, held.on_hold)))
            try:
                waits: set[asyncio.Future[Any]] = {deciding, held.told}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                if held.begun and not turn.shared.over.is_set():
                    claimed = False
                    turn.shared.spawn(held.follow(deciding))
                else:
                    deciding.cancel()
                raise
            if held.told.done():
                claimed = False  # it is the held job's now, even if it was decided at once
                turn.shared.spawn(held.follow(deciding))
                return await self._pending(entry)
            permit = _permit(deciding.result(), held.failure)
            check_format(self._asked, permit)
            if self._inserts:
                changes = {"rule": permit.rule, "masks": permit.masks, "facts": _kept(entry, permit)}
                await turn.jobs.settle(self._key, turn.owner, "sent", **changes)
            sent = True
            if any(each.kind in _CHANGING for each in (self._command, *self._command.parts)):
                estimates_of(turn.gate.shared, turn.gate.warehouse).forget()  # names may mean something else now
                forget_schemas(turn.gate.shared)
            try:
                kept = await (self._insert_now if self._inserts else self._query_now)(permit, entry)
            except CUT:
                turn.cut_short(permit)
                raise
            done = True
            return kept
        finally:
            if claimed and not done:
                await asyncio.shield(left_behind(turn, self._key, sent))

    async def _known(self, entry: Entry) -> Entry | None:
        """The entry that has the id already; None where it is ours now."""
        jobs, owner = self._turn.jobs, self._turn.owner
        if not self._inserts:
            return await jobs.find(self._key, owner) if self._asked.request_id else None
        known = await jobs.claim(entry)
        if known is not None and known.owner == owner and holds.unsure(known) and await self._lost(known):
            await jobs.forget(self._key, owner)
            known = await jobs.claim(entry)
        return known

    async def _lost(self, known: Entry) -> bool:
        """Whether a job whose answer was lost never reached the target; one that did is settled."""
        found = await look(self._turn.upstream, known)
        if found is None:
            return True
        await self._turn.jobs.settle(known.key, self._turn.owner, "open", **learned(found))
        return False

    async def _again(self, known: Entry, entry: Entry) -> bool:
        """The same command once more, or another under its id: nothing is decided anew, and nothing runs twice."""
        turn, asked = self._turn, self._asked
        case = repeat(known, turn.owner, entry.digest)
        command = poll_of(asked, f"{self._key.project}:{self._key.id} (again)", turn.flow, self._command.data or b"")
        permit = await turn.decide(command, known.masks if case != "taken" else ())
        if self._inserts or case != "same":
            failure = refusal(case, asked.project, self._key.id, asked.location)
            return await tell(turn, asked, permit, failure)
        return await self._result(known, permit)

    async def _pending(self, entry: Entry) -> bool:
        """Answer while a human is asked: with the job, or with a result that is not there yet."""
        turn = self._turn
        if self._inserts:
            found = await turn.jobs.find(self._key, turn.owner) or entry
            answer = holds.insert(found)
            if answer is None:  # decided in the meantime, and run
                return await tell(turn, self._asked, None, holds.Reply(200, holds.job(replace(found, state="held"))))
            return await tell(turn, self._asked, None, answer)
        return await self._result(await turn.jobs.find(self._key, turn.owner) or entry, None)

    async def _result(self, entry: Entry, permit: Permit | None) -> bool:
        """Answer a jobs.query whose job was held, as soon as there is something, or "not yet"."""
        turn, asked = self._turn, self._asked
        if entry.state in ("held", "approved", "sent"):
            entry = await turn.jobs.wait(entry.key, turn.owner, holds.poll_seconds(asked.wait_ms)) or entry
        answer = holds.query(entry)
        if answer is not None:
            return await tell(turn, asked, permit, answer)
        if permit is None:
            command = poll_of(asked, f"{entry.key.project}:{entry.key.id}", turn.flow, b"")
            permit = await turn.decide(command, entry.masks)
        check_format(asked, permit)
        response, body = await self._rows_of(entry, permit)
        masked = None
        if response.status == 200:
            body = _as_query(body)
            masked = await masked_result(turn, permit, asked, body, entry.facts, entry.schema)
        return await turn.reply(asked, permit, response, body, masked=masked)

    async def _rows_of(self, entry: Entry, permit: Permit) -> tuple[ResponseHead, bytes]:
        """Ask for the result of a job as jobs.query would have given it."""
        turn, body = self._turn, self._body
        options = body.get("formatOptions") or {}
        given: list[tuple[str, Any]] = [
            ("location", entry.key.location),
            ("maxResults", body.get("maxResults")),
            ("timeoutMs", body.get("timeoutMs")),
            *((f"formatOptions.{key}", options[key]) for key in sorted(options)),
        ]
        query = urlencode([(key, _word(value)) for key, value in given if value not in (None, "")])
        project = quote(entry.key.project, safe=":")
        path = f"/bigquery/v2/projects/{project}/queries/{quote(entry.key.id)}?{query}&prettyPrint=false"
        sending = turn.upstream.send(permit, turn.flow, "GET", path, (("Accept", "application/json"),), b"", True)
        async with sending as (link, response):
            return response, await link.connection.body(PAGE_LIMIT)

    # -- sending --------------------------------------------------------------------------------------

    def _limited(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A job's body with our limit of bytes."""
        return capped(body, self._asked.job or "query", billed(self._asked, self._settings))

    async def _insert_now(self, permit: Permit, entry: Entry) -> bool:
        turn, asked = self._turn, self._asked
        body = write_object(self._limited(marked(self._insert, entry.mark, labels_of(turn.session))))
        try:
            response, answer = await turn.whole(asked, permit, body, safe=True)
        except Lost as error:
            await left_behind(turn, self._key, sent=True)
            turn.log.warning("target failed", error=str(error))
            turn.session.mark("target-error", str(error))
            return await turn.say(503, errors.unavailable(f"gatecast: {error}"))
        except TargetPeerError:
            await turn.jobs.forget(self._key, turn.owner)
            raise
        return await settle_insert(turn, asked, permit, self._entry_sent(entry, permit), response, answer)

    def _entry_sent(self, entry: Entry, permit: Permit) -> Entry:
        return replace(entry, state="sent", rule=permit.rule, masks=permit.masks, facts=_kept(entry, permit))

    async def _query_now(self, permit: Permit, entry: Entry) -> bool:
        turn, asked = self._turn, self._asked
        body = self._limited(marked(self._body, entry.mark, labels_of(turn.session)))
        if asked.request_id:
            body["requestId"] = request_id(turn.owner, asked.request_id)
        try:
            response, answer = await turn.whole(asked, permit, write_object(body), safe=bool(asked.request_id))
        except Lost as error:
            turn.log.warning("target failed", error=str(error))
            turn.session.mark("target-error", str(error))
            again = errors.unavailable if asked.request_id else lambda text: errors.failure(503, text)
            return await turn.say(503, again(f"gatecast: {error}"))
        masked = None
        if response.status == 200:
            await self._note(answer, self._entry_sent(entry, permit))
            masked = await masked_result(turn, permit, asked, answer, entry.facts, None)
        return await turn.reply(asked, permit, response, answer, masked=masked, sent=len(asked.content))

    async def _note(self, answer: bytes, entry: Entry) -> None:
        """Note the ids that the answer to a jobs.query names, before its user sees them."""
        try:
            members = _members.decode(answer)
            found: dict[str, Any] = {key: msgspec.json.decode(members[key]) for key in _QUERY_MEMBERS if key in members}
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise TargetPeerError("the target's answer cannot be read") from error
        entries: list[Entry] = []
        reference = found.get("jobReference")
        if isinstance(reference, dict) and isinstance(reference.get("jobId"), str):
            location = reference.get("location")
            project = str(reference.get("projectId") or self._asked.project)
            place = location if isinstance(location, str) else ""
            key = job_key(self._turn.target_name, project, reference["jobId"], place)
            if not key.sane:
                raise TargetPeerError("the target's answer names a job that cannot be one")
            changes = {name: value for name, value in learned(found).items() if name in ("schema", "destination")}
            entry = replace(entry, key=key, state="open", **changes)
            entries.append(entry)
        entries += named(found, entry)
        if entries:
            await self._turn.jobs.add(entries)


def _kept(entry: Entry, permit: Permit) -> Mapping[str, Any]:
    """What of a job's facts is kept: its text only where masks will ask where its columns come from."""
    return entry.facts if permit.masks else {key: value for key, value in entry.facts.items() if key == CHOSEN}


def _permit(decided: Permit | Exception, failure: BadRequest | None) -> Permit:
    """What was decided at once. failure: why it could not be held."""
    if isinstance(decided, Permit):
        return decided
    raise failure or decided


async def left_behind(turn: Turn, key: Key, sent: bool) -> None:
    """A request has ended before its job was settled: one that has not left is forgotten, one that may have is unsure.

    Whoever asks for that looks for it at the target (polling.py), and does not wait for an answer that nobody awaits.
    """
    with contextlib.suppress(GatecastError):  # the registry's own failure is why it ends
        if sent:
            await turn.jobs.amend(key, turn.owner, process="")
        else:
            await turn.jobs.forget(key, turn.owner)


async def settle_insert(
    turn: Turn, asked: Asked, permit: Permit, entry: Entry, response: ResponseHead, answer: bytes
) -> bool:
    """Take the target's answer to an insert: note what became of the job, and give it to the user."""
    jobs, key = turn.jobs, entry.key
    job = decoded(answer) if response.status == 200 else None
    if response.status == 409:
        job = await look(turn.upstream, entry)  # sent twice over a connection that died, perhaps
        if job is not None:
            response = replace(response, status=200)
    if job is None:
        await jobs.forget(key, turn.owner)
        if response.status == 409:
            return await turn.fail(refusal("taken", key.project, key.id, key.location))
        return await turn.reply(asked, permit, response, answer, sent=len(asked.content))
    await settle_open(turn.jobs, entry, job)
    body = masked_errors(turn, permit, encoded(shown(job, turn.owner)))
    return await turn.reply(asked, permit, replace(response, length=len(body)), body, sent=len(asked.content))


def _as_query(body: bytes) -> bytes:
    """An answer of getQueryResults, as jobs.query would have given it."""
    return body.replace(b'"bigquery#getQueryResultsResponse"', b'"bigquery#queryResponse"', 1)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
