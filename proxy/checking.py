"""``gatecast config check``: everything that a start would read, read, and what it would start, as a value."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import protocols
from proxy.admin.text import fields, harmless
from proxy.bigquery_files import uncovered, universe_of
from proxy.certificates import server_context
from proxy.config import ConfigErrors, Loaded
from proxy.core.errors import ConfigError
from proxy.core.parties import Target
from proxy.credentials.static import StaticCredential
from proxy.kube_sections import KUBERNETES
from proxy.lines import Place
from proxy.sections import Listener
from proxy.services import WEAK_FILE_SYSTEMS, credentials_of, file_system
from proxy.snapshot import Snapshot, read_snapshot
from proxy.ssh_doors import check_door
from proxy.ssh_sections import SSH
from recorder.errors import FormatError
from recorder.vault import VaultError
from recorder.witness import Witness


def check_config(path: Path, *, connect: bool = False) -> dict[str, Any]:
    """Read a configuration with its rules, certificates and keys; nothing is made. Raises ConfigError.

    connect: try the vault's bucket, too.
    """
    snapshot = read_snapshot(path, secrets.token_bytes(32))
    loaded, config = snapshot.loaded, snapshot.loaded.config
    problems: list[str] = []
    warnings: list[str] = []
    listeners = []
    for index, listener in enumerate(config.listeners):
        try:
            shown, warning = _listener(loaded, listener)
        except ConfigError as error:
            key = "tls" if listener.tls is not None else "ssh"
            problems.append(loaded.document.error(("listeners", index, key), str(error)))
            continue
        if warning is not None:
            warnings.append(loaded.document.error(("listeners", index, "tls"), warning))
        listeners.append(shown)
    warnings += _missing_secrets(snapshot)
    weak = WEAK_FILE_SYSTEMS.get(file_system(loaded.state / config.recorder.directory))
    if weak is not None:
        warnings.append(loaded.document.error(("state",), f"tapes are not durable here: {weak}"))
    wrong, doubtful = _places_of_the_log(loaded)
    problems += wrong
    warnings += doubtful
    vault: dict[str, Any] = {}
    if config.vault is not None:
        from proxy.vault.commands import check_vault

        try:
            vault = check_vault(loaded, connect)
        except (ConfigError, VaultError) as error:
            problems.append(loaded.document.error(("vault",), str(error)))
        warnings += [loaded.document.error(("vault",), text) for text in vault.get("warnings", ())]
    if problems:
        raise ConfigErrors(problems)
    return {
        "config": str(loaded.path),
        "state": str(loaded.state),
        "listeners": listeners,
        "targets": [_target(target) for target in snapshot.targets.values()],
        "rules": {"count": len(snapshot.rules.rules), "revision": snapshot.rules.revision},
        "issuers": [issuer.issuer for issuer in snapshot.issuers],
        "users": [user.name for user in snapshot.users],
        "anchors": [anchor.url for anchor in config.recorder.anchors],
        "witnesses": [{"url": witness.url, "key": witness.key} for witness in config.recorder.witnesses],
        "vault": vault,
        "warnings": warnings,
    }


def _listener(loaded: Loaded, listener: Listener) -> tuple[dict[str, str], str | None]:
    """What a listener shows to its users, and what is wrong with the dates of its certificate. Raises ConfigError."""
    shown = {"name": listener.name, "protocol": listener.protocol, "address": listener.address}
    warning = None
    if listener.protocol == SSH:
        shown |= check_door(loaded, listener)
    if listener.tls is not None:
        ca = loaded.resolve(listener.tls.client_ca) if listener.tls.client_ca else None
        cert, key = loaded.resolve(listener.tls.cert), loaded.resolve(listener.tls.key)
        _, certificate = server_context(cert, key, ca, protocols.load()[listener.protocol].alpn)
        shown |= {"certificate": certificate.subject, "fingerprint": certificate.fingerprint}
        warning = certificate.warning(datetime.now(UTC))
        if universe := universe_of(listener):
            shown["universe"] = universe
            missing = uncovered(listener, certificate.names)
            if missing and warning is None:
                warning = f"the certificate is not for {', '.join(missing)}; one for *.{universe} is"
    if listener.plain:
        shown["plain"] = str(listener.plain)
    return shown, warning


def _places_of_the_log(loaded: Loaded) -> tuple[list[str], list[str]]:
    """What is wrong, and what is doubtful, with the anchors and witnesses of the node's log."""
    wrong: list[str] = []
    doubtful: list[str] = []
    tapes = loaded.state / loaded.config.recorder.directory
    for index, anchor in enumerate(loaded.config.recorder.anchors):
        if anchor.url.startswith("file:///") and _device(Path(anchor.url.removeprefix("file://"))) == _device(tapes):
            why = "this anchor is on the disk of the tapes: whoever rewrites the one can rewrite the other"
            doubtful.append(loaded.document.error(("recorder", "anchors", index), why))
    for index, witness in enumerate(loaded.config.recorder.witnesses):
        try:
            Witness.of(witness.key, witness.url)
        except (ValueError, FormatError) as error:
            where = ("recorder", "witnesses", index)
            wrong.append(loaded.document.error(where, getattr(error, "reason", str(error))))
    return wrong, doubtful


