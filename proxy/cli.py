"""The command line: gatecast serve, demo, config, token, ssh, approvals, policy, sessions, replay, export, verify, ...

Only arguments are parsed here; what a command does is in proxy/commands.py, imported when it runs, so that --help
is quick and replay needs no database driver. Every error is one line on stderr that says what to do next; a stack
only with GATECAST_DEBUG=1.

Exit codes: 0 done; 1 it failed, or the answer is no; 2 the arguments are wrong; 130 interrupted. verify: 0 genuine
and complete, 1 altered, 2 genuine but incomplete, 3 cannot be told.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from proxy import __version__
from recorder import export_options, verify_arguments

STATES = ("pending", "approved", "denied", "expired", "withdrawn", "all")
_ENVIRONMENT = """\
environment:
  GATECAST_CONFIG   the configuration file, in place of ./gatecast.yaml
  GATECAST_TOKEN    the token that proves who approves (approvals approve|deny)
  GATECAST_DEBUG    1: errors come with their stack
exit codes: 0 done; 1 failed, or the answer is no; 2 wrong arguments; 130 interrupted"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gatecast: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = _Parser(
        prog="gatecast",
        description="A wire-level access gateway that decides on, masks and records every command.",
        epilog=f"{_ENVIRONMENT}\n\nExample:\n  gatecast serve -c gatecast.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"gatecast {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    _serve(commands)
    _config(commands)
    _tokens(commands)
    _ssh(commands)
    _kubernetes(commands)
    _bigquery(commands)
    _approvals(commands)
    _policy(commands)
    _sessions(commands)
    _tapes(commands)
    _keys(commands)
    _vault(commands)
    version = _command(commands, "version", "version", "print the version", "gatecast version --json")
    _json(version)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options, strange = parser().parse_known_args(arguments)
    if strange:  # argparse itself would point to the help of all commands
        print(f"gatecast: unrecognized arguments: {' '.join(strange)}; see {options.prog} --help", file=sys.stderr)
        raise SystemExit(2)
    module, _, name = options.function.rpartition(":")
    try:
        code: int = getattr(importlib.import_module(module), name)(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (head): nothing is wrong, and the interpreter's own flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last net: one line in place of a stack
        # verify's 1 is a verdict; that nothing could be judged is its 3.
        return 3 if _failed(error) and options.function == "proxy.commands:verify" else 1
    return code


def _failed(error: Exception) -> int:
    if os.environ.get("GATECAST_DEBUG", "") not in ("", "0"):
        raise error
    from proxy.core.errors import GatecastError

    lines = str(error).splitlines() or [type(error).__name__]
    expected = isinstance(error, GatecastError) or type(error).__module__.partition(".")[0] == "recorder"
    if isinstance(error, OSError):
        lines = [f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)]
    elif not expected:
        lines = [f"internal error: {type(error).__name__}; run it again with GATECAST_DEBUG=1 to see where"]
    from proxy.core.text import harmless

    for line in lines:  # which may quote what a tape, a file's name or a peer says
        print(f"gatecast: {harmless(line)}", file=sys.stderr)
    return 1


# -- the commands' arguments ------------------------------------------------------------------------------


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # argparse gives it no public name


def _command(
    commands: _Commands, name: str, function: str, text: str, example: str, module: str = "proxy.commands"
) -> _Parser:
    made = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(function=f"{module}:{function}", prog=made.prog)
    return made


def _group(commands: _Commands, name: str, text: str, example: str) -> _Commands:
    made = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)


def _file(command: argparse.ArgumentParser) -> None:
    command.add_argument("-c", "--config", metavar="FILE", help="the configuration file (default: ./gatecast.yaml)")


def _identity(command: argparse.ArgumentParser) -> None:
    text = "the private key of an auditor (gatecast keys generate), for encrypted tapes; may be repeated"
    command.add_argument("--identity", action="append", metavar="FILE", help=text)


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _serve(commands: _Commands) -> None:
    serve = _command(
        commands,
        "serve",
        "serve",
        "start the gateway; without a configuration, a commented example in .gatecast/",
        "gatecast serve -c /etc/gatecast/gatecast.yaml",
    )
    _file(serve)
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.add_argument("--log-json", action="store_true", help="log JSON also on a terminal")
    demo = _command(
        commands,
        "demo",
        "main",
        "show real psql and ssh at work through the gateway",
        "gatecast demo --keep",
        module="proxy.demo",
    )
    demo.add_argument("--keep", action="store_true", help="leave everything running and print what to try")
    _json(demo)
    reload = _command(
        commands, "reload", "reload", "read the configuration again in a running gateway", "gatecast reload"
    )
    status = _command(commands, "status", "status", "show how a running gateway is", "gatecast status --json")
    for command in (reload, status):
        _file(command)
        _json(command)


