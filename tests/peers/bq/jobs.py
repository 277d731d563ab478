"""Jobs as the real service shows them, over the emulator's, which are done when jobs.insert answers.

The ledger keeps for each job what the emulator forgets: configuration as it was sent, who sent it, the id it has there
(uploads get one of the emulator's), what it would read, its anonymous table. Names: gaps.py.
"""

from __future__ import annotations

import copy
import hashlib
import time
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from tests.peers.bq.estimate import Estimate, Estimator, Table, reference
from tests.peers.bq.http import Answer, ApiError, Emulator, Request
from tests.peers.bq.rows import with_float_timestamps

# Fields of jobs.query that jobs.insert has in configuration.query, and those it has in configuration.
QUERY_FIELDS: Final = (
    "query", "defaultDataset", "useQueryCache", "useLegacySql", "parameterMode", "queryParameters", "createSession",
    "connectionProperties", "maximumBytesBilled", "writeIncrementalResults", "destinationEncryptionConfiguration",
)  # fmt: skip
CONFIGURATION_FIELDS: Final = ("labels", "dryRun", "jobTimeoutMs", "reservation")
DML: Final = {"INSERT": "insertedRowCount", "UPDATE": "updatedRowCount", "DELETE": "deletedRowCount"}
DEFAULT_ROWS: Final = 10_000
LOCATION: Final = "US"


@dataclass(slots=True)
class Job:
    """What the ledger knows of a job. there: its id at the emulator; anonymous: the table of its result."""

    project: str
    name: str
    there: str
    kind: str
    configuration: dict[str, Any]
    user: str
    estimate: Estimate = field(default_factory=Estimate)
    anonymous: Table | None = None
    made: bool = False
    error: dict[str, str] | None = None  # what the layer itself refused, as a job that failed
    at: str = ""  # when, in milliseconds


