"""Canaries with BigQuery: credentials, users' tokens and masked values are in no byte that a gateway leaves.

One real gateway with everything on: a masked column, an original track for an auditor, encryption, two workers, index,
JSON log with stacks. Plain clients make it handle what must not be kept in every way that REST, the token endpoint and
the Storage API have, held jobs among them; the target quotes masked values in its errors. Then it is killed, so that
its write-ahead logs stay. What is searched: as in tests/test_canary_kubernetes.py.

The same search with the mask taken out must find the value: a search that finds nothing may just be blind.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

import grpc
import pytest

from protocols.bigquery import storage_wire as wire
from recorder.cipher import AuditorKey
from recorder.reader import TapeReader
from tests.bigquery.place_bq import ALLOW_ALL, HOLDS, MASK, PROJECT, TARGET, V2, Api, BqGateway, BqPlace, job_of
from tests.bigquery.scripted_bq import TOKEN, Asked, Handler, Scripted, scripted
from tests.bigquery.storage_service import SERVICE, Service, Status, storage_service
from tests.bigquery.test_storage_calls import ARROW, NAME, STREAM, asking, batch
from tests.test_canary_kubernetes import commands_output
from tests.test_canary_psql import Search, family, search_files

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
PART: Final = b"kanarienvogel"
VALUE: Final = 'kanarienvogel "auf" <voliere> & ast/zweig+ä'  # what JSON and URLs each write in their own way
WRONG: Final = "gct_dompfaff-is-no-token"
STORED: Final = f"projects/{PROJECT}/datasets/crm/tables/people"
SELECT: Final = "SELECT id, email FROM crm.people -- {}"
LOCKED: Final = "locked"
AVRO: Final = (
    '{"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, '
    '{"name": "email", "type": ["null", "string"]}]}'
)


@dataclass(slots=True)
class World:
    """A gateway's folder and what its clients do. seen: what clients showed; bearers: tokens of the gateway's own."""

    place: BqPlace
    service: Scripted
    storage: Service
    reader: AuditorKey
    auditor: AuditorKey
    seen: dict[str, bytes] = field(default_factory=dict)
    bearers: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The gateway's."""
        return self.place.folder

    def shared(self, sid: str) -> bool:
        """Every tape is shown in every way."""
        return True

    def use(self, gateway: BqGateway, target: str) -> None:
        """Have the values shown in every way."""
        for token in (gateway.token, self.exchange(gateway, target)):
            self.read(gateway, target, token)
            self.fail(gateway, target, token)
        self.hold(gateway, target)
        self.store(gateway)
        self.log_in(gateway, target)

    def note(self, what: str, api: Api, method: str, path: str, value: Any = None, code: int = 200) -> None:
        """Ask, and keep what was shown."""
        answer = api.ask(method, path, value)
        assert answer.code == code, (what, answer)
        self.seen[what] = str(answer.headers).encode() + answer.body

    def exchange(self, gateway: BqGateway, target: str) -> str:
        """Exchange the user's token at the token endpoint."""
        form = {
            "audience": f"//gatecast/{target}", "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        }  # fmt: skip
        for token in (WRONG, gateway.token):
            context = ssl.create_default_context(cafile=str(gateway.authority))
            connection = http.client.HTTPSConnection("localhost", gateway.port, context=context, timeout=30)
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/v1/token", urlencode({**form, "subject_token": token}), kind)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            if token == WRONG:
                assert answer.status == 400, body
                self.seen["wrong exchange"] = body
        assert answer.status == 200, body
        bearer: str = json.loads(body)["access_token"]
        self.bearers.append(bearer)
        return bearer

    def read(self, gateway: BqGateway, target: str, token: str) -> None:
        """Rows by every method, in every form; a job's own description."""
        api, mark = Api(gateway, token=token, target=target), f"{target}{token[:3]}"
        for number, query in enumerate(("", "?maxResults=1", "?formatOptions.useInt64Timestamp=true", "?fields=rows")):
            name = f"{mark}{number}"
            self.note(f"{name} insert", api, "POST", f"{V2}/jobs", job_of(name, SELECT.format(name)))
            self.note(f"{name} page", api, "GET", f"{V2}/queries/{name}{query}")
            self.note(f"{name} get", api, "GET", f"{V2}/jobs/{name}")
        body = {"query": SELECT.format(mark), "useLegacySql": False, "labels": {"by": "ana"}}
        self.note(f"{mark} query", api, "POST", f"{V2}/queries", body)
        self.note(f"{mark} table", api, "GET", f"{V2}/datasets/crm/tables/people/data")
        api.close()

    def fail(self, gateway: BqGateway, target: str, token: str) -> None:
        """Errors that quote the value, in answers, jobs and rows that were not inserted."""
        api, mark = Api(gateway, token=token, target=target), f"{target}{token[:3]}"
        wrong = {"query": SELECT.format("quote_it"), "useLegacySql": False}
        self.note(f"{mark} quoting query", api, "POST", f"{V2}/queries", wrong, 400)
        job = job_of(f"{mark}q", SELECT.format("quote_it"))
        self.note(f"{mark} quoting insert", api, "POST", f"{V2}/jobs", job, 400)
        job = job_of(f"{mark}e", SELECT.format("quote_later"))
        self.note(f"{mark} quoting job", api, "POST", f"{V2}/jobs", job)
        self.note(f"{mark} quoting poll", api, "GET", f"{V2}/jobs/{mark}e")
        self.note(f"{mark} quoting list", api, "GET", f"{V2}/jobs")
        api.close()

    def hold(self, gateway: BqGateway, target: str) -> None:
        """A held job that runs, and one that waits when the gateway is killed."""
        api = Api(gateway, target=target)
        for name in ("ran", "waits"):
            job = job_of(f"{target}{name}", SELECT.format(f"ask_first {target}{name}"))
            self.note(f"{target} held {name}", api, "POST", f"{V2}/jobs", job)
        gateway.approve(f"ask_first {target}ran")
        self.note(f"{target} held page", api, "GET", f"{V2}/queries/{target}ran?timeoutMs=20000")
        api.close()

    def store(self, gateway: BqGateway) -> None:
        """The Storage API in Arrow and in Avro, and an error of it."""
        trust = grpc.ssl_channel_credentials(gateway.authority.read_bytes())
        with grpc.secure_channel(f"localhost:{gateway.port}", trust) as channel:
            for form, token in ((2, gateway.token), (1, self.bearers[-1]), (3, gateway.token)):
                self.answer(form)
                metadata = [("authorization", f"Bearer {token}")]
                reads = asking(table=STORED, data_format=min(form, 2))
                list(channel.unary_stream(SERVICE + "CreateReadSession")(reads, metadata=metadata, timeout=30))
                asked = wire.encode(wire.READ_ROWS, {"read_stream": STREAM})
                try:
                    said = b"".join(channel.unary_stream(SERVICE + "ReadRows")(asked, metadata=metadata, timeout=30))
                except grpc.RpcError as error:
                    assert form == 3, error
                    said = repr(error).encode()
                assert len(said) > 10
                self.seen[f"storage {form}"] = said
            wrong = [("authorization", f"Bearer {WRONG}")]
            with pytest.raises(grpc.RpcError) as refused:
                list(channel.unary_stream(SERVICE + "ReadRows")(asked, metadata=wrong, timeout=30))
            self.seen["storage refused"] = repr(refused.value).encode()

    def answer(self, form: int) -> None:
        """What the Storage API says: 1 Avro, 2 Arrow, 3 an error."""
        cell = VALUE.encode()
        avro = b"\x02\x02" + bytes((len(cell) * 2,)) + cell
        self.storage.session(NAME, {"avro_schema": {"schema": AVRO}} if form == 1 else ARROW)
        if form == 1:
            self.storage.rows({"avro_rows": {"serialized_binary_rows": avro, "row_count": 1}, "row_count": 1})
        elif form == 2:
            self.storage.rows(batch([(1, VALUE)], ARROW))
        else:
            self.storage.answers["ReadRows"] = _quoting_call

    def log_in(self, gateway: BqGateway, target: str) -> None:
        """Tokens where they do not belong, and tokens that are none."""
        for what, path in {
            "query": f"{V2}/datasets?access_token={gateway.token}", "key": f"{V2}/datasets?key={gateway.token}",
            "page": f"{V2}/datasets?pageToken=x&oauth_token={self.bearers[-1]}",
        }.items():  # fmt: skip
            api = Api(gateway, target=target)
            self.note(f"{target} token in {what}", api, "GET", path, code=400)
            api.close()
        for token in (WRONG, "gca_" + WRONG, gateway.token + "x", self.bearers[-1] + "x"):
            api = Api(gateway, target=target, token=token)
            self.note(f"{target} wrong {token[-9:]}", api, "GET", f"{V2}/datasets", code=401)
            api.close()


def _quoting_call(request: bytes) -> Iterator[bytes]:
    raise Status(grpc.StatusCode.INVALID_ARGUMENT, f"Bad value: {VALUE}")
    yield b""


def quote(service: Scripted) -> None:
    """Have the target quote the value in errors, and in jobs that failed."""
    service.rows = [("1", VALUE), ("2", VALUE)]
    message = f"Could not cast literal \"{VALUE}\" to type INT64; '{VALUE}'"

    def refuse(handler: Handler, asked: Asked) -> None:
        handler.failure(400, "invalidQuery", message)

    def later(handler: Handler, asked: Asked) -> None:
        error = {"reason": "invalidQuery", "message": message, "location": "q"}
        handler.served(asked)
        for job in tuple(service.jobs.values()):
            if "quote_later" in str(job["configuration"]):
                job["status"] = {"state": "DONE", "errorResult": error, "errors": [error]}

    service.scripts.update({"quote_it": refuse, "quote_later": later})


@contextmanager
def world_of(tmp_path: Path, rules: str) -> Iterator[World]:
    """A world in a folder, the target's secret in another."""
    for name in ("gw", "own", "gw/tmp", "gw/exports"):
        (tmp_path / name).mkdir()
    with scripted(tmp_path / "service") as service, storage_service() as storage:
        quote(service)
        folder = tmp_path / "gw"
        reader, auditor = AuditorKey.generate(folder / "reader.key"), AuditorKey.generate(folder / "auditor.key")
        (folder / "reader.pub").write_bytes(reader.public_pem())
        (folder / "auditor.pub").write_bytes(auditor.public_pem())
        world = World(BqPlace(folder, service), service, storage, reader, auditor)
        secret = tmp_path / "own" / "target_token"
        (folder / "target_token").rename(secret)
        plain = {"storage": f"127.0.0.1:{storage.port}", "storage_plain": True}
        common = {"credential": {"token_file": str(secret)}, "bigquery": plain}
        world.place.configure(
            rules,
            workers=2,
            targets={
                TARGET: {**common, "original_to": ["auditor.pub"]},
                LOCKED: {**common, "recording": "strict", "encrypt_to": ["reader.pub"]},
            },
            recorder={"index": True},
        )
        yield world


class Seeking(Search):
    """A Search to which canaries are added."""

    def add(self, canary: bytes) -> None:
        """Look for this too."""
        self._needles.update(Search((canary,))._needles)


def run_world(
    world: World, search: Seeking, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Use a gateway, kill it, and look everywhere; start it again, and look once more."""
    folder, keys = world.folder, [world.reader]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    more = {"TMPDIR": str(folder / "tmp"), "GATECAST_DEBUG": "1"}
    with world.place.serving("log-1", more) as gateway:
        for target in (TARGET, LOCKED):
            world.use(gateway, target)
        for bearer in world.bearers:  # what it is, is known only now
            search.add(bearer.encode())
        for pid in family(gateway.process.pid):
            search.look("environment", Path(f"/proc/{pid}/environ").read_bytes())
            search.look("environment", Path(f"/proc/{pid}/cmdline").read_bytes())
        for line in (("status",), ("sessions", "live"), ("approvals", "list")):
            search.look("admin", gateway.gatecast(*line, "--json").stdout.encode())
        for pid in reversed(family(gateway.process.pid)):
            os.kill(pid, signal.SIGKILL)
        gateway.process.wait(30)
    for name, said in world.seen.items():
        search.look(f"client: {name}", said)
    for each in world.service.requests:  # of users' tokens nothing goes up; our own is in its place alone
        fields = {name: text for name, text in each.headers.items() if name != "authorization"}
        search.look("target", f"{each.text} {fields}".encode())
        assert each.headers["authorization"] == f"Bearer {TOKEN}"
    assert list((folder / "state").rglob("*.wal"))
    search_files(search, folder, keys)
    with world.place.serving("log-2", more):
        pass  # recovers
    for name, said in commands_output(cast(Any, world), capfdbinary, exports=True):
        search.look(name, said)
    search_files(search, folder, keys)


def test_no_secret_of_bigquery_and_nothing_masked_is_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with world_of(tmp_path, ALLOW_ALL + HOLDS + MASK) as world:
        token = world.place.token.encode()
        search = Seeking((PART, WRONG.encode()[4:], token, token[-24:], TOKEN.encode()))
        run_world(world, search, monkeypatch, capfdbinary)
    leaks = {name: said for name, said in world.seen.items() if PART in said}
    assert not search.found, (leaks, sorted(search.found)[:20])
    for place in ("tape, inside", "wal, inside", "state", "log-1", "export", "replay", "admin", "target"):
        assert search.searched.get(place, 0) > 100, (place, search.searched)
    originals = sorted((world.folder / "state" / "tapes").rglob("*.original.000.gct"))
    found = b"".join(bytes(each.payload) for path in originals for each in TapeReader(path, [world.auditor]).records())
    assert found.count(PART) > 10
    for secret in (token, TOKEN.encode(), *(bearer.encode() for bearer in world.bearers)):
        assert secret not in found


@pytest.mark.nightly  # the other one checks that each place was looked at
def test_the_search_sees_that_the_mask_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with world_of(tmp_path, ALLOW_ALL + HOLDS) as world:
        search = Seeking((PART, WRONG.encode()[4:], world.place.token.encode(), TOKEN.encode()))
        run_world(world, search, monkeypatch, capfdbinary)
    places = {place for place, canary, _ in search.found if canary == PART}
    assert {"tape, inside", "wal, inside", "export", "replay"} <= places, places
    shown = {place.removeprefix("client: ") for place in places if place.startswith("client: ")}
    for what in ("dwhgct0 page", "dwhgca query", "dwhgct table", "dwhgct quoting query", "dwhgct quoting poll"):
        assert what in shown, (what, sorted(shown))
    assert {"storage 1", "storage 2", "storage 3"} <= shown, shown
    assert {canary for _, canary, _ in search.found} == {PART}
