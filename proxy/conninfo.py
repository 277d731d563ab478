"""A target's connection string (libpq), read into the keys of its section by libpq's own parser."""

from __future__ import annotations

from typing import Any, Final

_CONNINFO_KEYS: Final = {
    "host": "host", "hostaddr": "hostaddr", "port": "port", "dbname": "database", "sslmode": "sslmode",
    "sslrootcert": "sslrootcert", "sslcert": "sslcert", "sslkey": "sslkey", "sslnegotiation": "sslnegotiation",
    "channel_binding": "channel_binding", "require_auth": "require_auth", "connect_timeout": "connect_timeout",
}  # fmt: skip


def with_conninfo(data: dict[str, Any]) -> dict[str, Any]:
    """Return the section with what its conninfo says filled in; libpq's own parser reads it, through psycopg."""
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = {key: str(value) for key, value in conninfo_to_dict(data["conninfo"]).items() if value is not None}
    except Error as error:
        raise ValueError(f"conninfo: {str(error).strip()}") from None
    if "password" in given:
        raise ValueError("conninfo: no password here; credential: {password_env or password_file} names where it is")
    filled = dict(data)
    user = given.pop("user", None)
    if user is not None and isinstance(data.get("credential"), dict) and "user" not in data["credential"]:
        filled["credential"] = {**data["credential"], "user": user}
    for key, value in given.items():
        name = _CONNINFO_KEYS.get(key)
        if name is None:
            raise ValueError(f"conninfo: {key} means nothing here")
        if data.get(name) is not None:
            raise ValueError(f"{name} is given twice: in conninfo and beside it")
        filled[name] = int(value) if name in ("port", "connect_timeout") else value
    return filled