class Jobs:
    """The ledger and the methods of jobs."""

    def __init__(self, emulator: Emulator, estimator: Estimator) -> None:
        self._emulator = emulator
        self._estimator = estimator
        self._jobs: dict[tuple[str, str], Job] = {}
        self._anonymous: dict[Table, Job] = {}
        self._asked: dict[tuple[str, str], Answer] = {}  # jobs.query by requestId

    # -- jobs.insert -----------------------------------------------------------------------------

    async def insert(self, project: str, body: dict[str, Any], request: Request) -> Answer:
        """jobs.insert: the job as it is at once, RUNNING; a dry run is done."""
        job = await self._run(project, body, request.user)
        if isinstance(job, Answer):
            return job
        resource = await self.resource(job, request.base)
        if resource["status"]["state"] == "DONE":
            resource["status"] = {"state": "RUNNING"}
            resource["statistics"] = {
                name: resource["statistics"][name]
                for name in ("creationTime", "startTime")
                if name in resource["statistics"]
            }
        return Answer(200, resource)

    async def _run(self, project: str, body: dict[str, Any], user: str) -> Job | Answer:
        configuration = body.get("configuration", {})
        kind = next((each for each in ("query", "load", "extract", "copy") if each in configuration), "")
        if not kind:
            raise ApiError(400, "invalid", "Required parameter is missing: configuration")
        asked = body.get("jobReference", {})
        name = asked.get("jobId") or f"job_{uuid.uuid4().hex[:28]}"
        self.reserve(project, name)
        estimate = Estimate()
        if kind == "query":
            query = configuration["query"]
            estimate = await self._estimator.of(query.get("query", ""), project, query.get("defaultDataset"))
            if configuration.get("dryRun"):
                return await self._dry(project, configuration, estimate)
            if error := _over_limit(query, estimate) or await self._not_empty(project, query):
                at = str(int(time.time() * 1000))
                self._jobs[project, name] = Job(
                    project, name, name, kind, configuration, user, estimate, error=error, at=at
                )
                return self._jobs[project, name]
        sent = copy.deepcopy(configuration)
        if kind == "query":
            await self.materialise(sent["query"].get("query", ""))
            sent["query"].setdefault("useLegacySql", True)
        there = {"projectId": project, "jobId": name}
        said = await self._emulator.api("POST", project, "jobs", value={"jobReference": there, "configuration": sent})
        if said.code != HTTPStatus.OK:
            raise _Passed(said)
        job = self.keep(Job(project, name, name, kind, configuration, user, estimate), said.object)
        failed = "errorResult" in said.object.get("status", {})
        if kind == "query" and not failed and configuration["query"].get("destinationTable"):
            await self._write(job)
        return job

    def reserve(self, project: str, name: str) -> None:
        """Raise ApiError where the job is there."""
        if (project, name) in self._jobs:
            raise ApiError(409, "duplicate", f"Already Exists: Job {project}:{LOCATION}.{name}")

    def keep(self, job: Job, said: dict[str, Any]) -> Job:
        """Take a job into the ledger, by the emulator's answer."""
        self._jobs[job.project, job.name] = job
        kind = said.get("statistics", {}).get("query", {}).get("statementType", "")
        if job.kind == "query" and kind == "SELECT" and not job.configuration["query"].get("destinationTable"):
            dataset = "_" + hashlib.sha1(f"{job.project}/{job.user}".encode()).hexdigest()
            anonymous = (job.project, dataset, "anon" + hashlib.sha256(job.name.encode()).hexdigest())
            job.anonymous = anonymous
            self._anonymous[anonymous] = job
        return job

    async def _dry(self, project: str, configuration: dict[str, Any], estimate: Estimate) -> Answer:
        value = {"jobReference": {"projectId": project}, "configuration": configuration}
        said = await self._emulator.api("POST", project, "jobs", value=value)
        if said.code != HTTPStatus.OK:
            raise _Passed(said)
        resource = said.object
        if error := resource["status"].get("errorResult"):
            raise ApiError.of(error)
        resource["jobReference"] = {"projectId": project, "location": LOCATION}
        resource["configuration"] = {"jobType": "QUERY", **configuration}
        _add_estimate(resource["statistics"], estimate)
        return Answer(200, resource)

    # -- jobs.get, jobs.list, jobs.cancel, jobs.delete -----------------------------------------------

    async def get(self, project: str, name: str, request: Request) -> Answer:
        """jobs.get."""
        return Answer(200, await self.resource(self._job(project, name), request.base))

    async def list(self, project: str, request: Request) -> Answer:
        """jobs.list, newest first; child jobs there are none."""
        jobs = [] if request.one("parentJobId") else [job for job in self._jobs.values() if job.project == project]
        found = []
        for job in reversed(jobs[-int(request.one("maxResults", "50")) :]):
            resource = await self.resource(job, request.base)
            found.append({**resource, "kind": "bigquery#job", "state": resource["status"]["state"]})
        return Answer(200, {"kind": "bigquery#jobList", "jobs": found})

    async def cancel(self, project: str, name: str, request: Request) -> Answer:
        """jobs.cancel: jobs are done, so it changes nothing."""
        job = await self.resource(self._job(project, name), request.base)
        return Answer(200, {"kind": "bigquery#jobCancelResponse", "job": job})

    async def delete(self, project: str, name: str) -> Answer:
        """jobs.delete."""
        job = self._job(project, name)
        said = await self._emulator.api("DELETE", project, "jobs", job.there, "delete")
        del self._jobs[project, name]
        return said

    def _job(self, project: str, name: str) -> Job:
        try:
            return self._jobs[project, name]
        except KeyError:
            raise ApiError(404, "notFound", f"Not found: Job {project}:{name}") from None

    async def resource(self, job: Job, base: str) -> dict[str, Any]:
        """A job's resource as the real service shows it."""
        if job.error:
            times = dict.fromkeys(("creationTime", "startTime", "endTime"), job.at)
            status = {"state": "DONE", "errorResult": job.error, "errors": [job.error]}
            resource: dict[str, Any] = {"kind": "bigquery#job", "status": status, "statistics": {**times, "query": {}}}
        else:
            said = await self._emulator.api("GET", job.project, "jobs", job.there)
            if said.code != HTTPStatus.OK:
                raise _Passed(said)
            resource = said.object
        resource["id"] = f"{job.project}:{LOCATION}.{job.name}"
        resource["jobReference"] = _reference(job)
        resource["selfLink"] = f"{base}/bigquery/v2/projects/{job.project}/jobs/{job.name}?location={LOCATION}"
        resource["user_email"] = job.user
        resource["principal_subject"] = f"user:{job.user}"
        resource["configuration"] = {"jobType": job.kind.upper(), **copy.deepcopy(job.configuration)}
        statistics = resource["statistics"]
        if job.kind == "query":
            query = resource["configuration"]["query"]
            written = job.anonymous or job.estimate.target
            if written and not query.get("destinationTable"):
                query["destinationTable"] = reference(written)
            query.setdefault("priority", "INTERACTIVE")
            _add_estimate(statistics, job.estimate)
            _add_dml(statistics["query"])
        statistics.setdefault("totalSlotMs", "1")
        return resource

    # -- results ---------------------------------------------------------------------------------------

    async def query(self, project: str, body: dict[str, Any], request: Request) -> Answer:
        """jobs.query: a job, and its first page."""
        key = (project, str(body.get("requestId", "")))
        if key[1] and key in self._asked:
            return self._asked[key]
        configuration = {name: body[name] for name in CONFIGURATION_FIELDS if name in body}
        configuration["query"] = {name: body[name] for name in QUERY_FIELDS if name in body}
        job = await self._run(project, {"configuration": configuration}, request.user)
        if isinstance(job, Answer):
            answer = _dry_response(job.object)
        else:
            answer = await self._first_page(job, body, request)
        if key[1]:
            self._asked[key] = answer
        return answer

    async def _first_page(self, job: Job, body: dict[str, Any], request: Request) -> Answer:
        integers = bool(body.get("formatOptions", {}).get("useInt64Timestamp"))
        page = await self._page(job, [("maxResults", str(body.get("maxResults", DEFAULT_ROWS)))], integers)
        page["kind"] = "bigquery#queryResponse"
        statistics = (await self.resource(job, request.base))["statistics"]
        for name in ("creationTime", "startTime", "endTime"):
            if name in statistics:
                page[name] = statistics[name]
        optional = body.get("jobCreationMode") == "JOB_CREATION_OPTIONAL"
        page["queryId"] = f"job_{job.name}" if not optional else job.name
        if optional and "pageToken" not in page:
            del page["jobReference"]
        else:
            page["jobCreationReason"] = {"code": "LARGE_RESULTS" if optional else "REQUESTED"}
        return Answer(200, page)

    async def results(self, project: str, name: str, request: Request) -> Answer:
        """jobs.getQueryResults."""
        query = [(key, value) for key, value in request.query if key in ("maxResults", "startIndex", "pageToken")]
        integers = request.one("formatOptions.useInt64Timestamp").lower() == "true"
        return Answer(200, await self._page(self._job(project, name), query, integers))

    async def _page(self, job: Job, query: list[tuple[str, str]], integers: bool) -> dict[str, Any]:
        resource = await self.resource(job, "")
        if error := resource["status"].get("errorResult"):
            raise ApiError.of(error)
        where = f"/bigquery/v2/projects/{job.project}/queries/{job.there}"
        said = await self._emulator.ask("GET", where, query=query)
        if said.code != HTTPStatus.OK:
            raise _Passed(said)
        page = said.object
        page["jobReference"] = _reference(job)
        page["totalBytesProcessed"] = str(job.estimate.size_bytes)
        facts = resource["statistics"].get("query", {})
        for name in ("cacheHit", "numDmlAffectedRows", "dmlStats"):
            if name in facts:
                page[name] = facts[name]
        if "sessionInfo" in resource["statistics"]:
            page["sessionInfo"] = resource["statistics"]["sessionInfo"]
        if ("maxResults", "0") in query:
            page.pop("pageToken", None)
            page.pop("rows", None)
        elif not integers:
            with_float_timestamps(page.get("schema", {}).get("fields", []), page.get("rows", []))
        return page

    # -- tables of results -----------------------------------------------------------------------------

    async def materialise(self, text: str) -> None:
        """Make the anonymous tables that a text names, if they are not there: on first use, by the query again."""
        if "anon" not in text:
            return
        for table, job in list(self._anonymous.items()):
            if table[2] in text and not job.made:
                job.made = True
                dataset = {"datasetReference": {"projectId": table[0], "datasetId": table[1]}}
                await self._emulator.api("POST", table[0], "datasets", value=dataset)
                await self._again(job, f"CREATE OR REPLACE TABLE {_quoted(table)} AS")

    async def _not_empty(self, project: str, query: dict[str, Any]) -> dict[str, str] | None:
        """The error of a job that may only write to an empty table, where it is not."""
        destination = query.get("destinationTable")
        if not destination or query.get("writeDisposition", "WRITE_EMPTY") != "WRITE_EMPTY":
            return None
        table = (destination.get("projectId", project), destination["datasetId"], destination["tableId"])
        found = await self._estimator.table(table)
        if not found or found.get("numRows", "0") == "0":
            return None
        return {"reason": "duplicate", "message": f"Already Exists: Table {table[0]}:{table[1]}.{table[2]}"}

    async def _write(self, job: Job) -> None:
        query = job.configuration["query"]
        given = query["destinationTable"]
        table = (given.get("projectId", job.project), given["datasetId"], given["tableId"])
        append = query.get("writeDisposition") == "WRITE_APPEND" and await self._estimator.table(table)
        verb = f"INSERT INTO {_quoted(table)}" if append else f"CREATE OR REPLACE TABLE {_quoted(table)} AS"
        await self._again(job, verb)

    async def _again(self, job: Job, verb: str) -> None:
        query = {name: job.configuration["query"][name] for name in QUERY_FIELDS if name in job.configuration["query"]}
        query["query"] = f"{verb}\n{query['query'].strip().rstrip(';')}"
        query.pop("createSession", None)
        said = await self._emulator.api("POST", job.project, "jobs", value={"configuration": {"query": query}})
        error = said.object.get("status", {}).get("errorResult")
        if said.code != HTTPStatus.OK:
            raise _Passed(said)
        if error:
            raise ApiError.of(error)


