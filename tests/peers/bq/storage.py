"""The Storage API: TLS and a token check before the emulator's gRPC, every method passed on as bytes.

Results have no table at the emulator until somebody asks (gaps.py, anonymous): CreateReadSession asks.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc

from tests.peers.bq.jobs import Jobs
from tests.peers.bq.layer import Log, Tokens

PASSED: Final = ("x-goog-request-params", "x-goog-api-client")
UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_ANONYMOUS: Final = re.compile(rb"anon[0-9a-f]{64}")


class _Passing(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, channel: grpc.aio.Channel, tokens: Tokens, jobs: Jobs, log: Log) -> None:
        self._channel = channel
        self._tokens = tokens
        self._jobs = jobs
        self._log = log

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
            call = self._channel.stream_stream(method)(
                self._prepared(messages), metadata=[(name, metadata[name]) for name in PASSED if name in metadata]
            )
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                self._log.write(**entry, code=error.code().name)
                await context.abort(error.code(), error.details() or "")
            self._log.write(**entry, code="OK")

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _prepared(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            for name in _ANONYMOUS.findall(message):
                await self._jobs.materialise(name.decode())
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
