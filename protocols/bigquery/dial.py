"""Connect to BigQuery's REST endpoint by TLS; the credential is each request's (proxy/http/dialing.authorization).

The Storage API is dialled by storage_dial.py, as gRPC makes its connections itself. Source: bigquery note 2.
"""

from __future__ import annotations

from typing import Final

import structlog

from protocols.bigquery.dial_settings import read_settings
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Target
from proxy.core.stream import Stream
from proxy.http.dialing import Advice, connect

ADVICE: Final = Advice(
    private="bigquery.ca_file names another authority",
    public="it has no public one: bigquery.ca_file names the endpoint's own",
    name="bigquery.server_name says which name it is for",
)

_log = structlog.get_logger(__name__)


async def dial(target: Target, credential: Credential) -> Stream:
    """Return a connection to the target, past TLS. Raises TargetPeerError."""
    try:
        settings = read_settings(target)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetPeerError(str(error)) from error
    return await connect(settings, credential, ADVICE)