class _Passed(ApiError):
    """An error of the emulator, as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.code, "invalid", "the emulator refused")
        self.answer = answer


def _quoted(table: Table) -> str:
    return "`" + ".".join(table) + "`"


def _reference(job: Job) -> dict[str, str]:
    return {"projectId": job.project, "jobId": job.name, "location": LOCATION}


def _over_limit(query: dict[str, Any], estimate: Estimate) -> dict[str, str] | None:
    limit = query.get("maximumBytesBilled")
    if limit is None or estimate.billed_bytes <= int(limit):
        return None
    text = f"Query exceeded limit for bytes billed: {limit}. {estimate.billed_bytes} or higher required."
    return {"reason": "bytesBilledLimitExceeded", "message": text}


def _add_estimate(statistics: dict[str, Any], estimate: Estimate) -> None:
    query = statistics.setdefault("query", {})
    statistics["totalBytesProcessed"] = query["totalBytesProcessed"] = str(estimate.size_bytes)
    query["totalBytesBilled"] = str(estimate.billed_bytes)
    query["totalBytesProcessedAccuracy"] = "PRECISE"
    if estimate.references:
        query["referencedTables"] = estimate.references


def _add_dml(query: dict[str, Any]) -> None:
    name = DML.get(query.get("statementType", ""))
    if name and "numDmlAffectedRows" in query:
        counts = dict.fromkeys(DML.values(), "0") | {name: str(query["numDmlAffectedRows"])}
        query["dmlStats"] = counts


def _dry_response(resource: dict[str, Any]) -> Answer:
    query = resource["statistics"]["query"]
    return Answer(200, {
        "kind": "bigquery#queryResponse", "schema": query.get("schema", {}), "jobReference": resource["jobReference"],
        "totalBytesProcessed": query["totalBytesProcessed"], "jobComplete": True, "cacheHit": False,
    })  # fmt: skip