def _config(commands: _Commands) -> None:
    group = _group(commands, "config", "check and describe configuration files", "gatecast config check")
    check = _command(
        group,
        "check",
        "config_check",
        "read a configuration and say what it would start, or all that is wrong with it",
        "gatecast config check -c gatecast.yaml",
    )
    check.add_argument("--connect", action="store_true", help="try the vault's bucket, too")
    _file(check)
    _json(check)
    _command(
        group,
        "schema",
        "config_schema",
        "print the JSON schema of gatecast.yaml",
        "gatecast config schema > gatecast.schema.json",
    )
    _command(
        group, "example", "config_example", "print a commented configuration", "gatecast config example > gatecast.yaml"
    )


def _tokens(commands: _Commands) -> None:
    group = _group(commands, "token", "issue, revoke and list gateway tokens", "gatecast token list")
    issue = _command(
        group,
        "issue",
        "token_issue",
        "make a token; it is shown this once",
        "gatecast token issue ana@example.com --group dba --agent claude --for 12h",
    )
    issue.add_argument("subject", help="whom the token stands for")
    issue.add_argument("--group", action="append", default=[], metavar="NAME", help="a group; may be repeated")
    issue.add_argument("--agent", action="append", default=[], metavar="NAME", help="an agent, the nearest last")
    issue.add_argument("--for", dest="life", metavar="TIME", help="how long it holds: 12h, 30d (default: 30d)")
    issue.add_argument("--note", default="", help="what it is for")
    revoke = _command(
        group,
        "revoke",
        "token_revoke",
        "end a token, and its open sessions within two seconds",
        "gatecast token revoke k3xq82mzpa",
    )
    revoke.add_argument("token", help="its id, or the whole token")
    listing = _command(group, "list", "token_list", "list tokens, newest first", "gatecast token list --json")
    listing.add_argument("--subject", help="only those of this subject")
    for command in (issue, revoke, listing):
        _file(command)
        _json(command)


def _ssh(commands: _Commands) -> None:
    from proxy.ssh_arguments import add_arguments

    def add(below: _Commands, name: str, function: str, text: str, example: str) -> argparse.ArgumentParser:
        return _command(below, name, function, text, example, module="proxy.ssh_commands")

    for command in add_arguments(commands, add, _group):
        _file(command)
        _json(command)


def _kubernetes(commands: _Commands) -> None:
    from proxy.kube_arguments import add_arguments

    made, configured = add_arguments(commands, _command, _group)
    _file(configured)
    for command in made:
        _json(command)


def _bigquery(commands: _Commands) -> None:
    from proxy.bigquery_arguments import add_arguments

    made, configured = add_arguments(commands, _command, _group)
    _file(configured)
    for command in made:
        _json(command)


def _approvals(commands: _Commands) -> None:
    group = _group(commands, "approvals", "see and decide held commands", "gatecast approvals list")
    listing = _command(
        group, "list", "approvals_list", "list what waits for a human", "gatecast approvals list --state all"
    )
    listing.add_argument("--state", choices=STATES, default="pending")
    listing.add_argument("--subject", help="only what this subject asks")
    listing.add_argument("--target", help="only what goes to this target")
    show = _command(group, "show", "approvals_show", "show one with its whole text", "gatecast approvals show ap_x")
    approve = _command(group, "approve", "approvals_approve", "let it pass", "gatecast approvals approve ap_x")
    deny = _command(
        group, "deny", "approvals_deny", "refuse it", "gatecast approvals deny ap_x --reason 'use the replica'"
    )
    for command in (show, approve, deny):
        command.add_argument("id", help="the approval's id (ap_...)")
    for command in (approve, deny):
        command.add_argument("--reason", help="told to who asked, and taped")
    for command in (listing, show, approve, deny):
        _file(command)
        _json(command)


