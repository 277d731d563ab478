"""Options of COPY and EXPLAIN: one shape for the old spelling and the new.

``COPY t TO STDOUT CSV HEADER`` and ``COPY t TO STDOUT (FORMAT csv, HEADER)`` are the same list to the parser. What a
format leaves open has PostgreSQL's default for that format.

Source: PostgreSQL 18 docs COPY, src/backend/commands/copy.c ProcessCopyOptions, define.c defGetBoolean.
"""

from __future__ import annotations

from typing import Final, Literal

from proxy.core.statement import Copy
from proxy.policy.sql_scope import Node
from proxy.policy.sql_where import constant_text

_FALSE_WORDS: Final = frozenset(("false", "off", "0"))


def flag(arg: Node | None) -> bool:
    """Whether an option is on; anything that is not certainly off is on."""
    if arg is None:
        return True
    text = option_text(arg)
    return text is None or text.lower() not in _FALSE_WORDS


def option_text(arg: Node) -> str | None:
    """An option's value as text."""
    ((tag, body),) = arg.items()
    match tag:
        case "String":
            return str(body.get("sval", ""))
        case "Integer":
            return str(body.get("ival", 0))
        case "Boolean":
            return "true" if body.get("boolval") else "false"
        case _:
            return constant_text(arg)


_FORMATS: Final[dict[str, Literal["text", "csv", "binary"]]] = {"text": "text", "csv": "csv", "binary": "binary"}
_CSV: Final = {"delimiter": ",", "null": "", "quote": '"'}
_TEXT: Final = {"delimiter": "\t", "null": "\\N", "quote": ""}


def copy_options(
    body: Node,
    relation: str | None,
    columns: tuple[str, ...],
    endpoint: Literal["client", "file", "program"],
    into: bool,
    more: dict[str, object],
) -> Copy:
    """Read COPY's options, old spelling and new; the parser gives both the same shape."""
    options: dict[str, Node | None] = {}
    for each in body.get("options", ()):
        options[str(each["DefElem"]["defname"]).lower()] = each["DefElem"].get("arg")

    def text(name: str, default: str) -> str:
        arg = options.get(name)
        found = option_text(arg) if arg is not None else None
        return default if found is None else found

    format_: Literal["text", "csv", "binary", "unknown"] = _FORMATS.get(text("format", "text").lower(), "unknown")
    defaults = _CSV if format_ == "csv" else _TEXT
    quote = text("quote", defaults["quote"])
    if "header" in options and text("header", "true").lower() == "match":
        more["header_match"] = True
    for name in ("force_quote", "force_not_null", "force_null"):
        arg = options.get(name)
        if arg is not None:
            listed = arg.get("List", {}).get("items", ())
            more[name] = tuple(each["String"]["sval"] for each in listed) if "A_Star" not in arg else "*"
    if "default" in options:
        more["default"] = text("default", "")
    return Copy(
        direction="in" if into else "out",
        relation=relation,
        columns=columns,
        endpoint=endpoint,
        format=format_,
        delimiter=text("delimiter", defaults["delimiter"]),
        null=text("null", defaults["null"]),
        header="header" in options and flag(options["header"]),
        quote=quote,
        escape=text("escape", quote),
        force_quote="force_quote" in options,
        encoding=option_text(options["encoding"] or {"String": {}}) if "encoding" in options else None,
    )
