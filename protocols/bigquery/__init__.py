"""BigQuery: its REST API and the Storage Read API. See docs/bigquery.md and serve.py."""

from __future__ import annotations

from protocols import Protocol
from protocols.bigquery.adoption import adopt
from protocols.bigquery.dial_settings import read_settings
from protocols.bigquery.methods import VERBS
from protocols.bigquery.serve import serve

PROTOCOL = Protocol("bigquery", VERBS, 443, serve, alpn=("h2", "http/1.1"), check=read_settings, background=adopt)
