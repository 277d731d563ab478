"""SSH: the connection protocol between two logins, each of the gateway's own. See docs and serve.py."""

from __future__ import annotations

from protocols import Protocol
from protocols.ssh.dial_settings import read_settings
from protocols.ssh.serve import serve
from protocols.ssh.verbs import VERBS

PROTOCOL = Protocol("ssh", VERBS, 22, serve, check=read_settings)
