"""What somebody would ask over SSH, made into the Command that the rules are asked about, without a connection.

By the code of the protocol itself, so that a case is decided as the real thing is: verbs, kinds, objects and facts.
What a target alone can tell is taken as it is written: a path is real and absolute already (facts["resolved"] False).
"""

from __future__ import annotations

from dataclasses import replace

from protocols.ssh import wire
from protocols.ssh.channels import USER, Channel
from protocols.ssh.lanes import Masked
from protocols.ssh.requests import Requests
from protocols.ssh.sftp_wire import FXF_CREAT, FXF_READ, FXF_TRUNC, FXF_WRITE, flag_words
from protocols.ssh.verbs import KIND_OF
from protocols.ssh.wire_bodies import DirectStreamlocal, Tcpip, Word
from proxy.core.errors import ConfigError, Refused, UserPeerError
from proxy.core.events import Command
from proxy.core.parties import Target
from proxy.policy.cases import Asked
from proxy.policy.shell import read_shell

_FLAGS = {"file-read": FXF_READ, "file-write": FXF_WRITE | FXF_CREAT | FXF_TRUNC}


def ssh_command(asked: Asked, target: Target) -> Command:
    """Return the command of what is asked. Raises ConfigError where the gate itself would refuse it, or it is none."""
    requests = Requests(target, target.database, read_shell, frozenset(), None)
    match asked.what:
        case "exec" | "shell" | "subsystem":
            return _started(requests, asked)
        case "line":
            command = _started(requests, replace(asked, what="exec", pty=True))
            facts = {"shell": command.facts["shell"], "opaque": command.facts["opaque"], "how": "both"}
            facts["login"] = target.database
            return replace(command, verb="line", kind=KIND_OF["line"], facts=facts, exact=False)
        case "forward" | "listen":
            return _forward(requests, asked)
        case verb if verb in KIND_OF and verb.startswith("file-"):
            return _file(verb, asked, target)
    raise ConfigError(f"{asked.what} is nothing that can be asked over SSH")


def _started(requests: Requests, asked: Asked) -> Command:
    channel = Channel(0, "session", USER, Masked())
    channel.pty = asked.pty
    body = b"" if asked.what == "shell" else Word(asked.text).encode()
    found = requests.start(channel, wire.ChannelRequest(0, asked.what, True, body), UserPeerError)
    if isinstance(found, Refused):
        raise ConfigError(f"the gateway refuses this by itself: {found.deny.reason}")
    return found.command


def _forward(requests: Requests, asked: Asked) -> Command:
    listens = asked.what == "listen"
    if asked.text.startswith("/"):
        if listens:
            request = wire.GlobalRequest("streamlocal-forward@openssh.com", True)
            return requests.listens("streamlocal-forward", request, asked.text, {"path": asked.text})
        body = DirectStreamlocal(asked.text).encode()
        opened = wire.ChannelOpen("direct-streamlocal@openssh.com", 0, 0, 0, body)
        return requests.opens(0, opened, True, UserPeerError)
    host, colon, port = asked.text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{asked.text}: write HOST:PORT, or the path of a socket")
    host = host.removeprefix("[").removesuffix("]")
    if listens:
        facts = {"host": host, "port": int(port)}
        return requests.listens("tcpip-forward", wire.GlobalRequest("tcpip-forward", True), asked.text, facts)
    opened = wire.ChannelOpen("direct-tcpip", 0, 0, 0, Tcpip(host, int(port), "127.0.0.1", 0).encode())
    return requests.opens(0, opened, True, UserPeerError)


def _file(verb: str, asked: Asked, target: Target) -> Command:
    paths = asked.paths
    facts: dict[str, object] = {"path": paths[0], "paths": paths, "via": "sftp", "resolved": False}
    facts["login"] = target.database
    if verb in _FLAGS:
        facts["flags"] = flag_words(_FLAGS[verb])
    return Command("ssh", verb, KIND_OF[verb], f"{verb} {' -> '.join(paths)}", objects=paths, facts=facts)
