"""The vault's outer half: buckets, the background task of the gateway, and what administrators ask for.

recorder/vault.py knows what is to be done with tapes; this package knows stores (bucket.py), the configuration
(settings.py), when to do what (task.py), who may ask (handlers.py) and what the command line prints (commands.py).
"""
