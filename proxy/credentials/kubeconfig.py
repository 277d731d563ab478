"""Kubeconfig files: what a target takes from a cluster, and what the gate logs in with from a user.

A context names a cluster and a user. Of the cluster come the server, its authority and its name in the certificate; of
the user a token, a token file, a client certificate, or what an exec plugin says. Files are relative to the kubeconfig.

The reading is ours, and not the kubernetes package's: that one takes 59 MB of memory in every process for it, logs what
a failing plugin says (which may be a secret), waits for a plugin for ever, and leaves keys in temporary files. The
tests hold the two side by side.

Refused, each with what to do instead, as leaving it out in silence would be another credential than the file means:
insecure-skip-tls-verify, proxy-url, auth-provider (kubectl has had none since 1.26), user name and password (API
servers have had none since 1.19), as (the target's own kubernetes.impersonate), http.
Source: Kubernetes' documentation, "kubeconfig (v1)"; client-go, tools/clientcmd/client_config.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from proxy.core.errors import ConfigError

FILE_LIMIT_BYTES: Final = 1 << 20  # 1 MiB: etcd's limit of an object, and of a Secret that holds such a file

Section = Mapping[str, Any]  # Any: a mapping of a YAML file, whose values are looked at one by one

_CLUSTER_REFUSED: Final = {
    "insecure-skip-tls-verify": "a certificate that is not checked protects nothing: certificate-authority names whose",
    "proxy-url": "targets are reached without a proxy",
}
_USER_REFUSED: Final = {
    "auth-provider": "kubectl has no such providers since 1.26: use exec, or credential: {gcp: ...}",
    "username": "API servers take no passwords since Kubernetes 1.19",
    "password": "API servers take no passwords since Kubernetes 1.19",
    "as": "say kubernetes: {impersonate: ...} at the target",
    "as-uid": "say kubernetes: {impersonate: ...} at the target",
    "as-groups": "say kubernetes: {impersonate: ...} at the target",
    "as-user-extra": "say kubernetes: {impersonate: ...} at the target",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where an API server is. With neither ca_file nor ca_data (PEM) its authority is a public one."""

    host: str
    port: int
    base_path: str = ""
    ca_file: Path | None = None
    ca_data: str = ""
    server_name: str = ""
    server: str = ""
    extension: object = None  # for exec plugins that ask for it


@dataclass(frozen=True, slots=True)
class Plugin:
    """A program that says the credential. Source: Kubernetes' documentation, "client-go credential plugins"."""

    api_version: str
    command: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: Path
    cluster: Cluster | None  # told to the program, where it asks for it
    hint: str = ""  # how to install it


@dataclass(frozen=True, slots=True, repr=False)
class User:
    """What one logs in with; certificate and key are PEM, and files where they were. No repr, as it holds secrets."""

    name: str
    token: str = ""
    token_file: Path | None = None
    certificate: str = ""
    key: str = ""
    plugin: Plugin | None = None
    files: tuple[Path, ...] = ()


def read_cluster(path: Path, context: str = "") -> Cluster:
    """Read the cluster of a context ("": the current one). Blocks. Raises ConfigError, which quotes no value."""
    return _Reading(path, context).cluster()


def read_user(path: Path, context: str = "") -> User:
    """Read the user of a context. Blocks. Raises ConfigError, which quotes no value."""
    return _Reading(path, context).user()


