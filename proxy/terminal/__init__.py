"""Lines typed on a terminal, read before they run: what SSH's shells and Kubernetes' interactive execs share.

content.py is the interface between a stream and what decodes it; terminal.py reads shells. Everything here is
sans-IO. How it works and what it cannot promise: docs/ssh.md, "Typed lines".
"""
