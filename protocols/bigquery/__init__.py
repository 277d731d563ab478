"""BigQuery: its REST API and the Storage Read API. See docs/bigquery.md and serve.py."""

from __future__ import annotations

from protocols import Protocol
from protocols.bigquery.adoption import adopt
from protocols.bigquery.dial_settings import read_settings
from protocols.bigquery.methods import VERBS
from protocols.bigquery.serve import serve

# The first that a client offers as well is taken: those of REST may offer both, those of gRPC offer h2 alone.
PROTOCOL = Protocol("bigquery", VERBS, 443, serve, alpn=("http/1.1", "h2"), check=read_settings, background=adopt)
