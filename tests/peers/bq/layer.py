"""The layer itself: who asks, what for, and whether the emulator may answer it alone (gaps.py says why not)."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from tests.peers.bq.estimate import Estimator
from tests.peers.bq.http import Answer, ApiError, Connection, Emulator, Request
from tests.peers.bq.jobs import Jobs
from tests.peers.bq.rows import insert_errors, with_float_timestamps
from tests.peers.bq.uploads import Uploads

EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
TOKEN_SECONDS: Final = 3600
DISCOVERY: Final = ("/$discovery/rest", "/discovery/v1/apis/bigquery/v2/rest")
BODY_LOG_LIMIT: Final = 1 << 16


class Tokens:
    """Bearer tokens and whom they name; subject tokens, which can be exchanged for one of them."""

    def __init__(self, tokens: dict[str, str], subjects: dict[str, str]) -> None:
        self._tokens = dict(tokens)
        self._subjects = dict(subjects)

    def user(self, authorization: str) -> str | None:
        """Whom an Authorization header names."""
        kind, _, token = authorization.partition(" ")
        return self._tokens.get(token.strip()) if kind.lower() == "bearer" else None

    def exchange(self, request: Request) -> Answer:
        """RFC 8693: a subject token for an access token."""
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        user = self._subjects.get(form.get("subject_token", "").strip())
        if form.get("grant_type") != EXCHANGE:
            return Answer(400, {"error": "unsupported_grant_type", "error_description": "token-exchange alone"})
        if user is None:
            return Answer(400, {"error": "invalid_grant", "error_description": "The subject token is not known."})
        token = f"bq-{uuid.uuid4().hex}"
        self._tokens[token] = user
        return Answer(200, {
            "access_token": token, "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer",
            "expires_in": TOKEN_SECONDS,
        })  # fmt: skip


@dataclass(slots=True)
class Log:
    """requests.jsonl: a line for each request."""

    path: Path

    def write(self, **values: Any) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"at": time.time(), **values}) + "\n")


class Layer:
    """The real service, as far as gaps.py goes."""

    def __init__(self, emulator: Emulator, folder: Path, tokens: Tokens, discovery: Path, log: Log) -> None:
        self._emulator = emulator
        self._tokens = tokens
        self._discovery = discovery
        self._log = log
        self._estimator = Estimator(emulator, folder)
        self.jobs = Jobs(emulator, self._estimator)
        self._uploads = Uploads(emulator, self.jobs)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        scheme = "https" if writer.get_extra_info("ssl_object") else "http"
        connection = Connection(reader, writer, scheme)
        try:
            while (request := await connection.request()) is not None:
                answer = await self._answer(request)
                if not await connection.answer(request, answer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the user left
        finally:
            writer.close()

    async def _answer(self, request: Request) -> Answer:
        try:
            answer = await self._served(request)
        except ApiError as error:
            answer = error.answer
        except Exception as error:  # answers 503: a test that meets it fails on it, and the log has the text
            text = f"the layer failed: {type(error).__name__}: {error}"
            self._log.write(failed=text, path=request.path)
            answer = ApiError(503, "backendError", text).answer
        fields = request.one("fields") or request.one("$fields")
        if fields and answer.code == HTTPStatus.OK:
            answer = Answer(answer.code, _cut(answer.object, fields), answer.headers)
        body: Any = f"{len(request.body)} bytes"
        if len(request.body) < BODY_LOG_LIMIT:
            body = request.data.decode(errors="replace")
        self._log.write(
            method=request.method, host=request.headers.get("host", ""), path=request.path, query=dict(request.query),
            headers=dict(request.headers), body=body, user=request.user, code=answer.code,
        )  # fmt: skip
        return answer

    async def _served(self, request: Request) -> Answer:
        if request.path == "/v1/token" and request.method == "POST":
            return self._tokens.exchange(request)
        if request.path in DISCOVERY and request.method == "GET":
            document = json.loads(self._discovery.read_text())
            document["rootUrl"] = document["mtlsRootUrl"] = f"{request.base}/"
            document["baseUrl"] = f"{request.base}/bigquery/v2/"
            return Answer(200, document)
        user = self._tokens.user(request.headers.get("authorization", ""))
        if user is None:
            raise _unauthenticated()
        request.user = user
        match request.segments:
            case ["upload", "bigquery", "v2", "projects", project, "jobs"]:
                return await self._uploads.answer(project, request)
            case ["resumable", "upload", "bigquery", "v2", "projects", project, "jobs"]:
                return await self._uploads.answer(project, request)
            case ["bigquery", "v2", "projects", *rest] | ["projects", *rest]:
                return await self._resource(rest, request)
            case _:
                raise ApiError(404, "notFound", f"The requested URL {request.path} was not found on this server.")

    async def _resource(self, rest: list[str], request: Request) -> Answer:
        jobs = self.jobs
        match request.method, rest:
            case "GET", []:
                answer = await self._passed(rest, request)
                for index, each in enumerate(answer.object.get("projects", []), 1):
                    each.setdefault("numericId", str(index))
                return answer
            case "POST", [project, "jobs"]:
                return await jobs.insert(project, request.json(), request)
            case "GET", [project, "jobs"]:
                return await jobs.list(project, request)
            case "GET", [project, "jobs", name]:
                return await jobs.get(project, name, request)
            case "POST", [project, "jobs", name, "cancel"]:
                return await jobs.cancel(project, name, request)
            case "DELETE", [project, "jobs", name, "delete"]:
                return await jobs.delete(project, name)
            case "POST", [project, "queries"]:
                return await jobs.query(project, request.json(), request)
            case "GET", [project, "queries", name]:
                return await jobs.results(project, name, request)
            case _:
                return await self._table(rest, request)

    async def _table(self, rest: list[str], request: Request) -> Answer:
        if len(rest) > 4 and rest[4].startswith("anon"):
            await self.jobs.materialise(rest[4])
        match request.method, rest:
            case "GET", [_, "datasets", "synthetic", "tables", _]:  # of the Storage API alone: storage.py
                return Answer(200, {"kind": "bigquery#table", "type": "TABLE"})
            case "GET", [project, "datasets", dataset, "tables", table]:
                found = await self._estimator.table((project, dataset, table))
                return await self._passed(rest, request) if found is None else Answer(200, found)
            case "GET", [project, "datasets", dataset, "tables", table, "data"]:
                return await self._rows((project, dataset, table), rest, request)
            case "POST", [project, "datasets", dataset, "tables", table, "insertAll"]:
                found = await self._estimator.table((project, dataset, table)) or {}
                errors = insert_errors(found.get("schema", {}).get("fields", []), request.json())
                if errors:
                    return Answer(200, {"kind": "bigquery#tableDataInsertAllResponse", "insertErrors": errors})
                return await self._passed(rest, request)
            case "GET", [_, "datasets"]:
                answer = await self._passed(rest, request)
                listed = answer.object.get("datasets", [])  # hidden ones are not listed without all=true
                kept = [each for each in listed if not each["datasetReference"]["datasetId"].startswith("_")]
                answer.object["datasets"] = kept
                return answer
            case _:
                return await self._passed(rest, request)

    async def _rows(self, table: tuple[str, str, str], rest: list[str], request: Request) -> Answer:
        answer = await self._passed(rest, request)
        if answer.code == HTTPStatus.OK and request.one("formatOptions.useInt64Timestamp").lower() != "true":
            fields = ((await self._estimator.table(table)) or {}).get("schema", {}).get("fields", [])
            if wanted := request.one("selectedFields"):
                names = [name.split(".")[0] for name in wanted.split(",")]
                fields = [field for field in fields if field["name"] in names]
            with_float_timestamps(fields, answer.object.get("rows", []))
        return answer

    async def _passed(self, rest: list[str], request: Request) -> Answer:
        """Ask the emulator the same."""
        path = "/" + request.path.strip("/")
        path = path if path.startswith("/bigquery/v2") else f"/bigquery/v2{path}"
        return await self._emulator.ask(request.method, path, request.data or None, request.query)


def _unauthenticated() -> ApiError:
    text = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    error = ApiError(401, "authError", text, location="Authorization", locationType="header")
    error.answer.headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
    return error


def _cut(value: dict[str, Any], fields: str) -> dict[str, Any]:
    """A partial answer: the top level's names alone."""
    names, depth, name = set(), 0, ""
    for letter in fields + ",":
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            names.add(name.split("/")[0].split("(")[0].strip())
            name = ""
        else:
            name += letter
    return value if "*" in names else {key: each for key, each in value.items() if key in names}
