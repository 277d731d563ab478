"""What the configuration names of Kubernetes, read and checked: where an API server is, and who certifies it.

A kubeconfig's cluster is read here, when the configuration is, so that what is wrong with it has its line; its user is
the credentials' (proxy/credentials/kubeconfig_user.py), when it is needed. Each function raises ConfigError.
Source: Kubernetes' documentation, "Accessing the Kubernetes API from a Pod"; kubernetes note 9.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509

from proxy.config import Loaded
from proxy.core.errors import ConfigError
from proxy.credentials.kubeconfig import read_cluster, read_user
from proxy.kube_sections import TargetKubernetes

if TYPE_CHECKING:
    from proxy.sections import Config
    from proxy.sections import Target as TargetSection

CA_LIMIT_BYTES: Final = 1 << 20  # as protocols/kubernetes/dial.py
IN_CLUSTER_HOST: Final = "kubernetes.default.svc"  # in every API server's certificate
IN_CLUSTER_PORT: Final = 443
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Server:
    """Where an API server is, and what its settings say of its certificate."""

    host: str
    port: int
    settings: Mapping[str, object]


def server_of(loaded: Loaded, target: TargetSection, environment: Mapping[str, str] = os.environ) -> Server:
    """Where a target of Kubernetes is. port 0: the protocol's own. Raises ConfigError."""
    section = target.kubernetes or TargetKubernetes()
    if target.credential.in_cluster:
        # Not checked for being there: a configuration may be looked at elsewhere. Dialling tells what is missing.
        host = environment.get("KUBERNETES_SERVICE_HOST") or IN_CLUSTER_HOST
        port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get("KUBERNETES_SERVICE_PORT") or ""
        number = int(port) if port.isascii() and port.isdigit() and 0 < int(port) < 65_536 else IN_CLUSTER_PORT
        return Server(host, number, {"ca_file": str(SERVICE_ACCOUNT / "ca.crt")})
    if target.credential.kubeconfig is not None:
        path = loaded.resolve(target.credential.kubeconfig)
        read_user(path, target.credential.context)  # for what is wrong with it
        cluster = read_cluster(path, target.credential.context)
        settings: dict[str, object] = {"server_name": cluster.server_name, "base_path": cluster.base_path}
        if cluster.ca_file is not None:
            check_authority(cluster.ca_file)
            settings["ca_file"] = str(cluster.ca_file)
        elif cluster.ca_data:
            _certificates(cluster.ca_data.encode(), f"{path}: certificate-authority-data")
            settings["ca_data"] = cluster.ca_data
        else:
            settings["ca"] = "system"
        return Server(cluster.host, cluster.port, settings)
    settings = {"server_name": section.server_name}
    if section.ca_file is not None:
        file = loaded.resolve(section.ca_file)
        check_authority(file)
        settings["ca_file"] = str(file)
    else:
        settings["ca"] = section.ca or ""
    return Server(target.host, target.port or 0, settings)


def settings_of(section: TargetKubernetes, server: Server) -> dict[str, object]:
    """A target's settings, as proxy/kube_sections.py lists them."""
    settings: dict[str, object] = {
        **server.settings,
        "session_idle": section.session_idle,
        "record_contents": section.record_contents,
        "exec_only": section.exec_only,
        "hold_when_unsure": section.hold_when_unsure,
    }
    if section.impersonate is not None:
        settings["impersonate"] = section.impersonate.model_dump()
    return settings


def files_of(config: Config) -> Iterator[Path | None]:
    """The files whose change asks for a reload. Authorities are not among them: they are read at each dial."""
    for target in config.targets:
        yield target.credential.kubeconfig


def check_authority(path: Path) -> None:
    """Read a file of authorities. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(CA_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > CA_LIMIT_BYTES:
        raise ConfigError(f"{path}: is longer than {CA_LIMIT_BYTES} bytes")
    _certificates(data, str(path))


def _certificates(data: bytes, where: str) -> None:
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{where}: holds no certificate in PEM form") from error
