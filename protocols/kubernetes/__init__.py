"""Kubernetes: the API server's HTTP, and the streams of exec, attach and port-forward. See docs/kubernetes.md, serve.py."""
