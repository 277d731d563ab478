"""The closed set of verbs of SSH commands, and the kind of each: what a rule's ``commands: {verbs: [...]}`` may name.

The kinds of exec and subsystem depend on what they start: see requests.py. file-* are the operations of SFTP and of the
old scp protocol alike, line is a line typed on a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.core.events import Kind

KIND_OF: Final[Mapping[str, Kind]] = {
    "CONNECT": "session",
    "exec": "execute",
    "shell": "execute",
    "subsystem": "execute",
    "line": "execute",
    "env": "session",
    "pty": "session",
    "signal": "session",
    "break": "session",
    "auth-agent": "admin",
    "x11": "admin",
    "tun": "admin",
    "direct-tcpip": "transfer",
    "direct-streamlocal": "transfer",
    "tcpip-forward": "transfer",
    "streamlocal-forward": "transfer",
    "forwarded-tcpip": "transfer",
    "forwarded-streamlocal": "transfer",
    "file-read": "read",
    "file-write": "write",
    "file-list": "read",
    "file-stat": "read",
    "file-readlink": "read",
    "file-remove": "delete",
    "file-rmdir": "delete",
    "file-rename": "write",
    "file-mkdir": "write",
    "file-setstat": "write",
    "file-link": "write",
    "file-copy": "write",
    "file-statvfs": "read",
    "UNKNOWN": "unknown",
}
VERBS: Final = frozenset(KIND_OF)
