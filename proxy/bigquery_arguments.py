"""The arguments of ``gatecast bigquery ...``; what the commands do is in bigquery_commands.py and bigquery_check.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse gives it no public name
    Add = Callable[[Commands, str, str, str, str, str], argparse.ArgumentParser]
    Group = Callable[[Commands, str, str, str], Commands]

CODES = "exit codes: 0 all work; 1 one does not, or misses a right; 2 wrong arguments"


def add_arguments(
    commands: Commands, add: Add, group: Group
) -> tuple[list[argparse.ArgumentParser], argparse.ArgumentParser]:
    """Add the commands; returns all of them, and the one that reads the configuration.

    add makes one of parent, name, function, help, example and module; group one that holds others.
    """
    below = group(
        commands,
        "bigquery",
        "connect clients of BigQuery, and check targets",
        "gatecast bigquery config dwh --universe gw.example --token-file ~/.gatecast-token",
    )
    config = add(
        below,
        "config",
        "config",
        "write what Python, bq, node and dbt need to reach a target through the gateway",
        "gatecast bigquery config dwh --universe gw.example --project acme --token-file ~/.gatecast-token --out dwh",
        "proxy.bigquery_commands",
    )
    _door(config)
    config.add_argument("--project", help="the project that is billed where a client names none")
    config.add_argument("--out", metavar="DIR", help="a new directory for the files (default: print them)")
    token = add(
        below,
        "token",
        "token",
        "exchange a user's token for an access token of one target, good for an hour, as bq cannot do by itself",
        "gatecast bigquery token dwh --universe gw.example --token-file ~/.gatecast-token --output dwh.token",
        "proxy.bigquery_commands",
    )
    _door(token)
    token.add_argument("--output", "-o", default="-", metavar="FILE", help="where to put it; replaced (default: print)")
    check = add(
        below,
        "check",
        "check",
        "ask BigQuery as the gateway does: token, project, dry run, datasets, rights, policy tags, Storage API",
        "gatecast bigquery check dwh",
        "proxy.bigquery_check",
    )
    check.epilog = f"{CODES}\n\n{check.epilog}"
    check.add_argument("target", nargs="*", metavar="TARGET", help="a target (default: all of BigQuery)")
    check.add_argument("--strict", action="store_true", help="rights that are too much are a failure, too")
    return [config, token, check], check


def _door(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="TARGET", help="the target's name in the gateway's configuration")
    door = command.add_mutually_exclusive_group(required=True)
    door.add_argument("--universe", metavar="DOMAIN", help="the gateway's universe: everything goes through it")
    door.add_argument("--endpoint", metavar="URL", help="https://host:port of the gateway: REST alone goes through it")
    command.add_argument("--token-file", required=True, metavar="FILE", help="the file that holds the user's token")
    command.add_argument("--ca", metavar="FILE", help="who certifies the gateway (default: public authorities)")
