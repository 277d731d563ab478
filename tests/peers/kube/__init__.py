"""A stand-in Kubernetes API server for tests, and the container runtime behind it (see tests/peers/kubernetes.py)."""
