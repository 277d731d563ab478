"""Words for systemd: started, reloading, stopping. Nothing happens where systemd did not start us.

Specification: sd_notify(3), "Standalone Implementations".
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*words: str) -> None:
    """Tell systemd (``READY=1``, ``STOPPING=1``, ...). Never raises."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + place[1:] if place[0] == "@" else place)
        sock.send("\n".join(words).encode())


def notify_reloading() -> None:
    """Tell systemd (Type=notify-reload) that a reload begins; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
