"""The arguments of ``gatecast kubeconfig`` and ``gatecast kube``; see kube_commands.py and kube_check.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse gives it no public name
    Add = Callable[[Commands, str, str, str, str, str], argparse.ArgumentParser]
    Group = Callable[[Commands, str, str, str], Commands]


def add_arguments(
    commands: Commands, add: Add, group: Group
) -> tuple[list[argparse.ArgumentParser], argparse.ArgumentParser]:
    """Add the commands; returns all of them, and the one that reads the configuration.

    add makes one of parent, name, function, help, example and module; group one that holds others.
    """
    made = add(
        commands,
        "kubeconfig",
        "kubeconfig",
        "write the file with which kubectl reaches targets through the gateway",
        "gatecast kubeconfig --server https://gate:8443 --target prod --token-file ~/.gatecast-token --ca ca.crt",
        "proxy.kube_commands",
    )
    made.add_argument("--server", required=True, metavar="URL", help="the gateway, as kubectl reaches it")
    made.add_argument("--target", required=True, action="append", metavar="NAME", help="a target; may be repeated")
    made.add_argument("--token-file", required=True, metavar="FILE", help="the file that holds the user's token")
    made.add_argument("--ca", metavar="FILE", help="who certifies the gateway (default: the system's authorities)")
    made.add_argument("--namespace", help="the namespace where kubectl names none")
    made.add_argument("--output", "-o", default="-", metavar="FILE", help="where to put it (default: print it)")
    below = group(commands, "kube", "check targets of Kubernetes", "gatecast kube check prod")
    check = add(
        below,
        "check",
        "check",
        "connect to API servers as the gateway does, and say which rights its account misses, and has too many",
        "gatecast kube check prod --namespace payments",
        "proxy.kube_check",
    )
    check.epilog = f"exit codes: 0 all work; 1 one does not, or misses a right; 2 wrong arguments\n\n{check.epilog}"
    check.add_argument("target", nargs="*", metavar="TARGET", help="a target (default: all of Kubernetes)")
    check.add_argument("--namespace", "-n", help="ask about the rights in this one (default: in all of them at once)")
    check.add_argument("--strict", action="store_true", help="rights that are too much are a failure, too")
    return [made, check], check
