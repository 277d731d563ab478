"""What ``gatecast kubeconfig`` does: write the file with which kubectl reaches targets through the gateway.

It runs where kubectl does, and needs neither the gateway's configuration nor the gateway. The token stays in its own
file, which kubectl reads again as it changes: the kubeconfig itself holds no secret. Nothing is overwritten.

Left out: a login that fetches tokens by itself (an exec plugin), until gatecast has such a command.
Source: Kubernetes' documentation, "kubeconfig (v1)"; client-go, tools/clientcmd.
"""

from __future__ import annotations

import base64
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from cryptography import x509

from proxy.commands import CommandError, _print
from proxy.values import NAME_PATTERN

CA_LIMIT_BYTES: Final = 1 << 20  # as protocols/kubernetes/dial.py
MODE: Final = 0o600  # kubectl and helm warn of any other


def kubeconfig(options: Namespace) -> int:
    """gatecast kubeconfig."""
    made = make(
        options.server,
        options.target,
        Path(options.token_file),
        Path(options.ca) if options.ca else None,
        options.namespace,
    )
    text = yaml.safe_dump(made, sort_keys=False)
    contexts = [entry["name"] for entry in made["contexts"]]
    if options.output == "-":
        return _print(options, {"contexts": contexts, "kubeconfig": made}, text)
    _write(Path(options.output), text)
    result = {"contexts": contexts, "file": options.output, "kubeconfig": made}
    example = f"kubectl --kubeconfig {options.output} --context {contexts[0]} get pods"
    return _print(options, result, f"{options.output} is written; try it:\n  {example}\n")


def make(
    server: str, targets: list[str], token_file: Path, ca: Path | None = None, namespace: str | None = None
) -> dict[str, Any]:
    """A kubeconfig: a cluster, a user and a context for each target, named by it. Raises CommandError."""
    origin = _origin(server)
    for target in targets:
        if not re.fullmatch(NAME_PATTERN, target):
            raise CommandError(f"--target {target}: a target is called so nowhere; it is its name in gatecast.yaml")
    targets = list(dict.fromkeys(targets))
    if not token_file.is_file():
        hint = "gatecast token issue prints a token; put it there, mode 0600"
        raise CommandError(f"{token_file}: is not there; {hint}")
    authority = _authority(ca) if ca is not None else {}
    more = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": target, "cluster": {"server": f"{origin}/k8s/{target}", **authority}} for target in targets
        ],
        # kubectl looks from the directory of the kubeconfig, which nobody knows yet: so the path is whole.
        "users": [{"name": target, "user": {"tokenFile": str(token_file.absolute())}} for target in targets],
        "contexts": [{"name": target, "context": {"cluster": target, "user": target, **more}} for target in targets],
        "current-context": targets[0],
    }


def _origin(server: str) -> str:
    try:
        url = urlsplit(server)
        good = url.scheme == "https" and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        good = False
    if not good or "@" in url.netloc or url.path.strip("/") or url.query or url.fragment or server.split() != [server]:
        raise CommandError("--server is https://host:port; kubectl sends no token without TLS, and the path is ours")
    return f"https://{url.netloc}"


def _authority(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        data = file.read(CA_LIMIT_BYTES + 1)
    if len(data) > CA_LIMIT_BYTES:
        raise CommandError(f"{path}: is longer than {CA_LIMIT_BYTES} bytes")
    if b"PRIVATE KEY" in data:
        raise CommandError(f"{path}: holds a private key; give the certificate alone")
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CommandError(f"{path}: holds no certificate in PEM form") from None
    return {"certificate-authority-data": base64.b64encode(data).decode()}


def _write(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError:
        hint = "give another --output; kubectl takes several files: KUBECONFIG=one:two"
        raise CommandError(f"{path}: is there already, and is not overwritten; {hint}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
