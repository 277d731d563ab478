"""The section vault: of gatecast.yaml as the values that the vault works with. Secrets are read here, and only here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigError
from proxy.sections import VAULT_FILE_OPTIONS, VaultSection
from proxy.vault.bucket import open_bucket
from proxy.vault.task import Pace
from recorder.retention import Retention, Term
from recorder.vault import Bucket

SECRET_FILE_LIMIT: Final = 64 * 1024  # a service account's JSON has 2.5 KiB


def retention_of(section: VaultSection) -> Retention:
    """The terms."""
    terms = tuple(
        Term(
            term.days,
            term.name or f"retention {number}",
            term.match.protocol,
            term.match.target,
            term.match.subject,
            term.match.verdict,
            term.match.labels,
        )
        for number, term in enumerate(section.retention, 1)
    )
    return Retention(terms, section.retention_days, section.keep_local_days)


def pace_of(section: VaultSection) -> Pace:
    """How fast, and how long the local copies stay."""
    return Pace(section.concurrency, section.keep_local_days)


def open_buckets(
    section: VaultSection, resolve: Callable[[Path], Path], environment: Mapping[str, str] = os.environ
) -> tuple[Bucket | None, Bucket | None]:
    """Open the bucket, and that of the keys where it is another; None without a url. Raises ConfigError."""
    if not section.url:
        return None, None
    options = options_of(section.options, resolve, environment)
    bucket = open_bucket(section.url, {} if section.url.startswith("file:") else options)
    if not section.keys_url:
        return bucket, None
    return bucket, open_bucket(section.keys_url, {} if section.keys_url.startswith("file:") else options)


def options_of(
    options: Mapping[str, str | bool | int],
    resolve: Callable[[Path], Path],
    environment: Mapping[str, str] = os.environ,
    where: str = "vault",
) -> dict[str, str]:
    """obstore's options, with what *_env and *_file name in their place. where: for errors. Raises ConfigError."""
    found = {}
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if name.endswith("_env"):
            if text not in environment:
                raise ConfigError(f"{where}.options.{name}: the environment variable {text} is not set")
            found[name.removesuffix("_env")] = environment[text]
        elif name.endswith("_file") and name not in VAULT_FILE_OPTIONS:
            found[name.removesuffix("_file")] = _secret(f"{where}.options.{name}", resolve(Path(text)))
        else:
            found[name] = text
    return found


def _secret(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(f"{name}: others may read {path}; chmod 600 it")
            return file.read(SECRET_FILE_LIMIT).decode().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {path} cannot be read: {type(error).__name__}") from error
