"""A stand-in Kubernetes API server for tests, and the real container runtime behind it. Started by tests/peers/kubernetes.py."""
