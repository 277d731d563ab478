"""Who is calling: gateway tokens (tokens.py), OIDC JWTs (oidc.py, keys.py), local users (local.py): service.py."""