def _policy(commands: _Commands) -> None:
    group = _group(commands, "policy", "explain and test rules", "gatecast policy test cases.yaml")
    explain = _command(
        group,
        "explain",
        "policy_explain",
        "say what the rules make of a statement, rule by rule",
        "gatecast policy explain shop 'DELETE FROM orders' --subject ana@example.com --group dba",
    )
    explain.add_argument("target", help="a configured target, or target/database, or target/login of SSH")
    explain.add_argument(
        "text", help="the statement, command line, path or host:port; of Kubernetes: VERB PLACE, METHOD /path"
    )
    explain.add_argument(
        "--as", dest="way", metavar="WHAT", help="of SSH: exec (default), line, file-read, forward, ..."
    )
    explain.add_argument("--subject", required=True, help="who asks")
    explain.add_argument("--group", action="append", default=[], metavar="NAME", help="a group of the subject")
    explain.add_argument("--agent", action="append", default=[], metavar="NAME", help="an agent, the nearest last")
    explain.add_argument("--at", metavar="TIME", help="as of this time: 2026-01-05T09:00:00Z (default: now)")
    test = _command(
        group, "test", "policy_test", "check the rules against a file of cases", "gatecast policy test cases.yaml"
    )
    test.add_argument("cases", metavar="FILE", help="the cases")
    for command in (explain, test):
        _file(command)
        _json(command)


def _sessions(commands: _Commands) -> None:
    group = _group(commands, "sessions", "find, show and end sessions", "gatecast sessions list")
    listing, search, reindex = _recorded(group)
    live = _command(group, "live", "sessions_live", "list the sessions that are open now", "gatecast sessions live")
    show = _command(group, "show", "sessions_show", "show a session and its commands", "gatecast sessions show 01KA")
    kill = _command(group, "kill", "sessions_kill", "end an open session", "gatecast sessions kill 01KA...")
    for command in (show, kill):
        command.add_argument("session", help="its id" + ("" if command is kill else ", or how it begins, or a file"))
    _identity(show)
    erase = _command(
        group,
        "erase",
        "sessions_erase",
        "destroy the keys of an encrypted session: asked by one, confirmed by another",
        "gatecast sessions erase 01KA... --reason 'GDPR 17, case 12'",
        module="proxy.vault.commands",
    )
    erase.add_argument("session", nargs="?", help="its id, or how it begins")
    erase.add_argument("--reason", help="why; it goes into the node log")
    erase.add_argument("--confirm", metavar="TOKEN", help="do what somebody else has asked for")
    for command in (listing, search, reindex, live, show, kill, erase):
        _file(command)
        _json(command)


def _recorded(group: _Commands) -> tuple[_Parser, _Parser, _Parser]:
    from recorder.index_arguments import add_filters, add_reindex_arguments

    listing = _command(
        group, "list", "sessions_list", "list recorded sessions, newest first", "gatecast sessions list --target shop"
    )
    search = _command(
        group,
        "search",
        "sessions_search",
        'find commands in all sessions, newest first: words, "phrases", beginnings*',
        "gatecast sessions search --user ana@example.com --table orders --since 3d 'delete where'",
    )
    search.add_argument("text", nargs="*", help="what the command's text has in it")
    search.add_argument("--session", default="", metavar="ID", help="in this session, or those that begin so")
    for command in (listing, search):
        add_filters(command)
    reindex = _command(
        group,
        "reindex",
        "sessions_reindex",
        "build the index of sessions anew from the tapes; may be stopped and started at any time",
        "gatecast sessions reindex",
    )
    add_reindex_arguments(reindex)
    return listing, search, reindex


