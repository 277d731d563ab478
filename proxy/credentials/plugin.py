"""Exec plugins of a kubeconfig: programs that print a credential, run to their end within bounds.

A plugin gets the gateway's environment, as kubectl gives it its own (cloud programs find their accounts there), and
KUBERNETES_EXEC_INFO, which says that nobody sits at a terminal: its standard input is empty. What it says on standard
error is dropped, as it may be a secret; who wants to see it types the command. After EXEC_SECONDS it is killed, with
all that it started.

Source: Kubernetes' documentation, "client-go credential plugins"; client-go, plugin/pkg/client/auth/exec.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from proxy.core.errors import ConfigError
from proxy.credentials.kubeconfig import FILE_LIMIT_BYTES, Cluster, Plugin
from proxy.credentials.renewal import Unusable

EXEC_SECONDS: Final = 30.0  # a cold gcloud takes five
OUTPUT_LIMIT_BYTES: Final = FILE_LIMIT_BYTES
END_SECONDS: Final = 5.0  # from the end of what it says to its own end


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What a plugin said; certificate and key are PEM. No repr, as it holds secrets."""

    token: str = ""
    certificate: str = ""
    key: str = ""
    expires_at: float | None = None


def run_plugin(plugin: Plugin, seconds: float = EXEC_SECONDS) -> Answer:
    """Run a plugin. Blocks. Raises Unusable, which holds nothing of what it said."""
    name = Path(plugin.command).name
    environment = {**os.environ, **dict(plugin.environment), "KUBERNETES_EXEC_INFO": _information(plugin)}
    try:
        process = subprocess.Popen(  # noqa: S603  the operator's own configuration names it
            [plugin.command, *plugin.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=plugin.directory,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a NUL"
        hint = f" ({' '.join(plugin.hint.split())})" if plugin.hint else ""
        raise Unusable(f"the credential plugin {name} cannot be started: {why}{hint}") from None
    with process:
        try:
            data = _output(process, time.monotonic() + seconds, name)
            code = process.wait(END_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unusable(f"the credential plugin {name} does not end") from None
            raise
    if code != 0:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise Unusable(f"the credential plugin {name} {how}; type its command, as the gateway's user, to see why")
    return _read(data, plugin.api_version, name)


def _output(process: subprocess.Popen[bytes], deadline: float, name: str) -> bytes:
    """All that it says on standard output."""
    assert process.stdout is not None
    said = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise Unusable(f"the credential plugin {name} took too long")
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return bytes(said)
        said += piece
        if len(said) > OUTPUT_LIMIT_BYTES:
            raise Unusable(f"the credential plugin {name} says more than {OUTPUT_LIMIT_BYTES} bytes")


def _information(plugin: Plugin) -> str:
    specification: dict[str, Any] = {"interactive": False}
    if plugin.cluster is not None:
        specification["cluster"] = _cluster(plugin.cluster)
    return json.dumps({"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": specification})


def _cluster(cluster: Cluster) -> dict[str, Any]:
    try:
        authority = cluster.ca_file.read_bytes() if cluster.ca_file is not None else cluster.ca_data.encode()
    except OSError as error:
        raise Unusable(f"{cluster.ca_file}: cannot be read: {error.strerror}") from error
    told: dict[str, Any] = {"server": cluster.server}
    if authority:
        told["certificate-authority-data"] = base64.b64encode(authority).decode()
    if cluster.server_name:
        told["tls-server-name"] = cluster.server_name
    if cluster.extension is not None:
        told["config"] = cluster.extension
    return told


def _read(data: bytes, version: str, name: str) -> Answer:
    try:
        return _answer(json.loads(data), version)
    except (ValueError, RecursionError):  # json's own text quotes what it read
        raise Unusable(f"the credential plugin {name} says what is not JSON") from None
    except ConfigError as error:
        raise Unusable(f"the credential plugin {name}: {error}") from None


def _answer(document: object, version: str) -> Answer:
    if not isinstance(document, Mapping) or document.get("kind") != "ExecCredential":
        raise ConfigError("its answer is no ExecCredential")
    if document.get("apiVersion") != version:
        raise ConfigError(f"its answer is not of {version}")
    status = document.get("status")
    if not isinstance(status, Mapping):
        raise ConfigError("its answer has no status")
    token, certificate, key, end = (
        status.get(name) or ""
        for name in ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    )  # fmt: skip
    if not all(isinstance(value, str) for value in (token, certificate, key, end)):
        raise ConfigError("its answer has a status that is none")
    if bool(certificate) != bool(key):
        raise ConfigError("clientCertificateData and clientKeyData go together")
    if not token and not certificate:
        raise ConfigError("its answer has neither token nor clientCertificateData")
    return Answer(token, certificate, key, _seconds(end) if end else None)


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)  # RFC 3339
    except ValueError:
        raise ConfigError("expirationTimestamp is no time") from None
    if moment.tzinfo is None:
        raise ConfigError("expirationTimestamp has no time zone")
    return moment.timestamp()
