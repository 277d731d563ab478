"""The Storage API: TLS and a token check before the emulator's gRPC, every method passed on as bytes.

Results have no table at the emulator until somebody asks (gaps.py, anonymous): CreateReadSession asks.

Tables of the dataset SYNTHETIC are no tables of the emulator's, which keeps all rows of a session in memory:
rows_<count> has that many rows (id, email, text), made as they are read, of about 100 bytes each. They come in Arrow
and in Avro, in as many streams as are asked for, and their streams can be split.
"""

from __future__ import annotations

import functools
import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from tests.peers.bq.jobs import Jobs
from tests.peers.bq.layer import Log, Tokens

PASSED: Final = ("x-goog-request-params", "x-goog-api-client")
UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_ANONYMOUS: Final = re.compile(rb"anon[0-9a-f]{64}")
SYNTHETIC: Final = "synthetic"
STREAMS_LIMIT: Final = 8
BATCH_ROWS: Final = 8192  # about a megabyte, as the service's own answers have
_SYNTHETIC_TABLE: Final = re.compile(rf"projects/[^/]+/datasets/{SYNTHETIC}/tables/rows_([0-9]+)")
_AVRO: Final = (
    '{"type": "record", "name": "__root__", "fields": [{"name": "id", "type": ["null", "long"]}, '
    '{"name": "email", "type": ["null", "string"]}, {"name": "text", "type": ["null", "string"]}]}'
)


@dataclass(slots=True)
class _Session:
    """A read session of a synthetic table: its form, and which rows a stream has."""

    form: str
    streams: dict[str, tuple[int, int]] = field(default_factory=dict)


