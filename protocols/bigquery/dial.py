"""Connect to BigQuery's REST endpoint by TLS; the credential is each request's (proxy/http/dialing.authorization).

The Storage API is dialled by storage_dial.py, as gRPC makes its connections itself. Source: bigquery note 2.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from protocols.bigquery.dial_settings import PORT, Settings, read_settings
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.http.client import TargetConnection
from proxy.core.http.heads import encode_request
from proxy.core.parties import Credential, Target
from proxy.core.stream import Stream
from proxy.http.dialing import Advice, connect

FETCH_SECONDS: Final = 30.0  # for a discovery document, which the service has ready. Ours
ADVICE: Final = Advice(
    private="bigquery.ca_file names another authority",
    public="it has no public one: bigquery.ca_file names the endpoint's own",
    name="bigquery.server_name says which name it is for",
)

_log = structlog.get_logger(__name__)


async def dial(target: Target, credential: Credential) -> Stream:
    """Return a connection to the target, past TLS. Raises TargetPeerError."""
    return await connect(settings_of(target), credential, ADVICE)


def settings_of(target: Target) -> Settings:
    """Return what a target's settings say. Raises TargetPeerError: the loader has checked them."""
    try:
        return read_settings(target)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetPeerError(str(error)) from error


def host_of(settings: Settings) -> str:
    """The value of Host."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return host if settings.port == PORT else f"{host}:{settings.port}"


async def fetch(target: Target, path: str, limit: int) -> tuple[int, bytes]:
    """Return what everyone may read at the target, without a credential. Raises TargetPeerError."""
    connection = TargetConnection(await dial(target, Credential("")))
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            fields = (("Host", host_of(settings_of(target))), ("Accept", "application/json"))
            connection.asking()
            await connection.stream.write(encode_request("GET", path, fields))
            response = await connection.response("GET")
            return response.status, await connection.body(limit)
    except TimeoutError as error:
        raise TargetPeerError(f"the target took longer than {FETCH_SECONDS:g} seconds to answer") from error
    finally:
        await connection.close()