def _vault(commands: _Commands) -> None:
    module = "proxy.vault.commands"
    group = _group(commands, "vault", "see and keep what has left for the bucket", "gatecast vault status")
    made = []

    def add(name: str, text: str, example: str, below: _Commands = group, prefix: str = "vault_") -> _Parser:
        made.append(_command(below, name, prefix + name, text, f"gatecast {example}", module))
        return made[-1]

    add("status", "show what waits to be uploaded, and what is wrong", "vault status --json")
    fetch = add("fetch", "bring a session back", "vault fetch 01KA --to /tmp/case-7")
    fetch.add_argument("session", help="its id, or how it begins")
    fetch.add_argument("--to", metavar="DIR", help="where to put its files (default: a folder of its name here)")
    expire = add(
        "expire", "delete sessions whose term is over: asked by one, confirmed by another", "vault expire --dry-run"
    )
    how = expire.add_mutually_exclusive_group(required=True)
    how.add_argument("--dry-run", action="store_true", help="say what would go, and ask for it")
    how.add_argument("--confirm", metavar="TOKEN", help="let go what somebody else's dry run has listed")
    add("retry", "try conflicts again, after a look at them", "vault retry")
    history = add("history", "show holds, expiries, erasures and conflicts", "vault history")
    history.add_argument("--limit", type=int, default=100)
    hold = _group(group, "hold", "legal holds, which beat every term", "gatecast vault hold list")
    new = add("add", "keep sessions until it is released", "vault hold add --matter C7", hold, "vault_hold_")
    new.add_argument("--matter", required=True, help="what it is for")
    for name in ("session", "target", "subject"):
        new.add_argument(f"--{name}", help=f"only of this {name}")
    for name in ("since", "until"):
        new.add_argument(f"--{name}", metavar="TIME", help="2026-11-21, or 2026-11-21T10:00:00Z")
    listing = add("list", "list the holds", "vault hold list --all", hold, "vault_hold_")
    listing.add_argument("--all", action="store_true", help="those that were released, too")
    release = add("release", "end a hold", "vault hold release hold_1f --reason closed", hold, "vault_hold_")
    release.add_argument("hold", help="its id (hold_...)")
    release.add_argument("--reason", required=True)
    for command in made:
        _file(command)
        _json(command)


def _tapes(commands: _Commands) -> None:
    from proxy.reexecution.arguments import add_arguments as add_reexecution_arguments
    from recorder.player_arguments import add_arguments as add_replay_arguments

    replay = _command(
        commands,
        "replay",
        "replay",
        "play a session in the terminal: space pauses, . steps, [ ] { } and arrows jump, ? lists all keys, q quits",
        "gatecast replay 01KA --speed 4 --idle-limit 1s",
    )
    replay.add_argument("tape", help="a file, a session's id, or how it begins")
    add_replay_arguments(replay)
    add_reexecution_arguments(replay)
    export = _command(
        commands,
        "export",
        "export",
        "write a session in another format",
        "gatecast export 01KA --format html -o session.html",
    )
    export.add_argument("tape", help="a file, a session's id, or how it begins")
    export_options.add_arguments(export)
    verify = _command(
        commands,
        "verify",
        "verify",
        "tell whether tapes are genuine and complete (exit code 0), altered (1), incomplete (2), or cannot tell (3)",
        "gatecast verify tapes/ --key seal.key.pub --anchor /mnt/other-host/anchors --witness witnesses.vkey",
    )
    verify.add_argument("tape", nargs="?", help="a file, a directory, a session's id (default: all tapes)")
    verify.add_argument("--key", metavar="FILE", help="the public key (default: this gateway's own)")
    verify_arguments.add_arguments(verify)
    _json(verify)
    for command in (replay, export, verify):
        _file(command)
        _identity(command)


def _keys(commands: _Commands) -> None:
    group = _group(
        commands,
        "keys",
        "make and show the keys that tapes are encrypted to; rotate the one that seals",
        "gatecast keys generate ana.key",
    )
    generate = _command(
        group,
        "generate",
        "keys_generate",
        "make an auditor's pair of keys: FILE, which reads tapes, and FILE.pub, for the gateway's configuration",
        "gatecast keys generate ana.key",
        module="proxy.keys",
    )
    generate.add_argument("file", metavar="FILE", help="where to put the private key; nothing is overwritten")
    show = _command(
        group,
        "show",
        "keys_show",
        "say to whom a tape is encrypted; it takes no key",
        "gatecast keys show tapes/2026/11/21/01KA....keys",
        module="proxy.keys",
    )
    show.add_argument("file", metavar="FILE", help="a tape's file, or its .keys file")
    rotate = _command(
        group,
        "rotate-seal",
        "keys_rotate_seal",
        "retire the key that seals tapes and the node's log, and take a new one; the gateway must not run",
        "gatecast keys rotate-seal -c /etc/gatecast/gatecast.yaml",
        module="proxy.rotation",
    )
    _file(rotate)
    for command in (generate, show, rotate):
        _json(command)
