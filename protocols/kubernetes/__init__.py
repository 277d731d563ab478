"""Kubernetes: the API server's HTTP, and the streams of exec and port-forward. See docs/kubernetes.md and serve.py."""

from __future__ import annotations

from protocols import Protocol
from protocols.kubernetes.dial_settings import read_settings
from protocols.kubernetes.serve import serve
from protocols.kubernetes.verbs import VERBS

PROTOCOL = Protocol("kubernetes", VERBS, 443, serve, alpn=("http/1.1",), check=read_settings)
