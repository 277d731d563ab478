"""What ``gatecast ssh ...`` does: register keys, issue and revoke user certificates, show the authorities.

Like ``gatecast token`` it works on the state directory itself, as the user that runs the gateway; a running gate sees
a change within a second. The store keeps who was given what, and until when. Raises GatecastError.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from proxy.commands import CommandError, _load, _print, _seconds
from proxy.config import Loaded
from proxy.core.text import fields, harmless, iso, table
from proxy.identity.commands import DATABASE_NAME, JsonObject
from proxy.identity.proof import ProofRefused
from proxy.identity.ssh_ca import ANY_LOGIN, DEFAULT_PERMITS, DEFAULT_SECONDS, Authority, AuthorityFiles
from proxy.identity.ssh_certificate import LINE_LIMIT, PublicKey, read_line
from proxy.identity.ssh_keys import Keys, named, sign_and_note
from proxy.identity.tokens import DAY_SECONDS
from proxy.services import prepare_state
from proxy.ssh_doors import names_of
from proxy.ssh_files import public_keys
from proxy.ssh_sections import SSH, ListenerSsh
from proxy.store.database import Database
from proxy.store.ssh_keys import SshCertificate, SshKey

Clock = Callable[[], float]
CERTIFICATE_MODE: Final = 0o644  # as ssh-keygen writes them: a certificate is no secret


# -- certificates -----------------------------------------------------------------------------------------


def certificate(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh certificate."""
    loaded = _load(options)
    section = loaded.config.identity.ssh
    valid = _seconds(options.valid)
    seconds = min(DEFAULT_SECONDS, section.certificate_max) if valid is None else valid
    if not 0 < seconds <= section.certificate_max:
        raise CommandError(f"a certificate holds for at most {section.certificate_max:g} s, and for some time")
    key = _read_key(Path(options.key))
    identity = named(options.subject, options.group, options.agent)
    with _keys(loaded, clock) as keys:
        made = sign_and_note(
            keys,
            _user_ca(loaded),
            key,
            identity,
            logins=options.login,
            valid_seconds=seconds,
            key_id=options.key_id or "",
            source_addresses=options.source_address,
            force_command=options.force_command,
            permits=options.permit or sorted(DEFAULT_PERMITS),
        )
    result = {
        "certificate": made.line,
        "serial": made.serial,
        "key_id": made.key_id,
        "subject": identity.subject,
        "groups": sorted(identity.groups),
        "agents": list(identity.agents),
        "logins": list(made.principals),
        "expires": iso(float(made.valid_before)),
        "key": key.fingerprint,
        "authority": made.authority.fingerprint,
        "proof": made.proof,  # as tapes name the login
    }
    if not options.out:
        return _print(options, result, made.line + "\n")
    _write(Path(options.out), f"{made.line} {harmless(made.key_id)}\n")
    return _print(options, {**result, "file": options.out}, _render_made(result, options.out))


