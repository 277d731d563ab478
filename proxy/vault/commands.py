"""``gatecast vault ...`` and ``gatecast sessions erase``: what each prints, given its parsed arguments.

status, history and hold list read vault.db; fetch reads it and the bucket: all of that works without a running gateway.
What changes anything is asked of the gateway by its admin socket, where the kernel or a token says who asks.
read_tape() is for the commands that read tapes: a session whose files have left is fetched into a cache and read there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from argparse import Namespace
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from proxy.commands import CommandError, _admin, _load, _print
from proxy.core.text import fields, harmless, iso, span, table
from proxy.vault.service import CACHE_NAME, hold_json
from proxy.vault.settings import open_buckets
from recorder.progress import ProgressLine
from recorder.ulid import is_ulid
from recorder.vault import Bucket, VaultError, probe
from recorder.vault_fetch import Fetched, fetch
from recorder.vault_state import STATE_NAME, VaultState

CACHE_SECONDS: Final = 86_400.0  # what was fetched for reading stays for a day, for whoever reads it again
_SIZES: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def vault_status(options: Namespace) -> int:
    """gatecast vault status."""
    loaded = _vaulted(options)
    tapes = loaded.state / loaded.config.recorder.directory
    found: dict[str, Any] = {"url": loaded.config.vault.url, "free_bytes": shutil.disk_usage(tapes).free}
    if (tapes / STATE_NAME).exists():
        with closing(VaultState(tapes, read_only=True)) as state:
            found |= state.summary()
    else:
        found |= {"states": {}, "backlog": {"count": 0, "bytes": 0, "oldest": None}, "last_error": None, "holds": 0}
    backlog, error = found["backlog"], found["last_error"]
    waiting = f"{backlog['count']} files, {size_text(backlog['bytes'])}"
    if backlog["oldest"]:
        waiting += f", the oldest for {span(time.time() - backlog['oldest'])}"
    conflicts = found["states"].get("conflict", {}).get("count", 0)
    pairs = [
        ("vault", found["url"] or "no url: nothing leaves the disk"),
        ("to upload", waiting),
        *((name, f"{one['count']} files, {size_text(one['bytes'])}") for name, one in sorted(found["states"].items())),
        ("to delete", f"{found['to_delete']} sessions" if found.get("to_delete") else ""),
        ("holds", str(found["holds"] or "")),
        ("free on disk", size_text(found["free_bytes"])),
        ("last error", f"{error['path']}: {error['error']} (tried {error['attempts']} times)" if error else ""),
        ("CONFLICTS", f"{conflicts}: the bucket has something else; gatecast vault history" if conflicts else ""),
    ]
    return _print(options, found, fields(pairs), code=1 if conflicts else 0)


def vault_history(options: Namespace) -> int:
    """gatecast vault history."""
    with closing(_state(options)) as state:
        lines = state.history(options.limit)
    rows = [(iso(one["at"]) or "", one["who"], one["action"], one["subject"], _words(one["detail"])) for one in lines]
    text = table(("TIME", "WHO", "WHAT", "OF", "MORE"), rows) if rows else "Nothing has happened yet.\n"
    return _print(options, lines, text)


# -- holds ------------------------------------------------------------------------------------------------


def vault_hold_add(options: Namespace) -> int:
    """gatecast vault hold add."""
    _vaulted(options)
    made = _admin(options).call(
        "vault.hold",
        matter=options.matter,
        session=options.session,
        target=options.target,
        subject=options.subject,
        since=_moment(options.since),
        until=_moment(options.until),
        token=_token(),
    )
    return _print(options, made, f"Held: {made['id']} by {made['by']}. Nothing that it covers expires or is erased.\n")


def vault_hold_release(options: Namespace) -> int:
    """gatecast vault hold release."""
    _vaulted(options)
    made = _admin(options).call("vault.release", id=options.hold, reason=options.reason, token=_token())
    return _print(options, made, f"Released: {made['id']} by {made['released_by']}.\n")


def vault_hold_list(options: Namespace) -> int:
    """gatecast vault hold list."""
    with closing(_state(options)) as state:
        holds = state.holds(released=options.all)
    rows = []
    for hold in holds:
        times = [f"{word} {iso(value)}" for word, value in (("since", hold.since), ("until", hold.until)) if value]
        names = [f"{name} {getattr(hold, name)}" for name in ("session", "target", "subject") if getattr(hold, name)]
        released = f"released by {hold.released_by}" if hold.released_at else "in force"
        rows.append((hold.id, iso(hold.at) or "", hold.by, released, ", ".join(names + times) or "all", hold.matter))
    text = table(("ID", "SINCE", "BY", "STATE", "SCOPE", "MATTER"), rows) if rows else "No hold is in force.\n"
    return _print(options, [hold_json(hold) for hold in holds], text)


# -- the end of tapes -------------------------------------------------------------------------------------


def vault_expire(options: Namespace) -> int:
    """gatecast vault expire."""
    _vaulted(options)
    if options.confirm is not None:
        return _confirm(options)
    found = _admin(options).call("vault.expire", token=_token())
    rows = [
        (
            one["sid"],
            iso(one["ended"]) or "",
            f"{one['days']} d, {one['term']}",
            f"HELD by {one['held_by']}" if one["held_by"] else "goes",
            one["target"],
            one["subject"],
        )
        for one in found["sessions"]
    ]
    text = table(("SESSION", "ENDED", "TERM", "", "TARGET", "SUBJECT"), rows) if rows else ""
    if found["count"] > len(rows):
        text += f"... and {found['count'] - len(rows)} more\n"
    return _print(options, found, text + _next_step(found["plan"], "vault expire", "No session's term is over.\n"))


def sessions_erase(options: Namespace) -> int:
    """gatecast sessions erase."""
    _vaulted(options)
    if options.confirm is not None:
        return _confirm(options)
    if not options.session or not options.reason:
        raise CommandError("name the session and a --reason, or --confirm a token")
    found = _admin(options).call("vault.erase", session=options.session, reason=options.reason, token=_token())
    text = "The content of this session will be unreadable for ever; the tape, its seals and its index stay.\n"
    return _print(options, found, text + _next_step(found["plan"], "sessions erase", ""))


def vault_retry(options: Namespace) -> int:
    """gatecast vault retry."""
    _vaulted(options)
    found = _admin(options).call("vault.retry", token=_token())
    return _print(options, found, f"{len(found['files'])} conflicts are tried again.\n")


def _confirm(options: Namespace) -> int:
    found = _admin(options).call("vault.confirm", token_of_plan=options.confirm, token=_token())
    count = len(found["sessions"])
    text = f"Confirmed by {found['confirmed_by']}: {count} {'session goes' if count == 1 else 'sessions go'} now.\n"
    return _print(options, found, text + "".join(f"  {sid}\n" for sid in found["sessions"]))


def _next_step(plan: dict[str, Any] | None, command: str, nothing: str) -> str:
    if plan is None:
        return nothing
    return (
        f"\nNothing is deleted yet. {plan['asked_by']} asked; within a day, somebody else confirms"
        f" {plan['sessions']} {'session' if plan['sessions'] == 1 else 'sessions'} by\n"
        f"  gatecast {command} --confirm {plan['token']}\n"
    )


# -- back -------------------------------------------------------------------------------------------------


def vault_fetch(options: Namespace) -> int:
    """gatecast vault fetch."""
    loaded = _vaulted(options)
    sid = _sid(loaded, options.session)
    into = Path(options.to) if options.to is not None else Path.cwd() / sid
    fetched = _fetch(loaded, sid, into, copies=True)
    found = {"sid": sid, "path": str(fetched.first), "files": fetched.files, "bytes": fetched.size_bytes}
    found |= {"checked": fetched.checked, "erased": fetched.erased}
    said = (
        "" if fetched.checked else " Its checksums are not known here: gatecast verify tells whether it is genuine.\n"
    )
    files = "1 file" if fetched.files == 1 else f"{fetched.files} files"
    return _print(options, found, f"{files}, {size_text(fetched.size_bytes)}: {fetched.first}\n{said}")


def read_tape(options: Namespace, name: str) -> Path | None:
    """Fetch a session that is not here (any more) into the cache; None if the vault does not know it either."""
    loaded = _load(options)
    if loaded.config.vault is None or not name:
        return None
    try:
        sid = _sid(loaded, name)
    except VaultError:
        return None
    cache = loaded.state / CACHE_NAME
    _prune(cache)
    fetched = _fetch(loaded, sid, cache / sid)
    sys.stderr.write(f"gatecast: {sid} is not on this disk any more; reading it from the vault\n")
    if fetched.erased:
        sys.stderr.write("gatecast: its keys were erased: the content cannot be read any more\n")
    return fetched.first


def check_vault(loaded: Any, connect: bool) -> dict[str, Any]:  # proxy.config.Loaded
    """What config check says of the vault. Raises ConfigError, VaultError (connect)."""
    section = loaded.config.vault
    bucket, keys = open_buckets(section, loaded.resolve)
    found: dict[str, Any] = {
        "url": section.url,
        "keys_url": section.keys_url,
        "keep_local_days": section.keep_local_days,
        "retention_days": section.retention_days,
        "terms": len(section.retention),
        "warnings": [],
    }
    if connect and bucket is not None:
        versions = [asyncio.run(_probed(one)) for one in (keys or bucket,)]
        if keys is not None:
            asyncio.run(_probed(bucket))
        found["connected"] = True
        if versions[0]:
            where = section.keys_url or section.url
            found["warnings"].append(f"{where} keeps old versions: keys that are erased there can be brought back")
    return found


async def _probed(bucket: Bucket) -> bool:
    return await probe(bucket)


def _fetch(loaded: Any, sid: str, into: Path, copies: bool = False) -> Fetched:
    bucket, keys = open_buckets(loaded.config.vault, loaded.resolve)
    if bucket is None:
        raise CommandError("the vault has no url: every session is on this disk, or gone")
    tapes = loaded.state / loaded.config.recorder.directory
    state = VaultState(tapes, read_only=True) if (tapes / STATE_NAME).exists() else None
    try:
        with ProgressLine(f"fetching {sid}", sys.stderr) as bar:
            return asyncio.run(fetch(sid, into, bucket, keys, state=state, tapes=tapes, copy=copies, progress=bar))
    finally:
        if state is not None:
            state.close()


def _prune(cache: Path) -> None:
    """Remove what nobody fetched lately."""
    for folder in cache.iterdir() if cache.is_dir() else ():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > CACHE_SECONDS:
                shutil.rmtree(folder)


# -- what they share --------------------------------------------------------------------------------------


def _vaulted(options: Namespace) -> Any:
    loaded = _load(options)
    if loaded.config.vault is None:
        raise CommandError(
            f"{loaded.path}: there is no vault; add 'vault: {{url: s3://bucket/prefix}}', or 'vault: {{}}'"
        )
    return loaded


def _state(options: Namespace) -> VaultState:
    loaded = _vaulted(options)
    return VaultState(loaded.state / loaded.config.recorder.directory, read_only=True)


def _sid(loaded: Any, name: str) -> str:
    """The whole id of a session; without vault.db, only a whole one will do. Raises VaultError."""
    name = name.upper()
    tapes = loaded.state / loaded.config.recorder.directory
    if (tapes / STATE_NAME).exists():
        with closing(VaultState(tapes, read_only=True)) as state:
            found = state.find_sessions(name)
        if len(found) > 1:
            raise CommandError(f"several sessions begin with {harmless(name)}")
        if found:
            return found[0]
    if is_ulid(name):
        return name
    raise VaultError(f"the vault knows no session that begins with {harmless(name[:40])}")


def _moment(text: str | None) -> float | None:
    if not text:
        return None
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"{harmless(text)}: write a time as 2026-11-21 or 2026-11-21T10:00:00Z") from error
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _token() -> str | None:
    return os.environ.get("GATECAST_TOKEN") or None


def size_text(size: int) -> str:
    """Return a size for people."""
    for unit, name in _SIZES:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _words(detail: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in detail.items() if value not in ("", None, []))