def _device(path: Path) -> int:
    """The file system that a path is on, or will be on once it is made."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return there.stat().st_dev


def _target(target: Target) -> dict[str, Any]:
    shown: dict[str, Any] = {name: getattr(target, name) for name in ("name", "protocol", "host", "port", "recording")}
    for name in ("encrypt_to", "original_to"):
        shown[name] = [recipient.id for recipient in getattr(target, name)]
    return shown


def render_check(found: dict[str, Any]) -> str:
    """The result for people."""
    pairs = [("state", found["state"])]
    for listener in found["listeners"]:
        how = listener.get("host_key") or listener.get("certificate", "without TLS")
        where = f"{listener['address']}, {listener['universe']}" if "universe" in listener else listener["address"]
        pairs.append(("listener", f"{listener['name']}: {listener['protocol']} on {where}, {how}"))
    for target in found["targets"]:
        place = f"{target['host']}:{target['port']}"
        how = [target["recording"]]
        if target["encrypt_to"]:
            how.append(f"tapes encrypted to {', '.join(target['encrypt_to'])}")
        if target["original_to"]:
            how.append(f"unmasked originals kept for {', '.join(target['original_to'])}")
        pairs.append(("target", f"{target['name']}: {target['protocol']} at {place}, {', '.join(how)}"))
    pairs.append(("rules", f"{found['rules']['count']}, revision {found['rules']['revision']}"))
    pairs += [("issuer", issuer) for issuer in found["issuers"]]
    pairs += [("user", user) for user in found["users"]]
    pairs += [("anchor", url) for url in found["anchors"]]
    pairs += [("witness", f"{one['key'].partition('+')[0]} at {one['url']}") for one in found["witnesses"]]
    if found["vault"]:
        vault = found["vault"]
        place = vault["url"] or "no url: nothing leaves the disk"
        tried = ", which takes and keeps what it is given" if vault.get("connected") else ""
        days = f"{vault['keep_local_days']:g} days here, {vault['retention_days']} in all"
        pairs.append(("vault", f"{place}{tried}; {days}, {vault['terms']} other terms"))
    warnings = "".join(f"warning: {harmless(text)}\n" for text in found["warnings"])
    return f"{found['config']} is good. It starts:\n\n{fields(pairs)}{warnings}"


def _missing_secrets(snapshot: Snapshot) -> list[str]:
    """Credentials that are not there now. A warning: the gateway may run elsewhere, with another environment."""
    found = []
    sources = credentials_of(snapshot)
    document = snapshot.loaded.document
    for index, target in enumerate(snapshot.loaded.config.targets):
        source, where = sources[target.name], ("targets", index)
        own = target.protocol in (SSH, KUBERNETES)
        found += [document.error((*where, "credential"), text) for text in _missing_of(source, own)]
        for place, account in enumerate(source.accounts):
            there: Place = (*where, "bigquery", "accounts", place, "credential")
            found += [document.error(there, text) for text in _missing_of(account.credential, own)]
    return found


def _missing_of(source: StaticCredential, own_key: bool) -> list[str]:
    """What of a credential is not there now. own_key: its key is no part of the target's TLS."""
    names = (source.password_env, source.passphrase_env, source.token_env)
    found = [
        f"the environment variable {name} is not set here"
        for name in names
        if name is not None and not os.environ.get(name)
    ]
    files = [source.password_file, source.passphrase_file, source.token_file]
    if source.gcp is not None:
        files.append(source.gcp.key_file)
    if own_key:
        files += [source.key_file, source.certificate_file]
    return found + [
        f"{file} cannot be read here" for file in files if file is not None and not os.access(file, os.R_OK)
    ]
