"""gRPC channels to the Storage APIs of targets: one a target, kept while somebody uses the Storage API.

gRPC makes the connections itself, with TLS by public authorities or those of ca_file, whose file is read when the
channel is made. The gate's credential is not the channel's but each call's, so that callers share it. A target that was
configured anew gets a new channel; calls of the old one end on it.

Left out: proxies (gRPC would take them from the environment: switched off), client certificates.
Source: gRPC core, grpc_types.h (channel arguments); bigquery note 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped, unused-ignore]
import structlog

from protocols.bigquery.dial_settings import read_settings
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Target
from proxy.http.dialing import PEM_LIMIT_BYTES, authorization

# One answer of ReadRows. Source: BigQuery quotas, Storage Read API: a row has at most 128 MB.
MESSAGE_LIMIT: Final = 160 * 1024 * 1024
CLOSE_SECONDS: Final = 2.0
KEEPALIVE_MS: Final = 60_000  # as proxy/core/stream.KEEPALIVE_IDLE_SECONDS, and for the same reason

_log = structlog.get_logger(__name__)


class Channels:
    """The channels of a process."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Target, grpc.aio.Channel]] = {}
        self._old: list[grpc.aio.Channel] = []

    def channel(self, target: Target) -> grpc.aio.Channel:
        """Return the channel of a target. Raises TargetPeerError."""
        found = self._open.get(target.name)
        if found is not None and found[0] == target:
            return found[1]
        channel = _channel(target)
        if found is not None:
            self._old.append(found[1])
        self._open[target.name] = (target, channel)
        return channel

    async def close(self) -> None:
        """End them all."""
        channels = [*self._old, *(channel for _, channel in self._open.values())]
        self._open.clear()
        self._old.clear()
        for channel in channels:
            await channel.close(CLOSE_SECONDS)


def _channel(target: Target) -> grpc.aio.Channel:
    try:
        settings = read_settings(target)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetPeerError(str(error)) from error
    host = f"[{settings.storage_host}]" if ":" in settings.storage_host else settings.storage_host
    where = f"{host}:{settings.storage_port}"
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT), ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS), ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip
    if settings.storage_plain:
        return grpc.aio.insecure_channel(where, options=options)
    authorities: bytes | None = None
    if settings.ca_file:
        try:
            with Path(settings.ca_file).open("rb") as file:
                authorities = file.read(PEM_LIMIT_BYTES)
        except OSError as error:
            raise TargetPeerError("bigquery.ca_file cannot be read") from error
    return grpc.aio.secure_channel(where, grpc.ssl_channel_credentials(authorities), options=options)


def metadata(credential: Credential, routing: str, user: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what goes with a call. routing: the request's own routing parameters. Raises TargetPeerError."""
    found = [(name.lower(), value) for name, value in authorization(credential)]
    if not found:
        raise TargetPeerError("the target's credential has no token; ask the gateway's operator")
    found.append(("x-goog-request-params", routing))
    if client := user.get("x-goog-api-client"):
        found.append(("x-goog-api-client", client))  # versions of libraries: the service's own logs ask for them
    return found
