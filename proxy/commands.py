"""What each command of the command line does, given its parsed arguments; returns the exit code.

Imports are inside the functions: each command loads what it needs and nothing else. Output is text for people, or
JSON with --json; strings from tapes and from users are made harmless before they reach a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proxy.core.errors import ConfigError, GatecastError

if TYPE_CHECKING:
    from proxy.admin.client import AdminClient

CONFIG_NAMES: Final = (Path("gatecast.yaml"), Path(".gatecast/gatecast.yaml"), Path("/etc/gatecast/gatecast.yaml"))


class CommandError(GatecastError):
    """A command cannot be done as it was asked for; the text says what to do."""


# -- the gateway ------------------------------------------------------------------------------------------


def serve(options: Namespace) -> int:
    """gatecast serve."""
    from proxy import app
    from proxy.logging import configure

    configure(options.log_level, as_json=True if options.log_json else None)
    path = find_config(options.config)
    if path is None:
        from proxy.example import write_example

        path = write_example(Path(".gatecast"), sys.stderr)
    app.run(path)
    return 0


def reload(options: Namespace) -> int:
    """gatecast reload."""
    from proxy.admin.commands import config_reload

    result = config_reload(_admin(options))
    return _print(options, result, f"Reloaded: rules {result['rules']}.\n")


def status(options: Namespace) -> int:
    """gatecast status."""
    from proxy.admin import commands

    result = commands.status(_admin(options))
    places = [f"{name} {place}" for name, places in result["listeners"].items() for place in places]
    return _print(options, result, commands.render_status({**result, "listeners": places}))


def version(options: Namespace) -> int:
    """gatecast version."""
    from proxy import __version__

    return _print(options, {"version": __version__}, f"gatecast {__version__}\n")


# -- configuration ----------------------------------------------------------------------------------------


def config_check(options: Namespace) -> int:
    """gatecast config check."""
    from proxy.checking import check_config, render_check

    try:
        found = check_config(config_path(options), connect=options.connect)
    except ConfigError as error:
        if not options.json:
            raise
        return _print(options, {"ok": False, "problems": str(error).splitlines()}, "", code=1)
    return _print(options, {"ok": True, **found}, render_check(found))


def config_schema(options: Namespace) -> int:
    """gatecast config schema."""
    from proxy.config import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def config_example(options: Namespace) -> int:
    """gatecast config example."""
    import getpass

    from proxy.example import EXAMPLE_CONFIG, EXAMPLE_RULES

    rules = EXAMPLE_RULES.replace("@USER@", getpass.getuser())
    sys.stdout.write(EXAMPLE_CONFIG.replace("rules_file: rules.yaml\n", rules))
    return 0


# -- tokens and approvals ---------------------------------------------------------------------------------


def token_issue(options: Namespace) -> int:
    """gatecast token issue."""
    from proxy.identity import commands

    loaded = _load(options)
    result = commands.token_issue(
        loaded.state / commands.DATABASE_NAME,
        options.subject,
        groups=options.group,
        agents=options.agent,
        seconds=_seconds(options.life),
        note=options.note,
        max_seconds=loaded.config.identity.tokens.max_days * 86_400,
    )
    return _print(options, result, commands.render_issued(result))


def token_revoke(options: Namespace) -> int:
    """gatecast token revoke."""
    from proxy.identity import commands

    result = commands.token_revoke(_load(options).state / commands.DATABASE_NAME, options.token)
    return _print(options, result, commands.render_revoked(result))


def token_list(options: Namespace) -> int:
    """gatecast token list."""
    from proxy.identity import commands

    result = commands.token_list(_load(options).state / commands.DATABASE_NAME, subject=options.subject)
    return _print(options, result, commands.render_tokens(result))


def approvals_list(options: Namespace) -> int:
    """gatecast approvals list."""
    from proxy.admin import commands

    state = None if options.state == "all" else options.state
    result = commands.approvals_list(_admin(options), state=state, subject=options.subject, target=options.target)
    return _print(options, result, commands.render_approvals(result))


def approvals_show(options: Namespace) -> int:
    """gatecast approvals show."""
    from proxy.admin import commands

    result = commands.approvals_show(_admin(options), options.id)
    return _print(options, result, commands.render_approval(result))


def approvals_approve(options: Namespace) -> int:
    """gatecast approvals approve."""
    from proxy.admin import commands

    token = os.environ.get("GATECAST_TOKEN") or None
    result = commands.approvals_approve(_admin(options), options.id, reason=options.reason, token=token)
    return _print(options, result, commands.render_approval(result))


def approvals_deny(options: Namespace) -> int:
    """gatecast approvals deny."""
    from proxy.admin import commands

    token = os.environ.get("GATECAST_TOKEN") or None
    result = commands.approvals_deny(_admin(options), options.id, reason=options.reason, token=token)
    return _print(options, result, commands.render_approval(result))


# -- rules ------------------------------------------------------------------------------------------------


def policy_explain(options: Namespace) -> int:
    """gatecast policy explain."""
    from proxy import trying

    data, text = trying.explain(
        config_path(options),
        options.target,
        options.text,
        options.subject,
        options.group,
        options.agent,
        options.at,
        options.way,
    )
    return _print(options, data, text)


def policy_test(options: Namespace) -> int:
    """gatecast policy test."""
    from proxy import trying

    data, text, code = trying.test(config_path(options), Path(options.cases))
    return _print(options, data, text, code=code)


# -- sessions and tapes -----------------------------------------------------------------------------------


def sessions_list(options: Namespace) -> int:
    """gatecast sessions list."""
    from proxy.sessions.commands import sessions_list as answer

    loaded = _load(options)
    return answer(options, loaded.state / loaded.config.recorder.directory, loaded.config.recorder.index)


def sessions_search(options: Namespace) -> int:
    """gatecast sessions search."""
    from proxy.sessions.commands import sessions_search as answer

    return answer(options, _tapes(options))


def sessions_show(options: Namespace) -> int:
    """gatecast sessions show."""
    from proxy.keys import identities
    from proxy.sessions.commands import sessions_show as answer

    return answer(options, _tape(options, options.session), identities(options))


def sessions_reindex(options: Namespace) -> int:
    """gatecast sessions reindex."""
    from proxy.sessions.commands import sessions_reindex as answer

    return answer(options, _tapes(options))


def sessions_live(options: Namespace) -> int:
    """gatecast sessions live."""
    from proxy.admin import commands

    result = commands.sessions_live(_admin(options))
    return _print(options, result, commands.render_sessions(result))


def sessions_kill(options: Namespace) -> int:
    """gatecast sessions kill."""
    from proxy.admin.commands import sessions_kill as kill

    result = kill(_admin(options), options.session)
    return _print(options, result, f"Session {result['id']} is ended.\n")


def replay(options: Namespace) -> int:
    """gatecast replay."""
    from proxy.keys import identities
    from recorder.cli import replay_main
    from recorder.player_options import BadOption, from_arguments

    if options.against is not None:
        from proxy.reexecution.command import against_main

        return against_main(
            config_path(options), _tape(options, options.tape), options, sys.stdout, identities(options)
        )
    try:
        how = from_arguments(options)
    except BadOption as error:
        raise CommandError(str(error)) from None
    return replay_main(_tape(options, options.tape), how, identities(options))


def export(options: Namespace) -> int:
    """gatecast export."""
    from proxy.keys import identities
    from recorder.cli import export_main

    return export_main(_tape(options, options.tape), options, identities(options))


def verify(options: Namespace) -> int:
    """gatecast verify."""
    from proxy.admin.text import harmless
    from proxy.keys import identities
    from recorder import verify_arguments
    from recorder.cli import verify_path
    from recorder.errors import KeyFileError
    from recorder.progress import ProgressLine
    from recorder.seal import public_path

    where = Path(options.tape) if options.tape else _tapes(options)
    if not where.exists():
        where = _tape(options, options.tape)
    if options.key is not None:
        key = Path(options.key)
    else:
        loaded = _load(options)
        key = public_path(loaded.state / loaded.config.recorder.key_file)
    try:
        outside = verify_arguments.from_arguments(options)
    except KeyFileError as error:
        raise CommandError(str(error)) from error
    with ProgressLine("verifying", sys.stderr) as progress:
        result = verify_path(where, key, identities(options), outside, progress)
    lines = []
    for tape in result["tapes"]:
        path = tape.get("path") or tape.get("sid")
        note = _CONTENT_NOTES.get(tape["content"], "")
        lines.append(harmless(f"{tape['status']}  {path}{note}") + _fault(tape.get("fault"), path) + "\n")
    for log in result["logs"]:
        lines.append(harmless(f"{log['status']}  {log['path']}") + "\n")
        if log["fault"]:
            lines.append(harmless(f"          {log['fault']['reason']} ({log['fault']['file']})") + "\n")
        lines += [harmless(f"          missing: session {sid}") + "\n" for sid in log["missing"]]
        lines += [harmless(f"          note: {note}") + "\n" for note in log["notes"]]
    if where.is_file() and not result["logs"]:
        result["notes"].append(
            "one tape is judged by itself; a directory of tapes is compared with its node's log, too"
        )
    result["notes"] += _in_the_vault(where, result["logs"])
    lines += [harmless(f"note: {note}") + "\n" for note in result["notes"]]
    lines.append(harmless(f"{result['status']}: {result['statement']}") + "\n")
    return _print(options, result, "".join(lines), code=int(result["exit_code"]))


def _in_the_vault(where: Path, logs: list[dict[str, Any]]) -> list[str]:
    """Say it where sessions are missing that have left for the vault; it is for the user to believe vault.db."""
    from recorder.vault_state import STATE_NAME, VaultError, elsewhere

    missing = [str(sid).partition(".")[0] for log in logs for sid in log["missing"]]
    if not missing or not where.is_dir():
        return []
    try:
        known = elsewhere(where)
        left = sum(map(known, missing))
    except VaultError:
        return []
    how = f"--elsewhere {where / STATE_NAME} takes that for granted"
    return (
        [f"{left} of {len(missing)} that are missing here are in the vault, by its own account; {how}"] if left else []
    )


_CONTENT_NOTES: Final = {
    "encrypted": "  (encrypted: its content was not looked into; --identity FILE does)",
    "erased": "  (encrypted, without its .keys file: nobody can read its content)",
}


# -- what they share --------------------------------------------------------------------------------------


def find_config(given: str | None) -> Path | None:
    """The configuration file: the one that is named, else the first that exists."""
    named = given or os.environ.get("GATECAST_CONFIG")
    if named:
        return Path(named)
    return next((path for path in CONFIG_NAMES if path.exists()), None)


def config_path(options: Namespace) -> Path:
    """The configuration file that a command means. Raises CommandError."""
    path = find_config(options.config)
    if path is None:
        raise CommandError(
            "there is no gatecast.yaml here; name one with -c FILE, or run gatecast serve for an example"
        )
    return path


def _load(options: Namespace) -> Any:  # proxy.config.Loaded, whose import is put off
    import protocols
    from proxy.config import load_config

    return load_config(config_path(options), frozenset(protocols.load()))


def _state(options: Namespace) -> Path:
    """The state directory, without looking at the rest: a broken rule must not keep anybody from approving."""
    from proxy.lines import read_document

    path = config_path(options).absolute()
    data = read_document(path).data
    state = data.get("state", ".gatecast") if isinstance(data, dict) else ".gatecast"
    if not isinstance(state, str):
        raise CommandError(f"{path}: state should be the path of a directory; run gatecast config check")
    return path.parent / state


def _admin(options: Namespace) -> AdminClient:
    from proxy.admin.client import AdminClient

    return AdminClient(_state(options) / "admin.sock")


def _tapes(options: Namespace) -> Path:
    loaded = _load(options)
    directory: Path = loaded.state / loaded.config.recorder.directory
    return directory


def _tape(options: Namespace, name: str) -> Path:
    """A tape by its path; by its session, which takes the configuration to find."""
    from recorder.cli import find_tape

    if Path(name).is_file():
        return Path(name)
    try:
        return find_tape(_tapes(options), name)
    except FileNotFoundError as error:
        from proxy.vault.commands import read_tape  # its files may have left for the bucket

        fetched = read_tape(options, name)
        if fetched is not None:
            return fetched
        raise CommandError(f"{error}; gatecast sessions list shows them") from error
    except ValueError as error:
        raise CommandError(f"{error}; gatecast sessions list shows them") from error


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from proxy.sections import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as error:
        raise CommandError(f"{text}: {error}") from error


def _print(options: Namespace, data: object, text: str, code: int = 0) -> int:
    if options.json:
        print(json.dumps(data, indent=2, default=str))
    else:
        sys.stdout.write(text)
    return code


def _fault(fault: Any, path: object) -> str:  # a recorder.verify.Fault as a dictionary
    if not fault:
        return ""
    file = "" if fault["file"] == str(path) else f" of {fault['file']}"
    block = "" if fault["block"] is None else f", block {fault['block']}"
    from proxy.core.text import harmless

    return "\n          " + harmless(f"{fault['reason']} (at byte {fault['offset']}{block}{file})")
