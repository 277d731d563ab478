"""Which Content decodes a channel: what was asked for tells.

The SFTP server can be had as a subsystem and as a command (``sftp -s /usr/lib/openssh/sftp-server``); both are decoded.
Whatever is none of these is passed as it is: a command's own streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from protocols.ssh.content import Content, Settings
from protocols.ssh.scp import scp_content
from protocols.ssh.sftp import sftp_content
from protocols.ssh.terminal import terminal_content
from proxy.core.gate import ShellReader

Start = Literal["exec", "shell", "subsystem"]
ContentFactory = Callable[[Start, str, bool, Settings], Content | None]

SFTP_SERVERS: Final = frozenset({"sftp-server", "internal-sftp"})


def content_for(shell: ShellReader) -> ContentFactory:
    """Return what makes the Content of a channel: (exec | shell | subsystem, argv or name, has a pty, settings)."""

    def make(start: Start, name: str, pty: bool, settings: Settings) -> Content | None:
        if start == "subsystem":
            return sftp_content(settings) if name == "sftp" else None
        if start == "exec" and not pty:
            if _runs_sftp(name, shell):
                return sftp_content(settings)
            return scp_content(name, settings)
        return terminal_content(settings, shell) if pty else None

    return make


def _runs_sftp(argv: str, shell: ShellReader) -> bool:
    """Whether the command is an SFTP server, and nothing else that could speak before it."""
    programs = shell(argv).programs
    return bool(programs) and programs[-1].rpartition("/")[2] in SFTP_SERVERS
