"""The transcript of a BigQuery session: statements and methods, their jobs, the rows, and what it all cost.

    bq shop> SELECT country, COUNT(*) AS n FROM `shop.sales.orders` GROUP BY 1
    [allow] rule=analysts mask=[pii]
      POST /bigquery/v2/projects/shop/jobs?prettyPrint=false  200  180.0 ms
      job shop:EU.bqjob_r4f  RUNNING
      waited 12.00 s (7 polls)
    | country | n  |
    | DE      | 18 |
      ... 58 more rows recorded (59 rows, 4.1 KiB)
      DONE  59 rows, 1.1 GiB processed, 953.7 MiB billed, 340.0 ms slots
    bq shop> ReadRows projects/shop/locations/EU/sessions/CAIS/streams/GgJ        812 rows, 3.4 MiB  41.0 ms

Questions after a job (verb "poll") are not shown as commands: what they brought stands below the job's own command,
under its number where something else was shown meanwhile. Those that found it PENDING or RUNNING are one line, told
when it has ended, and in between at the 10th, the 100th, ...; so is an end that is told twice. Of a result's pages the
first is a table, the others are counted. Of an upload in pieces the last one is shown. A poll that is denied, that asks
for a job whose command is not on the tape, or that has no answer is shown as it is.

What a hold answers with (PENDING) names the job before it has left; it is taken from the answer's beginning.
Left out: rows in Arrow. Specification of RESULT's keys: recorder/format.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from recorder.flows import whole
from recorder.format import Record
from recorder.http_exchange import Exchange
from recorder.http_view import body_lines
from recorder.transcript import Transcript
from recorder.transcript_http import HttpTranscript
from recorder.warehouse_view import (
    COST_KEYS,
    MORE,
    NEWS_KEYS,
    POLL,
    UPLOAD,
    content_words,
    cost_words,
    is_method,
    job_words,
    key_in,
    key_of,
)
from recorder.wording import DIM, RED, duration, size

JOBS_LIMIT: Final = 1024  # that something is remembered of, as of exchanges: 300 KB
LOOKED_LIMIT: Final = 64  # open exchanges whose answers are looked through for a job that nobody has named yet
PATIENCE_NS: Final = 1_000_000_000  # from then on a single question that was answered late is called waiting


@dataclass(slots=True)
class _Job:
    """A job, and the command that it is told under. polls: questions that were not told of yet."""

    label: str
    n: int
    polls: int = 0
    since_ns: int = -1
    done: bool = False
    shown: bool = False  # its name was
    paged: bool = False  # its first rows were shown
    told: set[str] = field(default_factory=set)  # what is known of its cost
    error: str = ""


@dataclass(slots=True)
class _Pages:
    """Pages of a job behind the first that were not told of yet."""

    job: _Job
    label: str  # "Q1 " where another command was shown last
    count: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Pieces:
    """The pieces of an upload that are not the last."""

    count: int = 0


class WarehouseTranscript(HttpTranscript):
    """A Transcript of a tape with exchanges of BigQuery."""

    unseen: ClassVar[frozenset[str]] = frozenset({"discover", POLL, UPLOAD})

    def __init__(self, header: Mapping[str, Any], **options: Any) -> None:
        """options: those of HttpTranscript."""
        super().__init__(header, **options)
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._pages: _Pages | None = None
        self._uploads: OrderedDict[str, _Pieces] = OrderedDict()

    # -- what becomes of commands ---------------------------------------------------------------------

    def _verdict(self, record: Record, said: Mapping[str, Any]) -> None:
        exchange = self._commands.get(whole(said.get("command")))
        if exchange is not None and said.get("verdict") != "allow" and exchange.verb != POLL:
            self._named(exchange, key_in(bytes(exchange.response.body)))  # it was held: its user goes on asking
        super()._verdict(record, said)

    def _result(self, record: Record, said: Mapping[str, Any]) -> None:
        exchange = self._commands.get(whole(said.get("command")))
        if exchange is None or self._messages:
            super()._result(record, said)
            return
        if exchange.held and exchange.verb == UPLOAD and whole(said.get("status")) == MORE:
            self._piece(exchange)
            self._forget(exchange)
            return
        if exchange.held and exchange.verb == POLL and not _is_call(exchange, said):
            job = self._job_of(exchange, said)
            if job is not None:
                self._polled(record, said, exchange, job)
                self._forget(exchange)
                return
        if exchange.verb in (POLL, UPLOAD):
            self._show_held(record.t_ns, exchange)
        key = _key(exchange, said)
        self._named(exchange, key)
        super()._result(record, said)
        if job := self._jobs.get(key):
            rows = isinstance(said.get("rows"), list)
            job.told |= COST_KEYS & said.keys()
            job.error = str(self._problem(said, exchange, whole(said.get("status"))) or "")
            job.shown = "job" in said
            job.done, job.paged = job.done or rows or said.get("state") == "DONE", job.paged or rows
        if said.get("job"):
            self._polls.forget()  # the same statement again is another job, with a cost of its own

    def _close(self, record: Record, said: Mapping[str, Any]) -> None:
        for exchange in list(self._commands.values()):
            if exchange.held and exchange.verb in (POLL, UPLOAD):
                self._present(record.t_ns, exchange)
        for job in self._jobs.values():
            if job.polls and not job.done and not job.error:
                self._waited(record.t_ns, job, ", and it was not done")
        super()._close(record, said)

    def _forget(self, exchange: Exchange) -> None:
        """What was folded is over."""
        self._exchanges.pop(exchange.number, None)
        self._commands.pop(exchange.n, None)
        self._open.pop(exchange.n, None)

    # -- jobs -----------------------------------------------------------------------------------------

    def _named(self, exchange: Exchange, key: str) -> None:
        """A command's job has a name from now on."""
        if key and exchange.label and exchange.verb != "cancel":
            job = self._jobs.get(key)
            if job is None:
                self._jobs[key] = _Job(exchange.label, exchange.n)
                if len(self._jobs) > JOBS_LIMIT:
                    self._jobs.popitem(last=False)
            else:
                self._jobs.move_to_end(key)

    def _job_of(self, exchange: Exchange, said: Mapping[str, Any]) -> _Job | None:
        """The job that a poll asks for, if the command that made it is known."""
        key = _key(exchange, said)
        if key and key not in self._jobs:
            # It is held: its command has no RESULT yet, and the job was named in the gate's answer.
            for other in list(self._commands.values())[-LOOKED_LIMIT:]:
                if other.verb not in (POLL, UPLOAD) and other.response.begun:
                    self._named(other, key_in(bytes(other.response.body)))
        job = self._jobs.get(key)
        if job is not None:
            self._jobs.move_to_end(key)
        return job

    def _polled(self, record: Record, said: Mapping[str, Any], exchange: Exchange, job: _Job) -> None:
        """Tell what a poll brought, if it is news."""
        t_ns = record.t_ns
        status = max(whole(said.get("status")), exchange.response.status)
        job.polls += 1
        if job.since_ns < 0:
            job.since_ns = exchange.allowed_ns
        if problem := self._problem(said, exchange, status):
            if str(problem) != job.error:
                job.error = str(problem)
                self._waited(t_ns, job)
                Transcript._result(self, record, {**said, "command": job.n, "error": problem})
                self._latest = job.n
            job.done = job.done or said.get("state") == "DONE"
            return
        if said.get("state") in ("PENDING", "RUNNING"):
            if job.polls >= 10 and str(job.polls).rstrip("0") == "1":
                self._waited(t_ns, job, ", going on")
            return
        if not job.done:
            self._waited(t_ns, job)
        if isinstance(said.get("columns"), list) and isinstance(said.get("rows"), list):
            self._page(t_ns, said, job)
        done, job.done = job.done, True
        news = {key: value for key, value in said.items() if key not in job.told}
        job.told |= COST_KEYS & said.keys()
        if said.get("state") == "DONE" and not done:
            self._speak_of(t_ns, job)
            words = "DONE" if job.shown or not said.get("job") else job_words(said)
            self._line(t_ns, f"  {words}  {cost_words(news)}".rstrip(), DIM)
        elif NEWS_KEYS & news.keys():  # what it cost is in one answer, and how many rows it has in another
            self._speak_of(t_ns, job)
            self._line(t_ns, f"  {cost_words(news)}", DIM)

    def _waited(self, t_ns: int, job: _Job, end: str = "") -> None:
        """One line for all polls up to now."""
        took = t_ns - job.since_ns
        if job.polls > 1 or took >= PATIENCE_NS or end:
            self._speak_of(t_ns, job)
            polls = "1 poll" if job.polls == 1 else f"{job.polls} polls"
            self._line(t_ns, f"  waited {duration(max(0, took))} ({polls}){end}", DIM)

    def _speak_of(self, t_ns: int, job: _Job) -> None:
        """Say whose line follows, if another command was shown last."""
        if self._latest != job.n:
            self._line(t_ns, f"{job.label}:", DIM)
            self._latest = job.n

    def _page(self, t_ns: int, said: Mapping[str, Any], job: _Job) -> None:
        if job.paged:
            if self._pages is None or self._pages.job is not job:
                self._summaries(t_ns)
                self._pages = _Pages(job, "" if job.n == self._latest else f"{job.label} ")
            self._pages.count += 1
            self._pages.rows += max(0, whole(said.get("count")))
            self._pages.bytes += max(0, whole(said.get("bytes")))
            return
        job.paged = True
        self._speak_of(t_ns, job)
        self._rows(t_ns, said, self._of(said)[0], "")

    def _piece(self, exchange: Exchange) -> None:
        """Count a piece of an upload, of which others follow."""
        pieces = self._uploads.setdefault(exchange.text, _Pieces())
        pieces.count += 1
        if len(self._uploads) > JOBS_LIMIT:
            self._uploads.popitem(last=False)

    def _summaries(self, t_ns: int) -> None:
        super()._summaries(t_ns)
        pages, self._pages = self._pages, None
        if pages is not None:
            noun = "page" if pages.count == 1 else "pages"
            text = f"  ... {pages.label}{pages.count} more {noun} recorded: {pages.rows} rows, {size(pages.bytes)}"
            Transcript._add(self, t_ns, "o", self._paint(text, DIM) + self._newline)

    # -- answers --------------------------------------------------------------------------------------

    def _answer(self, record: Record, said: Mapping[str, Any], exchange: Exchange, status: int) -> None:
        call = _is_call(exchange, said)
        if self._messages or not (call or said.get("job") or said.get("direction")):
            super()._answer(record, said, exchange, status)
            return
        t_ns = record.t_ns
        problem = self._problem(said, exchange, status)
        if call:
            self._call(record, said, exchange, problem)
            return
        tag = str(said.get("tag", ""))
        self._status_line(t_ns, exchange, str(status) if status else tag)
        pieces = self._uploads.pop(exchange.text, _Pieces())
        if content := content_words(said, pieces.count + 1):
            self._line(t_ns, f"  {content}")
        if said.get("job"):
            self._line(t_ns, f"  {job_words(said)}", RED if problem else DIM)
        opened, _ = self._of(said)
        if problem:
            Transcript._result(self, record, {**said, "error": problem})
        elif isinstance(said.get("columns"), list) and isinstance(said.get("rows"), list):
            self._rows(t_ns, said, opened, "")
        elif said.get("job_type") not in (None, "query") and exchange.kind != "read":
            self._view(t_ns, body_lines(exchange.request, self._columns - 4), "  > ")
        cost = cost_words(said)
        if cost:
            self._line(t_ns, f"  {cost}", DIM)
        if status and tag and not tag.startswith(str(status)):  # "broken off"
            self._line(t_ns, f"[{tag}]", RED)

    def _call(self, record: Record, said: Mapping[str, Any], exchange: Exchange, problem: Mapping[str, Any]) -> None:
        """A call of the Storage API is one line."""
        rows, amount = whole(said.get("count")), whole(said.get("bytes"))
        noun = "row" if rows == 1 else "rows"
        brought = f"  {rows} {noun}, {size(amount)}" if rows > 0 or amount > 0 else ""
        # The name of the call may be in the command's text, or in the tag.
        words = [str(said.get("rpc") or ""), str(said.get("tag") or "")]
        told = "  ".join(word for word in words if word and not exchange.text.startswith(word))
        self._status_line(record.t_ns, exchange, (told + brought).strip() or "done")
        if problem:
            Transcript._result(self, record, {**said, "error": problem})

    def _language(self, text: str) -> str:
        return "" if is_method(text) else super()._language(text)


def _is_call(exchange: Exchange, said: Mapping[str, Any]) -> bool:
    """Whether it was a call of the Storage API: its flow has no messages of HTTP, and its RESULT no status of it."""
    return bool(said.get("rpc")) or (not exchange.request.begun and whole(said.get("status")) < 0)


def _key(exchange: Exchange, said: Mapping[str, Any]) -> str:
    """What the job of an exchange is told apart by: as its answer names it, or as a poll asks for it."""
    job = said.get("job")
    if isinstance(job, str) and job:
        return key_of(job)
    return key_of(exchange.text.partition(" ")[2]) if exchange.verb == POLL else ""