class Synthetic:
    """The synthetic tables. Google's own types are used, so that nothing here shares a mistake with the gateway."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    def answers(self, method: str, request: bytes) -> Iterator[bytes] | None:
        """Return the messages of an answer; None: it is not about a synthetic table."""
        from google.cloud.bigquery_storage_v1 import types

        match method.rpartition("/")[2]:
            case "CreateReadSession":
                asked = types.CreateReadSessionRequest.deserialize(request)
                found = _SYNTHETIC_TABLE.fullmatch(asked.read_session.table)
                return None if found is None else self._create(asked, int(found[1]))
            case "ReadRows":
                read = types.ReadRowsRequest.deserialize(request)
                return self._read(read) if self._of(read.read_stream) else None
            case "SplitReadStream":
                split = types.SplitReadStreamRequest.deserialize(request)
                return self._split(split) if self._of(split.name) else None
        return None

    def _of(self, stream: str) -> _Session | None:
        found = self._sessions.get(stream.partition("/streams/")[0])
        return found if found is not None and stream in found.streams else None

    def _create(self, asked: Any, count: int) -> Iterator[bytes]:
        from google.cloud.bigquery_storage_v1 import types

        name = f"{asked.parent}/locations/us/sessions/{uuid.uuid4().hex}"
        session = self._sessions[name] = _Session("avro" if int(asked.read_session.data_format) == 1 else "arrow")
        parts = max(1, min(asked.max_stream_count or 1, STREAMS_LIMIT))
        for part in range(parts):
            session.streams[f"{name}/streams/{part}"] = (count * part // parts, count * (part + 1) // parts)
        answer = types.ReadSession(asked.read_session)
        answer.name = name
        answer.streams = [types.ReadStream(name=each) for each in session.streams]
        if session.form == "avro":
            answer.avro_schema = types.AvroSchema(schema=_AVRO)
        else:
            answer.arrow_schema = types.ArrowSchema(serialized_schema=_arrow_schema().serialize().to_pybytes())
        yield types.ReadSession.serialize(answer)

    def _read(self, asked: Any) -> Iterator[bytes]:
        session = self._of(asked.read_stream)
        assert session is not None
        start, end = session.streams[asked.read_stream]
        for first in range(start + asked.offset, end, BATCH_ROWS):
            yield _answer(session.form, first, min(first + BATCH_ROWS, end))

    def _split(self, asked: Any) -> Iterator[bytes]:
        from google.cloud.bigquery_storage_v1 import types

        session = self._of(asked.name)
        assert session is not None
        start, end = session.streams[asked.name]
        middle = start + int((end - start) * asked.fraction)
        one, two = f"{asked.name}-a", f"{asked.name}-b"
        session.streams |= {one: (start, middle), two: (middle, end)}
        answer = types.SplitReadStreamResponse(
            primary_stream=types.ReadStream(name=one), remainder_stream=types.ReadStream(name=two)
        )
        yield types.SplitReadStreamResponse.serialize(answer)


@functools.lru_cache(160)
def _answer(form: str, first: int, end: int) -> bytes:
    """Kept, so that a second reading of 100 MB is as fast as the wire."""
    from google.cloud.bigquery_storage_v1 import types

    answer = types.ReadRowsResponse(row_count=end - first)
    rows = [
        {"id": number, "email": f"user{number}@example.org", "text": f"{number:064x}"} for number in range(first, end)
    ]
    if form == "avro":
        import fastavro

        out, schema = io.BytesIO(), _avro_schema()
        for row in rows:
            fastavro.schemaless_writer(out, schema, row)
        answer.avro_rows = types.AvroRows(serialized_binary_rows=out.getvalue(), row_count=len(rows))
    else:
        import pyarrow

        batch = pyarrow.RecordBatch.from_pylist(rows, schema=_arrow_schema())
        data = batch.serialize().to_pybytes()
        answer.arrow_record_batch = types.ArrowRecordBatch(serialized_record_batch=data, row_count=len(rows))
    written: bytes = types.ReadRowsResponse.serialize(answer)
    return written


@functools.cache
def _avro_schema() -> Any:
    import fastavro

    return fastavro.parse_schema(json.loads(_AVRO))


@functools.cache
def _arrow_schema() -> Any:
    import pyarrow

    texts = [pyarrow.field(name, pyarrow.string()) for name in ("email", "text")]
    return pyarrow.schema([pyarrow.field("id", pyarrow.int64()), *texts])


class _Passing(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, channel: grpc.aio.Channel, tokens: Tokens, jobs: Jobs, log: Log) -> None:
        self._channel = channel
        self._tokens = tokens
        self._jobs = jobs
        self._log = log
        self._synthetic = Synthetic()

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        """Handle any method: every one is a stream each way, as far as bytes go."""
        method: str = details.method
        metadata = dict(details.invocation_metadata)

        async def handle(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> Any:
            user = self._tokens.user(metadata.get("authorization", ""))
            entry = {"grpc": method, "user": user or "", "metadata": {key: str(each) for key, each in metadata.items()}}
            if user is None:
                self._log.write(**entry, code="UNAUTHENTICATED")
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials.")
            first = await anext(messages, None)  # every method that clients use begins with one
            made = None if first is None else self._synthetic.answers(method, first)
            if made is not None:
                for message in made:
                    yield message
                self._log.write(**entry, code="OK")
                return
            call = self._channel.stream_stream(method)(
                self._prepared(first, messages),
                metadata=[(name, metadata[name]) for name in PASSED if name in metadata],
            )
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                self._log.write(**entry, code=error.code().name)
                await context.abort(error.code(), error.details() or "")
            self._log.write(**entry, code="OK")

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _prepared(self, first: bytes | None, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        if first is not None:
            for name in _ANONYMOUS.findall(first):
                await self._jobs.materialise(name.decode())
            yield first
        async for message in messages:
            yield message


async def serve_storage(
    upstream: str, pair: tuple[Path, Path], tokens: Tokens, jobs: Jobs, log: Log
) -> tuple[Any, int]:
    """Start it on a free port; returns what to stop, and the port. pair: certificate and key."""
    channel = grpc.aio.insecure_channel(upstream, options=UNLIMITED)
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers([_Passing(channel, tokens, jobs, log)])
    certificate, key = (each.read_bytes() for each in pair)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    return server, port
