"""The arguments of ``gatecast ssh ...``; what the commands do is in proxy/ssh_commands.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse gives it no public name
    Add = Callable[[Commands, str, str, str, str], argparse.ArgumentParser]
    Group = Callable[[Commands, str, str, str], Commands]


def add_arguments(commands: Commands, add: Add, group: Group) -> list[argparse.ArgumentParser]:
    """Add the commands. add makes one of parent, name, function, help and example; group one that holds others."""
    ssh = group(commands, "ssh", "SSH keys, certificates and authorities", "gatecast ssh ca show")
    certificate = add(
        ssh,
        "certificate",
        "certificate",
        "sign a short-lived certificate for somebody's public key",
        "gatecast ssh certificate id.pub --subject ana@example.com --group dba --login deploy --out id-cert.pub",
    )
    _person(certificate)
    certificate.add_argument(
        "--login", action="append", required=True, metavar="NAME", help="a login at targets, * for all; may be repeated"
    )
    certificate.add_argument("--valid", metavar="TIME", help="how long it holds: 15m, 2h (default: 15m)")
    certificate.add_argument(
        "--source-address", action="append", default=[], metavar="NET", help="where it may be used from: 10.0.0.0/8"
    )
    certificate.add_argument("--force-command", metavar="COMMAND", help="the only command that it may run")
    certificate.add_argument(
        "--permit",
        action="append",
        metavar="NAME",
        help="what it may ask for, as OpenSSH names it (default: permit-pty, permit-port-forwarding,"
        " permit-agent-forwarding); the rules decide on each all the same",
    )
    certificate.add_argument("--key-id", metavar="TEXT", help="what logs and tapes call it (default: whom it is for)")
    certificate.add_argument("--out", metavar="FILE", help="where to put it (default: print it)")
    listing = add(
        ssh, "certificates", "certificates", "list the certificates that were issued", "gatecast ssh certificates"
    )
    revoke = add(
        ssh,
        "revoke",
        "revoke",
        "end a certificate, and its open sessions within two seconds",
        "gatecast ssh revoke 5120983746551029384 --reason 'laptop lost'",
    )
    revoke.add_argument("serial", help="its serial")
    revoke.add_argument("--reason", default="", help="why; it is kept")
    revoke.add_argument("--ca", metavar="FILE", help="the public key of the authority that signed it (default: ours)")
    keys = _keys(ssh, add, group)
    authorities = group(ssh, "ca", "the gateway's own authorities", "gatecast ssh ca show --host")
    show = add(
        authorities,
        "show",
        "ca_show",
        "print the authorities' public keys as known_hosts and sshd take them",
        "gatecast ssh ca show --host --hosts 'gate.example.com,*.prod' >> ~/.ssh/known_hosts",
    )
    show.add_argument("--user", action="store_true", help="only the one that certifies users")
    show.add_argument("--host", action="store_true", help="only those that certify hosts")
    show.add_argument(
        "--hosts", metavar="PATTERNS", help="what hosts users trust it for (default: gateway and targets)"
    )
    listing.add_argument("--subject", help="only those of this subject")
    return [certificate, listing, revoke, *keys, show]


def _keys(ssh: Commands, add: Add, group: Group) -> list[argparse.ArgumentParser]:
    keys = group(ssh, "key", "register, list and revoke public keys", "gatecast ssh key list")
    new = add(
        keys,
        "add",
        "key_add",
        "let a public key log in as somebody",
        "gatecast ssh key add id_ed25519.pub --subject ana@example.com --group dba --for 90d",
    )
    _person(new)
    new.add_argument(
        "--login", action="append", metavar="NAME", help="a login at targets; default: all; may be repeated"
    )
    new.add_argument("--for", dest="life", metavar="TIME", help="how long it counts: 12h, 30d (default: 90d)")
    new.add_argument("--note", default="", help="what it is for (default: the key's comment)")
    listing = add(keys, "list", "key_list", "list keys, newest first", "gatecast ssh key list --json")
    listing.add_argument("--subject", help="only those of this subject")
    show = add(keys, "show", "key_show", "show one key", "gatecast ssh key show k3xq82mzpa")
    revoke = add(
        keys,
        "revoke",
        "key_revoke",
        "end a key, and its open sessions within two seconds; it is not taken again",
        "gatecast ssh key revoke k3xq82mzpa",
    )
    for command in (show, revoke):
        command.add_argument("key", help="its id, or the .pub file")
    return [new, listing, show, revoke]


def _person(command: argparse.ArgumentParser) -> None:
    command.add_argument("key", metavar="KEY.pub", help="the public key; - reads it from standard input")
    command.add_argument("--subject", required=True, help="whom it stands for")
    command.add_argument("--group", action="append", default=[], metavar="NAME", help="a group; may be repeated")
    command.add_argument("--agent", action="append", default=[], metavar="NAME", help="an agent, the nearest last")
