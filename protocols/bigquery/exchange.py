"""One request of BigQuery's REST API, from its head to the end of its answer.

It is read (requests.py), its ids are looked up, it is decided on and passed on. Jobs have ways of their own: running.py
for those that begin, polling.py for those that are there, uploads.py for data; rows of tables go through paging.py. All
other methods wait in decide(), where they are held, and their answers pass as they come: they hold no rows.

Nothing is decided here. Source: bigquery note 3, 4, 6 and 8.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from protocols.bigquery import errors
from protocols.bigquery.bodies import BODY_LIMIT
from protocols.bigquery.commands import command_of, taped
from protocols.bigquery.estimates import estimates_of
from protocols.bigquery.ownership import hidden, not_found
from protocols.bigquery.paging import table_rows
from protocols.bigquery.parameters import safe_target
from protocols.bigquery.polling import serve_job, serve_list
from protocols.bigquery.requests import MULTIPART_LIMIT, Asked, Line, read_line, read_request
from protocols.bigquery.rewriting import forget as forget_schemas
from protocols.bigquery.running import NO_ESTIMATE, analysed, check_ids, serve_run
from protocols.bigquery.turn import CUT, THREAD_BYTES, Missing, Turn
from protocols.bigquery.uploads import serve_chunk, serve_upload
from protocols.bigquery.upstream import Lost
from proxy.core.errors import Refused, TargetPeerError
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.http.server import UserConnection
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.http.answers import Ended
from proxy.http.sessions import Shared

# Of a body that may have been squeezed, as it comes: never larger than what it may be inflated to.
_LIMITS: Final = {"none": BODY_LIMIT, "form": BODY_LIMIT, "json": BODY_LIMIT, "multipart": MULTIPART_LIMIT}
_OF_ONE_JOB: Final = frozenset({"jobs.get", "jobs.getQueryResults", "jobs.cancel", "jobs.delete"})
_RUNS: Final = frozenset({"jobs.insert", "jobs.query"})
_SAFE: Final = frozenset({"GET", "HEAD"})
# What changes what names mean: estimates that were kept may be wrong from now on.
_DEFINES: Final = ("tables.", "routines.", "datasets.", "rowAccessPolicies.")


class Exchange:
    """One request of a user in a session; see proxy/http/serving.Running."""

    def __init__(
        self,
        connection: UserConnection,
        user: Stream,
        session: Session,
        shared: Shared,
        gate: Gate,
        log: Any,
        root: str,
    ) -> None:
        self._turn = Turn(connection, user, session, shared, gate, log, root)

    @property
    def said(self) -> bool:
        """Whether something of the answer is on its way to the user."""
        return self._turn.said

    @property
    def passed(self) -> bool:
        """Whether the request is, to the target."""
        return self._turn.passed

    def withdraw(self) -> bool:
        """Take back what is held for a human; returns whether anything was."""
        return self._turn.withdraw()

    async def run(self, head: RequestHead) -> bool:
        """Serve it; returns whether the connection can take another request. Raises TapeError, UserPeerError, Ended."""
        turn = self._turn
        turn.head = head
        try:
            return await self._run(head)
        except BadRequest as bad:
            turn.session.mark("bad-request", f"{head.method} {safe_target(head.target)[:200]}: {bad.text}")
            turn.log.info("bad request", status=bad.status, reason=bad.text)
            turn.head = replace(head, keep_alive=head.keep_alive and not bad.closing)
            return await turn.say(bad.status, errors.failure(bad.status, bad.text))
        except Missing as missing:
            turn.session.mark("not-found", missing.failure.message)
            return await turn.fail(missing.failure)
        except Refused as refused:
            return await turn.refuse(refused)
        except TargetPeerError as error:
            turn.log.warning("target failed", error=str(error))
            turn.session.mark("target-error", str(error))
            if turn.said:
                raise Ended(str(error)) from error
            # Who cannot tell whether it was done must not be told to do it again.
            again = not turn.passed or (isinstance(error, Lost) and head.method in _SAFE)
            document = errors.unavailable if again and _unreached(error) else lambda text: errors.failure(503, text)
            return await turn.say(503, document(f"gatecast: {error}"))

    async def _run(self, head: RequestHead) -> bool:
        turn = self._turn
        line = read_line(head)
        if line.form == "chunk":
            return await serve_chunk(turn, read_request(head, b""))
        body = await turn.connection.body(_LIMITS[line.form])
        turn.body = body
        # Megabytes of small things take seconds to read, in which all other callers would wait.
        big = len(body) > THREAD_BYTES or head.get("content-encoding") is not None
        asked = await asyncio.to_thread(read_request, head, body) if big else read_request(head, body)
        if line.upload:
            return await serve_upload(turn, asked)
        name = asked.method.name
        if name in _RUNS:
            return await serve_run(turn, asked)
        if name in _OF_ONE_JOB:
            return await serve_job(turn, asked)
        return await self._plain(line, asked)

    async def _plain(self, line: Line, asked: Asked) -> bool:
        turn, name = self._turn, asked.method.name
        dataset, table = asked.id("dataset"), asked.id("table")
        if hidden(dataset) and not table:
            raise Missing(not_found("Dataset", asked.project, dataset))
        entry = await turn.owned_table(asked, asked.project, dataset, table) if table else None
        analysis = await analysed(turn, asked)
        await check_ids(turn, asked, analysis)
        command = command_of(asked, analysis, NO_ESTIMATE, turn.flow, taped(turn.head, asked.content))
        permit = await turn.decide(command, entry.masks if entry is not None else ())
        try:
            if name == "jobs.list":
                return await serve_list(turn, asked, permit)
            if name == "tabledata.list":
                return await table_rows(turn, asked, permit, entry)
            return await turn.pass_on(asked, permit, safe=line.method.http in _SAFE)
        except CUT:
            turn.cut_short(permit)
            raise
        finally:
            if name.startswith(_DEFINES) and line.method.http not in _SAFE:
                estimates_of(turn.gate.shared, turn.gate.warehouse).forget()
                forget_schemas(turn.gate.shared)


def _unreached(error: TargetPeerError) -> bool:
    """Whether trying again can help: the gateway's credential does not get better by it."""
    return isinstance(error, Lost) or "reached" in str(error) or "took longer" in str(error)
