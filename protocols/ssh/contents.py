"""Which Content decodes a channel: what was asked for tells.

The SFTP server can be had as a subsystem and as a command (``sftp -s /usr/lib/openssh/sftp-server``); both are decoded.
Whatever is none of these is passed as it is: a command's own streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from protocols.ssh.scp import scp_content
from protocols.ssh.scp_argv import read_scp
from protocols.ssh.sftp import sftp_content
from proxy.core.gate import ShellReader
from proxy.terminal.content import Content, Settings
from proxy.terminal.terminal import terminal_content

Start = Literal["exec", "shell", "subsystem"]
ContentFactory = Callable[[Start, str, bool, Settings], Content | None]

Decoded = Literal["sftp", "scp", ""]

SFTP_SERVERS: Final = frozenset({"sftp-server", "internal-sftp"})


def decoded(start: Start, name: str, pty: bool, shell: ShellReader) -> Decoded:
    """Which transfer protocol a channel is decoded as; "" where it is none, or not read as one.

    Only a line that ends in the server itself, or begins with scp, can be one: what else runs before it speaks on the
    same stream. It is the fact "decoded" of exec and subsystem, so that rules and the channel go by the same answer.
    """
    if start == "subsystem":
        return "sftp" if name == "sftp" else ""
    if start == "shell" or pty:
        return ""
    if _runs_sftp(name, shell):
        return "sftp"
    return "scp" if read_scp(name, "") is not None else ""


def content_for(shell: ShellReader) -> ContentFactory:
    """Return what makes the Content of a channel: (exec | shell | subsystem, argv or name, has a pty, settings)."""

    def make(start: Start, name: str, pty: bool, settings: Settings) -> Content | None:
        match decoded(start, name, pty, shell):
            case "sftp":
                return sftp_content(settings)
            case "scp":
                return scp_content(name, settings)
            case _:
                return terminal_content(settings, shell) if pty and start != "subsystem" else None

    return make


def _runs_sftp(argv: str, shell: ShellReader) -> bool:
    """Whether the command is an SFTP server, and nothing else that could speak before it."""
    programs = shell(argv).programs
    return bool(programs) and programs[-1].rpartition("/")[2] in SFTP_SERVERS
