"""FATAL errors and notices of the gate's own, and what the user's ``options`` parameter says.

Source: PostgreSQL 18 docs 54.8; src/backend/utils/init/postinit.c (process_startup_options, pg_split_opts).
"""

from __future__ import annotations

from collections.abc import Mapping

from protocols.postgres.startup import encode_error


def fatal(code: str, text: str, *, hint: str = "", more: Mapping[str, str] | None = None) -> bytes:
    """Encode a FATAL ErrorResponse; more gives further fields of a target's own error."""
    fields = {**(more or {}), "S": "FATAL", "V": "FATAL", "C": code, "M": text}
    if hint:
        fields["H"] = hint
    return encode_error({key: fields[key] for key in sorted(fields, key=_order)})


def notice(text: str, *, detail: str = "", hint: str = "") -> bytes:
    """Encode a NOTICE."""
    fields = {"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": text}
    if detail:
        fields["D"] = detail
    if hint:
        fields["H"] = hint
    return encode_error(fields, b"N")


def _order(key: str) -> int:
    return "SVCMDHPpqWsctdnFLR".find(key) % 32


def split_options(options: str) -> list[str]:
    """Split the ``options`` parameter as PostgreSQL does: white space separates, a backslash keeps the next one."""
    words: list[str] = []
    word = ""
    inside = escaped = False
    for char in options:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            inside = escaped = True
        elif char.isspace():
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word, inside = word + char, True
    if inside:
        words.append(word)
    return words


def without_own(options: str) -> str:
    """Return ``options`` without the settings named gatecast.*, which are for the gateway."""
    kept: list[str] = []
    words = iter(split_options(options))
    for word in words:
        both = [word, next(words, "")] if word == "-c" else [word]
        setting = both[-1].removeprefix("--").removeprefix("-c").lower()
        if not setting.startswith("gatecast."):
            kept += both
    return " ".join("".join("\\" + char if char.isspace() or char == "\\" else char for char in word) for word in kept)


def option_settings(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the settings given by ``-c name=value`` and ``--name=value`` in ``options``, names folded."""
    found: dict[str, str] = {}
    words = iter(split_options(parameters.get("options", "")))
    for word in words:
        if word == "-c":
            setting = next(words, "")
        elif word.startswith(("-c", "--")):
            setting = word[2:]
        else:
            continue
        name, _, value = setting.partition("=")
        found[name.replace("-", "_").lower()] = value
    return found


def options_setting(parameters: Mapping[str, str], name: str) -> str | None:
    """Return one setting from ``options``, None where it is not given."""
    return option_settings(parameters).get(name)
