"""How operators reach a running gate: a local socket (server.py, client.py); handlers.py behind, commands.py before."""
