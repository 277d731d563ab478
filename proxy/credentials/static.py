"""Credentials by reference: the configuration says where a password is (environment or file), never what it is.

A file is read when a target is dialled, and again only when it has changed (inode, size, time), so that a
rotated secret counts at the next connection. Its last newline is cut. A file that others may read is used, and
said loudly once. The texts of errors name the target and nothing else: they are shown to users; the operator's
log says which variable or file.

What HTTP asks for at each request (Kubernetes, BigQuery: per_request) is kept by renewal.py: files are looked at once a
second, tokens with an end are fetched before it. kubeconfig.py and gcp.py say where such come from.

A target may have accounts: credentials by the caller's groups, the first that fits. Whoever fits none gets the target's
own; where it has none (absent), nobody's.

Left out: a literal password in the configuration (it ends up in repositories and in support tickets), and secrets
that several users share by identity.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import structlog

from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Identity, Secret, Target
from proxy.credentials.gcp import GcpSource, GcpTokens
from proxy.credentials.kubeconfig_user import UserOfKubeconfig
from proxy.credentials.renewal import Fetched, Renewed, Unusable

# PG_MAX_AUTH_TOKEN_LENGTH: the longest password that PostgreSQL takes; the other protocols take less.
SECRET_LIMIT: Final = 65_535
LOOK_SECONDS: Final = 1.0  # how old what a request uses may be: at a thousand requests a second each look is a thread
_TOKEN: Final = re.compile(r"[!-~]+")  # what the field of a request can carry: RFC 9110 5.5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """The credential of callers who have one of these groups, given as patterns."""

    groups: tuple[str, ...]
    credential: StaticCredential

    def is_for(self, identity: Identity) -> bool:
        """Whether this caller has one of the groups."""
        return any(fnmatchcase(group, pattern) for group in identity.groups for pattern in self.groups)


@dataclass(frozen=True, slots=True)
class StaticCredential:
    """Where a target's credential is. Without a password the target is logged in to by key, or trusts us.

    PostgreSQL needs a certificate with a key (proxy/sections.py sees to it), SSH a key alone, or both. HTTP has one of
    token_env, token_file, certificate_file with key_file, kubeconfig and gcp; foreign_file: the token file is not ours,
    so that its mode is no matter of ours (a pod's service account). accounts: credentials of some callers, instead of
    this one; absent: all others have none.
    """

    user: str
    password_env: str | None = None
    password_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    passphrase_env: str | None = None
    passphrase_file: Path | None = None
    per_request: bool = False
    token_env: str | None = None
    token_file: Path | None = None
    foreign_file: bool = False
    kubeconfig: Path | None = None
    context: str = ""
    gcp: GcpSource | None = None
    accounts: tuple[Account, ...] = ()
    absent: bool = False

    def __post_init__(self) -> None:
        if self.password_env is not None and self.password_file is not None:
            raise ConfigError("a credential has password_env or password_file, not both")
        if self.passphrase_env is not None and self.passphrase_file is not None:
            raise ConfigError("a credential has passphrase_env or passphrase_file, not both")
        if self.key_file is None and (self.certificate_file or self.passphrase_env or self.passphrase_file):
            raise ConfigError("a credential's certificate and passphrase go with a key")


@dataclass(frozen=True, slots=True)
class _Read:
    """A file's secret, and the state of the file that it was read from."""

    mark: tuple[int, int, int, int]
    secret: Secret


class StaticCredentials:
    """The gate's Credentials (proxy.core.gate): one for each target, by the target's name."""

    def __init__(
        self,
        credentials: Mapping[str, StaticCredential],
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = dict(credentials)
        self._environment = environment
        self._clock = clock
        self._renewed: dict[str, Renewed] = {}  # by target, or target/place of an account: no name has a slash
        self._files: dict[Path, _Read] = {}
        self._warned: set[Path] = set()

    def configure(self, credentials: Mapping[str, StaticCredential]) -> None:
        """Take a new configuration; what was read is read again."""
        self._credentials = dict(credentials)
        self._renewed = {}
        self._files = {}
        self._warned = set()

    async def get(self, identity: Identity, target: Target) -> Credential:
        """Return the target's credential. Raises TargetPeerError, which names the target only."""
        source = self._credentials.get(target.name)
        if source is None:
            raise self._missing(target, "no credential is configured")
        place, source = _chosen(source, identity)
        if source.absent:
            raise self._missing(target, "none of its accounts is for the caller's groups")
        if source.per_request:
            return await self._for_request(source, target, place)
        secret = await self._secret_of(source.password_env, source.password_file, target)
        passphrase = await self._secret_of(source.passphrase_env, source.passphrase_file, target)
        for file in (source.certificate_file, source.key_file):
            if file is not None and not await asyncio.to_thread(os.access, file, os.R_OK):
                raise self._missing(target, f"{file} cannot be read")
        if source.key_file is not None:
            await asyncio.to_thread(self._check_mode, source.key_file)
        return Credential(
            source.user,
            secret,
            certificate_file=None if source.certificate_file is None else str(source.certificate_file),
            key_file=None if source.key_file is None else str(source.key_file),
            passphrase=passphrase,
        )

    async def _for_request(self, source: StaticCredential, target: Target, place: int) -> Credential:
        key = target.name if place < 0 else f"{target.name}/{place}"
        renewed = self._renewed.get(key)
        if renewed is None:
            renewed = self._renewed[key] = Renewed(target.name, self._fetcher(source), self._clock)
        try:
            return await renewed.get()
        except Unusable as error:
            raise self._missing(target, str(error)) from None

    def _fetcher(self, source: StaticCredential) -> Callable[[], Fetched]:
        if source.kubeconfig is not None:
            return UserOfKubeconfig(source.kubeconfig, source.context, self._clock, self._check_mode).fetch
        if source.gcp is not None:
            return GcpTokens(source.gcp, self._clock).fetch
        return lambda: self._look(source)

    async def _secret_of(self, name: str | None, file: Path | None, target: Target) -> Secret | None:
        """The secret of a variable or a file; None where neither is configured."""
        if name is not None:
            return self._from_environment(name, target)
        if file is None:
            return None
        try:
            return await asyncio.to_thread(self._from_file, file)
        except (OSError, ValueError) as error:
            # ValueError: our own texts, and UnicodeDecodeError, whose text would quote the secret's bytes.
            why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise self._missing(target, f"{file}: {why}") from None

    def _missing(self, target: Target, why: str) -> TargetPeerError:
        log.error("credential-missing", target=target.name, why=why)
        return TargetPeerError(f"the gateway has no usable credential for target {target.name}; ask its operator")

    def _from_environment(self, name: str, target: Target) -> Secret:
        value = self._environment.get(name, "")
        try:
            return _secret(value.encode())
        except ValueError as error:  # UnicodeEncodeError too: a variable that is not UTF-8
            why = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
            raise self._missing(target, f"the environment variable {name}: {why}") from None

    # -- on a thread ----------------------------------------------------------------------------------

    def _look(self, source: StaticCredential) -> Fetched:
        """What a request needs, from the variable or the files as they are now. Raises Unusable."""
        token = None
        if source.token_env is not None:
            where = f"the environment variable {source.token_env}"
            value = self._environment.get(source.token_env, "")
            token = _token_of(where, lambda: _secret(value.encode()))
        elif source.token_file is not None:
            file, ours = source.token_file, not source.foreign_file
            token = _token_of(str(file), lambda: self._from_file(file, ours))
        for one in (source.certificate_file, source.key_file):
            if one is not None and not os.access(one, os.R_OK):
                raise Unusable(f"{one} cannot be read")
        if source.key_file is not None:
            self._check_mode(source.key_file)
        made = Credential(
            source.user,
            token,
            certificate_file=None if source.certificate_file is None else str(source.certificate_file),
            key_file=None if source.key_file is None else str(source.key_file),
        )
        until = self._clock() + LOOK_SECONDS
        return Fetched(made, until, until)

    def _from_file(self, path: Path, ours: bool = True) -> Secret:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._files.get(path)
            if known is not None and known.mark == mark:
                return known.secret
            data = file.read(SECRET_LIMIT + 2)
        if ours:
            self._check_mode(path)
        if data.endswith(b"\n"):
            data = data[:-2] if data.endswith(b"\r\n") else data[:-1]
        read = _Read(mark, _secret(data))
        self._files[path] = read
        return read.secret

    def _check_mode(self, path: Path) -> None:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and path not in self._warned:
            self._warned.add(path)
            log.warning("credential-file-open-to-others", file=str(path), mode=f"{mode:04o}", hint="chmod 600")


def _chosen(source: StaticCredential, identity: Identity) -> tuple[int, StaticCredential]:
    """The credential of this caller, and its place in the accounts; -1 for the target's own."""
    for place, account in enumerate(source.accounts):
        if account.is_for(identity):
            return place, account.credential
    return -1, source


def _token_of(where: str, read: Callable[[], Secret]) -> Secret:
    """Read a token, which is one word. Raises Unusable."""
    try:
        token = read()
    except (OSError, ValueError) as error:
        # ValueError: our own texts, and UnicodeError, whose text would quote the secret's bytes.
        why = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise Unusable(f"{where}: {why}") from None
    if not _TOKEN.fullmatch(token.reveal()):
        raise Unusable(f"{where}: holds no token: a token is one word, without blanks and line breaks")
    return token


def _secret(data: bytes) -> Secret:
    if not data:
        raise ValueError("it is missing or empty")
    if len(data) > SECRET_LIMIT:
        raise ValueError(f"it is longer than {SECRET_LIMIT} bytes")
    if b"\0" in data:
        raise ValueError("it holds a NUL, which no protocol can carry")
    return Secret(data.decode())