def certificates(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh certificates."""
    with _keys(_load(options), clock) as keys:
        found = [_certificate_json(entry, clock()) for entry in keys.certificates(options.subject)]
    return _print(options, found, _render_certificates(found))


def revoke(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh revoke."""
    loaded = _load(options)
    if not options.serial.isascii() or not options.serial.isdigit():
        raise CommandError("a serial is a number; gatecast ssh certificates shows those of ours")
    serial = int(options.serial)
    authorities = [_user_ca(loaded).public] if options.ca is None else public_keys(Path(options.ca))
    known: SshCertificate | None = None
    with _keys(loaded, clock) as keys:
        for authority in authorities:
            known = keys.revoke_certificate(authority.fingerprint, serial, options.reason) or known
    result = {"serial": serial, "authorities": [one.fingerprint for one in authorities]}
    if known is not None:
        result["certificate"] = _certificate_json(known, clock())
    whose = f" of {_who(_certificate_json(known, clock()))}" if known is not None else ", which was not issued here,"
    return _print(options, result, harmless(f"Certificate {serial}{whose} is revoked.") + "\n")


# -- keys -------------------------------------------------------------------------------------------------


def key_add(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh key add."""
    loaded = _load(options)
    key = _read_key(Path(options.key))
    with _keys(loaded, clock) as keys:
        entry = keys.add(
            key,
            options.subject,
            options.group,
            options.agent,
            options.login or (ANY_LOGIN,),
            _seconds(options.life),
            options.note or key.comment,
        )
    result = _key_json(entry, clock())
    return _print(options, result, _render_key(result))


def key_list(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh key list."""
    with _keys(_load(options), clock) as keys:
        found = [_key_json(entry, clock()) for entry in keys.listing(options.subject)]
    return _print(options, found, _render_keys(found))


def key_show(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh key show."""
    with _keys(_load(options), clock) as keys:
        result = _key_json(keys.find_now(_word(options.key)), clock())
    return _print(options, result, _render_key(result))


def key_revoke(options: Namespace, clock: Clock = time.time) -> int:
    """gatecast ssh key revoke."""
    with _keys(_load(options), clock) as keys:
        result = _key_json(keys.revoke(_word(options.key)), clock())
    text = f"Key {result['id']} of {harmless(_who(result))} is revoked (since {result['revoked']}).\n"
    return _print(options, result, text)


# -- authorities ------------------------------------------------------------------------------------------


def ca_show(options: Namespace) -> int:
    """gatecast ssh ca show."""
    loaded = _load(options)
    both = not options.user and not options.host
    result: JsonObject = {}
    parts = []
    if options.user or both:
        key = _user_ca(loaded).public
        result["user"] = {"fingerprint": key.fingerprint, "key": key.line}
        parts.append(
            f"# user CA {key.fingerprint}: certifies who may log in to the gateway.\n"
            f"# A line for the file that sshd's TrustedUserCAKeys names; a host that has it lets its holders in\n"
            f"# without the gateway.\n"
            f"{key.line} gatecast-user-ca\n"
        )
    if options.host or both:
        hosts = options.hosts or ",".join(_hosts(loaded)) or "*"
        if any(char.isspace() or not char.isprintable() for char in hosts):
            raise CommandError("--hosts is a list of patterns with commas: gate.example.com,*.prod")
        result["host"] = []
        for key in _host_cas(loaded):
            line = f"@cert-authority {hosts} {key.line}"
            result["host"].append({"fingerprint": key.fingerprint, "key": key.line, "known_hosts": line})
            parts.append(
                f"# host CA {key.fingerprint}: certifies the gateway, and targets behind ssh -J.\n"
                f"# A line for users' known_hosts.\n{line} gatecast-host-ca\n"
            )
    return _print(options, result, "\n".join(parts))


def _host_cas(loaded: Loaded) -> list[PublicKey]:
    """The host CA of each listener, each once; that of the state directory where no listener is configured."""
    files = AuthorityFiles.of(prepare_state(loaded.state))
    found: dict[bytes, PublicKey] = {}
    sections = [one.ssh or ListenerSsh() for one in loaded.config.listeners if one.protocol == SSH] or [ListenerSsh()]
    for section in sections:
        key = files.host_ca(loaded.resolve(section.host_ca) if section.host_ca is not None else None).public
        found[key.blob] = key
    return list(found.values())


def _hosts(loaded: Loaded) -> list[str]:
    """The names that a host certificate of ours may be for: the gateway's own, and targets'."""
    listeners = [listener for listener in loaded.config.listeners if listener.protocol == SSH]
    own = [name for listener in listeners for name in names_of(listener.ssh or ListenerSsh())]
    return list(dict.fromkeys([*own, *(target.name for target in loaded.config.targets if target.protocol == SSH)]))


# -- what they share --------------------------------------------------------------------------------------


def _user_ca(loaded: Loaded) -> Authority:
    configured = loaded.config.identity.ssh.user_ca
    files = AuthorityFiles.of(prepare_state(loaded.state))
    return files.user_ca(loaded.resolve(configured) if configured is not None else None)


@contextmanager
def _keys(loaded: Loaded, clock: Clock) -> Iterator[Keys]:
    store = Database(prepare_state(loaded.state) / DATABASE_NAME).open()
    try:
        yield Keys(store, clock=clock, max_seconds=loaded.config.identity.ssh.key_max_days * DAY_SECONDS)
    finally:
        store.close()


def _read_key(path: Path) -> PublicKey:
    """The public key of a file, or of standard input as "-"."""
    try:
        if str(path) == "-":
            text = sys.stdin.read(LINE_LIMIT)
        else:
            with path.open("rb") as file:
                text = file.read(LINE_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: holds no public key; give the .pub file") from error
    if "PRIVATE KEY" in text:
        raise CommandError(f"{path}: holds a private key; give the .pub file, and keep this one to yourself")
    try:
        return read_line(text)
    except ProofRefused as error:
        what = "a certificate; give the .pub file of its key" if "-cert-v01@" in text else f"no good key ({error})"
        raise CommandError(f"{path}: holds {what}") from error


def _word(word: str) -> str:
    """What a key is looked up by: an id, or the hash of a .pub file's key."""
    return _read_key(Path(word)).proof if word.endswith(".pub") or "/" in word else word


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all; one that is there is replaced, as ssh-keygen -s does."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, CERTIFICATE_MODE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(f"{path}: is no file")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key_json(entry: SshKey, now: float) -> JsonObject:
    key = read_line(entry.key)
    return {
        "id": entry.id,
        "state": entry.state(now),
        "subject": entry.subject,
        "groups": list(entry.groups),
        "agents": list(entry.agents),
        "logins": list(entry.logins),
        "fingerprint": key.fingerprint,
        "key": entry.key,
        "note": entry.note,
        "created": iso(entry.created),
        "expires": iso(entry.expires),
        "revoked": iso(entry.revoked),
        "used": iso(entry.used),
        "proof": entry.hash,  # as tapes name the login
    }


def _certificate_json(entry: SshCertificate, now: float) -> JsonObject:
    return {
        "serial": entry.serial,
        "state": entry.state(now),
        "key_id": entry.key_id,
        "subject": entry.subject,
        "groups": list(entry.groups),
        "agents": list(entry.agents),
        "logins": list(entry.logins),
        "authority": entry.authority,
        "origin": entry.origin,
        "created": iso(entry.created),
        "expires": iso(entry.expires),
        "revoked": iso(entry.revoked),
        "proof": entry.hash,
    }


def _render_made(entry: Mapping[str, Any], file: str) -> str:
    head = fields((
        ("certificate", file),
        ("for", _who(entry)),
        ("groups", ", ".join(entry["groups"])),
        ("logins", ", ".join(entry["logins"])),
        ("expires", entry["expires"]),
        ("key id", entry["key_id"]),
        ("serial", str(entry["serial"])),
    ))  # fmt: skip
    return f"{head}It goes beside the private key as <key>-cert.pub; gatecast ssh revoke {entry['serial']} ends it.\n"


def _render_key(entry: Mapping[str, Any]) -> str:
    return fields((
        ("id", entry["id"]),
        ("state", entry["state"]),
        ("key", f"{entry['key'].partition(' ')[0]} {entry['fingerprint']}"),
        ("for", _who(entry)),
        ("groups", ", ".join(entry["groups"])),
        ("logins", ", ".join(entry["logins"])),
        ("expires", entry["expires"]),
        ("revoked", entry["revoked"] or ""),
        ("last used", entry["used"] or "never"),
        ("note", entry["note"]),
    ))  # fmt: skip


def _render_keys(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "There are no keys; gatecast ssh key add registers one.\n"
    head = ("ID", "STATE", "FOR", "GROUPS", "LOGINS", "EXPIRES", "LAST USED", "FINGERPRINT", "NOTE")
    rows = [
        (one["id"], one["state"], _who(one), ",".join(one["groups"]), ",".join(one["logins"]), one["expires"],
         one["used"] or "never", one["fingerprint"], one["note"])
        for one in found
    ]  # fmt: skip
    return table(head, rows)


def _render_certificates(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "There are no certificates; gatecast ssh certificate makes one.\n"
    rows = [
        (str(one["serial"]), one["state"], _who(one), ",".join(one["groups"]), ",".join(one["logins"]), one["expires"],
         one["key_id"])
        for one in found
    ]  # fmt: skip
    return table(("SERIAL", "STATE", "FOR", "GROUPS", "LOGINS", "EXPIRES", "KEY ID"), rows)


def _who(entry: Mapping[str, Any]) -> str:
    agents = "/".join(entry["agents"])
    return f"{agents} for {entry['subject']}" if agents else str(entry["subject"])
