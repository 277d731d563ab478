"""PostgreSQL: the frontend/backend protocol 3.0 and 3.2 towards users, 3.0 towards targets."""

from __future__ import annotations

from protocols import Protocol
from protocols.postgres.dial_settings import read_settings
from protocols.postgres.login import ALPN
from protocols.postgres.serve import serve
from protocols.postgres.verbs import VERBS

PROTOCOL = Protocol("postgres", VERBS, 5432, serve, alpn=(ALPN,), check=read_settings)