class _Reading:
    """One file, and one context of it."""

    def __init__(self, path: Path, context: str) -> None:
        self._path = path
        self._document = self._load()
        name = context or self._text(self._document, "current-context", "the file")
        if not name:
            raise self._wrong("has no current-context; say context: NAME")
        self._context = self._named("contexts", "context", name)

    def cluster(self) -> Cluster:
        name = self._text(self._context, "cluster", "the context")
        section = self._named("clusters", "cluster", name)
        where = f"cluster {name}"
        self._refuse(section, _CLUSTER_REFUSED, where)
        server = self._text(section, "server", where)
        try:
            url = urlsplit(server)
            host, port = url.hostname or "", url.port or 443
        except ValueError:
            raise self._wrong(f"{where}: the server is no address") from None
        if url.scheme != "https":
            raise self._wrong(
                f"{where}: the server is reached by https, or tokens would cross the network in the clear"
            )
        if not host or "@" in url.netloc or url.query or url.fragment:
            raise self._wrong(f"{where}: the server is https://host:port, and may have a path")
        data, file = self._data_or_file(section, "certificate-authority", where)
        return Cluster(
            host=host,
            port=port,
            base_path=url.path.rstrip("/"),
            ca_file=file,
            ca_data=data,
            server_name=self._text(section, "tls-server-name", where),
            server=server,
            extension=_extension(section),
        )

    def user(self) -> User:
        name = self._text(self._context, "user", "the context")
        section = self._named("users", "user", name)
        where = f"user {name}"
        self._refuse(section, _USER_REFUSED, where)
        token = self._text(section, "token", where)
        token_file = self._text(section, "tokenFile", where)
        pairs = [self._data_or_file(section, key, where) for key in ("client-certificate", "client-key")]
        certificate, key = (self._read(file) if file is not None else data for data, file in pairs)
        plugin = None
        if "exec" in section and not token and not token_file:  # client-go asks no plugin where there is a token
            plugin = self._plugin(section["exec"], where)
        if bool(certificate) != bool(key):
            raise self._wrong(f"{where}: client-certificate and client-key go together")
        if not token and not token_file and not certificate and plugin is None:
            raise self._wrong(f"{where}: has no token, tokenFile, client-certificate or exec")
        return User(
            name=name,
            token=token if not token_file else "",  # client-go: the file wins
            token_file=self._path.parent / token_file if token_file else None,
            certificate=certificate,
            key=key,
            plugin=plugin,
            files=tuple(file for _, file in pairs if file is not None),
        )

    def _plugin(self, section: object, where: str) -> Plugin:
        where = f"{where}: exec"
        if not isinstance(section, Mapping):
            raise self._wrong(f"{where}: is a mapping")
        version = self._text(section, "apiVersion", where)
        if version not in ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"):
            raise self._wrong(f"{where}: apiVersion is client.authentication.k8s.io/v1 or v1beta1")
        if self._text(section, "interactiveMode", where) == "Always":
            raise self._wrong(f"{where}: interactiveMode: Always wants a person at a terminal, and here is none")
        command = self._text(section, "command", where)
        arguments = section.get("args") or []
        variables = section.get("env") or []
        if not command or not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
            raise self._wrong(f"{where}: has a command, and args is a list of words")
        if not isinstance(variables, list) or not all(_is_variable(one) for one in variables):
            raise self._wrong(f"{where}: env is a list of name and value")
        if "/" in command:  # as client-go has it: relative to the file, and looked up in PATH without a slash
            command = str(self._path.parent / command)
        return Plugin(
            api_version=version,
            command=command,
            arguments=tuple(arguments),
            environment=tuple((one["name"], one["value"]) for one in variables),
            directory=self._path.parent,
            cluster=self.cluster() if section.get("provideClusterInfo") is True else None,
            hint=self._text(section, "installHint", where),
        )

    # -- of the file ----------------------------------------------------------------------------------

    def _load(self) -> Section:
        try:
            document = yaml.safe_load(self._read(self._path))
        except yaml.YAMLError as error:
            # Its own text quotes the lines of the file, which hold secrets.
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            raise ConfigError(f"{self._path}{line}: is not YAML") from None
        if not isinstance(document, Mapping):
            raise self._wrong("is no kubeconfig")
        return document

    def _named(self, group: str, what: str, name: str) -> Section:
        """The entry of a name in one of the three lists."""
        listed = self._document.get(group)
        entries = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
        found = [one for one in entries if one.get("name") == name]
        if not name or len(found) != 1:
            known = ", ".join(sorted(str(one.get("name")) for one in entries))
            count = "no" if not found else "more than one"
            raise self._wrong(f"has {count} {what} {name}".rstrip() + f"; it has: {known or 'none'}")
        section = found[0].get(what)
        if not isinstance(section, Mapping):
            raise self._wrong(f"{what} {name}: is empty")
        return section

    def _refuse(self, section: Section, refused: Mapping[str, str], where: str) -> None:
        for key, why in refused.items():
            if section.get(key):
                raise self._wrong(f"{where}: {key}: {why}")

    def _text(self, section: Section, key: str, where: str) -> str:
        value = section.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(f"{where}: {key} is a text")
        return value

    def _data_or_file(self, section: Section, key: str, where: str) -> tuple[str, Path | None]:
        """What is there in base64, which wins, or the file."""
        data, file = self._text(section, f"{key}-data", where), self._text(section, key, where)
        if data:
            try:
                return base64.b64decode(data, validate=False).decode("ascii"), None
            except (binascii.Error, ValueError):
                raise self._wrong(f"{where}: {key}-data is not base64 of PEM") from None
        return "", self._path.parent / file if file else None

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                data = file.read(FILE_LIMIT_BYTES + 1)
            if len(data) > FILE_LIMIT_BYTES:
                raise ConfigError(f"{path}: is longer than {FILE_LIMIT_BYTES} bytes")
            return data.decode()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8") from None

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path}: {what}")


def _is_variable(one: object) -> bool:
    return (
        isinstance(one, Mapping)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("value"), str)
        and bool(one["name"])
        and not {"=", "\0"} & set(one["name"])
        and "\0" not in one["value"]
    )


def _extension(section: Section) -> object:
    """What a cluster has for exec plugins."""
    entries = section.get("extensions")
    for one in entries if isinstance(entries, list) else ():
        if isinstance(one, Mapping) and one.get("name") == "client.authentication.k8s.io/exec":
            return one.get("extension")
    return None
