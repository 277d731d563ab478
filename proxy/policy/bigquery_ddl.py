"""CREATE, ALTER, DROP, GRANT and their like in BigQuery: read by their own words, as the parser knows few of them.

The kind of object and its name come first, whatever follows; a query behind AS is read as one. A statement of a shape
that is not known here is opaque, with what could be told of it.

Left out: options, but for those that expire data, give rights, or name places outside. Source: GoogleSQL for BigQuery,
"Data definition language", "Data control language"; bigquery note 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from proxy.core.warehouse import TEMPORARY, Outputs, TableName
from proxy.policy.bigquery_draft import Draft
from proxy.policy.bigquery_lex import Token, Unreadable, name_value, string_value

# What may be made, from the longest: the words, and whether its name is a dataset's ("schema") or has none ("admin").
_OBJECTS: Final[tuple[tuple[str, ...], ...]] = (
    ("MATERIALIZED", "VIEW"), ("EXTERNAL", "TABLE"), ("EXTERNAL", "SCHEMA"), ("SNAPSHOT", "TABLE"),
    ("TABLE", "FUNCTION"), ("AGGREGATE", "FUNCTION"), ("SEARCH", "INDEX"), ("VECTOR", "INDEX"),
    ("ROW", "ACCESS", "POLICY"), ("PROPERTY", "GRAPH"), ("TABLE",), ("VIEW",), ("SCHEMA",), ("DATABASE",),
    ("FUNCTION",), ("PROCEDURE",), ("MODEL",), ("CAPACITY",), ("RESERVATION",), ("ASSIGNMENT",), ("CONNECTION",),
    ("DATA_POLICY",), ("BI_CAPACITY",), ("PROJECT",), ("ORGANIZATION",), ("CONSTANT",),
)  # fmt: skip
_ADMIN: Final = frozenset({"CAPACITY", "RESERVATION", "ASSIGNMENT", "CONNECTION", "DATA_POLICY", "BI_CAPACITY",
                           "PROJECT", "ORGANIZATION", "ROW ACCESS POLICY"})  # fmt: skip
_SCHEMAS: Final = frozenset({"SCHEMA", "DATABASE", "EXTERNAL SCHEMA"})
_INDEXES: Final = frozenset({"SEARCH INDEX", "VECTOR INDEX"})
_QUERY_STARTS: Final = frozenset({"SELECT", "WITH", "FROM", "("})
# Options that give rights or change who sees what; that make data expire; that name code or data elsewhere.
_RIGHTS: Final = frozenset({"POLICY_TAGS", "DATA_POLICIES", "ACCESS"})
_PLACES: Final = frozenset({"URI", "URIS", "LIBRARY", "ENDPOINT", "REMOTE_SERVICE_TYPE", "MODEL_PATH", "STORAGE_URI",
                            "LINKED_DATASET", "EXTERNAL_SOURCE", "CONNECTION", "LOCATION_URI", "JAR_URIS",
                            "PY_FILE_URIS", "FILE_URIS", "MAIN_FILE_URI", "ARCHIVE_URIS", "VERTEX_AI_MODEL_ID",
                            "MODEL_REGISTRY"})  # fmt: skip


def create(draft: Draft) -> None:
    """CREATE of any object."""
    draft.take("CREATE")
    replace = draft.take("OR", "REPLACE")
    temporary = draft.take("TEMP") or draft.take("TEMPORARY")
    kind = _object_kind(draft)
    draft.word = f"CREATE {kind}"
    draft.take("IF", "NOT", "EXISTS")
    if kind in _ADMIN:
        _policy_or_admin(draft, kind)
        return
    if kind in _INDEXES:
        name = _on_table(draft)
    elif kind in _SCHEMAS:
        name = draft.script.names.dataset_of(draft.path())
    elif "FUNCTION" in kind or kind in ("PROCEDURE", "MODEL", "CONSTANT"):
        name = _routine(draft, kind, temporary)
    else:
        name = _table(draft, kind, temporary)
    if replace:
        draft.add("destroy", name, type_=kind.lower(), where="none")
    draft.add("define", name, type_=kind.lower())
    _bodies(draft, kind, name)
    _options(draft)
    if temporary and kind == "TABLE":
        draft.script.names.made(name.table)


def _object_kind(draft: Draft) -> str:
    for words in _OBJECTS:
        if draft.take(*words):
            return " ".join(words)
    raise Unreadable(f"{draft.word} {draft.peek()} is not known here")


def _table(draft: Draft, kind: str, temporary: bool) -> TableName:
    parts = draft.path()
    if temporary:
        if ".".join(parts).removeprefix("_SESSION.") != parts[-1] or "." in parts[-1]:
            raise Unreadable("a temporary table has a dataset in its name")
        name = TableName(draft.script.names.project, "_SESSION", parts[-1])
        draft.writes[name] = None
    else:
        name = draft.target(parts)
    if kind == "EXTERNAL TABLE":
        draft.door("EXTERNAL TABLE")
    return name


def _routine(draft: Draft, kind: str, temporary: bool) -> TableName:
    parts = draft.path()
    if kind in ("FUNCTION", "AGGREGATE FUNCTION", "TABLE FUNCTION"):
        draft.script.functions.add(parts[-1].lower())
    if temporary:
        return TableName(draft.script.names.project, "_SESSION", parts[-1])
    return draft.script.names.table(parts)


def _on_table(draft: Draft) -> TableName:
    """``index ON table``: what is made belongs to the table."""
    draft.path()
    if not draft.take("ON"):
        raise Unreadable(f"{draft.word} has no ON")
    return draft.target(draft.path())


def _policy_or_admin(draft: Draft, kind: str) -> None:
    at = draft.find("ON", start=draft.at)
    if kind == "ROW ACCESS POLICY":
        if at is None:
            raise Unreadable(f"{draft.word} has no ON")
        draft.at = at + 1
        draft.add("grant", draft.script.names.table(draft.path()), type_="row access policy")
        using = draft.find("USING", start=draft.at)
        if using is not None:
            draft.expression(draft.tokens[using + 1 :])
        return
    objects = ()
    if draft.at < len(draft.tokens) and draft.tokens[draft.at].kind in ("word", "quoted") and kind != "PROJECT":
        draft.path()
    draft.add("grant", *objects, type_=kind.lower())


def _bodies(draft: Draft, kind: str, name: TableName) -> None:
    """What an object is made of: a query or expression behind AS, another table behind CLONE, COPY or LIKE."""
    as_at = draft.find("AS", start=draft.at)
    head = as_at if as_at is not None else len(draft.tokens)
    for word in ("CLONE", "COPY", "LIKE", "REPLICA"):
        at = draft.find(word, start=draft.at)
        if at is not None and (at < head or at == head + 1):
            draft.at = at + 1
            draft.take("OF")
            source = draft.script.names.table(draft.path())
            draft.reads[source] = None
            if word != "LIKE":
                _stores(draft, name, Outputs(taint="a whole table is copied"))
    if (draft.find("REMOTE", start=draft.at) or head) < head:
        draft.door("REMOTE FUNCTION" if "FUNCTION" in kind else "REMOTE MODEL")
    if (draft.find("WITH", "CONNECTION", start=draft.at) or head) < head:
        draft.door("CONNECTION")
    if kind == "PROCEDURE":
        if draft.has("LANGUAGE"):
            draft.opaque("a procedure in another language is not read")
        return
    at = draft.find("AS", start=draft.at)
    if at is None or at + 1 >= len(draft.tokens):
        return
    body = draft.tokens[at + 1 :]
    if kind == "MODEL" and body[0].word == "(" and "TRAINING_DATA" in {token.word for token in body}:
        draft.opaque("a model of several queries is not read")
        return
    if "FUNCTION" in kind and kind != "TABLE FUNCTION":
        _function_body(draft, body)
    elif body[0].word in _QUERY_STARTS:
        outputs = draft.query(body)
        if kind in ("TABLE", "MATERIALIZED VIEW", "MODEL"):
            _stores(draft, name, outputs)
        else:
            draft.outputs = outputs
            draft.moves = True  # who reads the view reads this


def _stores(draft: Draft, name: TableName, outputs: Outputs | None) -> None:
    draft.add("write_rows", name)
    draft.outputs = outputs
    draft.moves = True


def _function_body(draft: Draft, body: Sequence[Token]) -> None:
    if body[0].kind == "string":
        return  # JavaScript and Python: no way out of their sandbox but through OPTIONS and CONNECTION
    depth = 0
    for index, token in enumerate(body):
        depth += (token.word == "(") - (token.word == ")")
        if not depth:
            draft.expression(body[: index + 1])
            return
    draft.opaque("the body of a function cannot be read")


def alter(draft: Draft) -> None:
    """ALTER of any object."""
    draft.take("ALTER")
    kind = _object_kind(draft)
    draft.word = f"ALTER {kind}"
    draft.take("IF", "EXISTS")
    if kind in _ADMIN:
        _policy_or_admin(draft, kind)
        _options(draft)
        return
    if kind in _INDEXES:
        name = _on_table(draft)
    elif kind in _SCHEMAS:
        name = draft.script.names.dataset_of(draft.path())
    else:
        name = draft.target(draft.path())
    draft.add("define", name, type_=kind.lower())
    for index, token in enumerate(draft.tokens):
        if token.word == "DROP" and not _drops_constraint(draft.tokens[index + 1 :]):
            draft.add("destroy", name, type_="column", where="none")
        if token.word == "RENAME" and index + 1 < len(draft.tokens) and draft.tokens[index + 1].word == "TO":
            draft.at = index + 2
            if name.dataset == TEMPORARY:
                draft.script.lost = "a temporary table has another name now"
            draft.add("define", draft.target([name.project, name.dataset, draft.path()[-1]]), type_=kind.lower())
    _options(draft, name)
    if draft.find("AS", start=draft.at) is not None:
        draft.opaque("an ALTER with a body is not read")


def _drops_constraint(tokens: Sequence[Token]) -> bool:
    words = [token.word for token in tokens[:2]]
    return words[:1] in (["CONSTRAINT"], ["DEFAULT"]) or words in (["PRIMARY", "KEY"], ["NOT", "NULL"])


def _options(draft: Draft, name: TableName | None = None) -> None:
    """Effects of OPTIONS(...), and places that are named in it."""
    objects = (name,) if name is not None else tuple(draft.writes)
    for index in _within_options(draft):
        token = draft.tokens[index]
        word = name_value(token).upper() if token.kind in ("word", "quoted") else ""
        after = draft.tokens[index + 1].word if index + 1 < len(draft.tokens) else ""
        if after != "=":
            continue
        if "EXPIRATION" in word:
            draft.add("destroy", *objects, type_="expiration")
        if word in _RIGHTS:
            draft.add("grant", *objects, type_=word.lower())
        if word in _PLACES:
            draft.door(word)
            _places(draft, index + 2)


def _within_options(draft: Draft) -> Iterator[int]:
    """The places of tokens within OPTIONS(...) and FILES(...): elsewhere, a word before = is a column."""
    depth = 0
    for index, token in enumerate(draft.tokens):
        if token.word == "(":
            opens = index > 0 and draft.tokens[index - 1].word in ("OPTIONS", "FILES")
            depth += opens or depth > 0
        elif token.word == ")" and depth:
            depth -= 1
        elif depth:
            yield index


def _places(draft: Draft, start: int) -> None:
    for token in draft.tokens[start:]:
        if token.kind == "string":
            draft.uris.append(string_value(token) or token.text)
        elif token.word not in ("[", ","):
            return


def drop(draft: Draft) -> None:
    """DROP of any object."""
    draft.take("DROP")
    if draft.take("ALL", "ROW", "ACCESS", "POLICIES"):
        draft.word = "DROP ALL ROW ACCESS POLICIES"
        _policy_or_admin(draft, "ROW ACCESS POLICY")
        return
    kind = _object_kind(draft)
    draft.word = f"DROP {kind}"
    draft.take("IF", "EXISTS")
    if kind in _ADMIN:
        _policy_or_admin(draft, kind)
        return
    if kind in _INDEXES:
        name = _on_table(draft)
    elif kind in _SCHEMAS:
        name = draft.script.names.dataset_of(draft.path())
    else:
        name = draft.target(draft.path())
        if kind == "TABLE":
            draft.script.names.dropped(name)
    draft.add("destroy", name, type_=kind.lower(), where="none")
    draft.take("CASCADE")
    draft.take("RESTRICT")
    if draft.at < len(draft.tokens):
        draft.opaque("a DROP ends in what is not known here")


def undrop(draft: Draft) -> None:
    """UNDROP SCHEMA."""
    draft.take("UNDROP")
    kind = _object_kind(draft)
    draft.word = f"UNDROP {kind}"
    draft.take("IF", "NOT", "EXISTS")
    parts = draft.path()
    name = draft.script.names.dataset_of(parts) if kind in _SCHEMAS else draft.target(parts)
    draft.add("define", name, type_=kind.lower())


def grant(draft: Draft) -> None:
    """GRANT and REVOKE."""
    at = draft.find("ON")
    if at is None:
        raise Unreadable(f"{draft.word} has no ON")
    draft.at = at + 1
    kind = _object_kind(draft)
    parts = draft.path()
    name = draft.script.names.dataset_of(parts) if kind in _SCHEMAS else draft.script.names.table(parts)
    draft.add("grant", name, type_=kind.lower())


def truncate(draft: Draft) -> None:
    """TRUNCATE TABLE."""
    draft.take("TRUNCATE")
    if not draft.take("TABLE"):
        raise Unreadable("TRUNCATE is of no table")
    draft.word = "TRUNCATE TABLE"
    draft.where = "none"
    draft.add("destroy", draft.target(draft.path()), where="none")
    if draft.at < len(draft.tokens):
        draft.opaque("a TRUNCATE ends in what is not known here")


def export(draft: Draft) -> None:
    """EXPORT DATA, EXPORT MODEL."""
    draft.take("EXPORT")
    kind = draft.peek()
    if kind not in ("DATA", "MODEL", "METADATA"):
        raise Unreadable(f"EXPORT {kind} is not known here")
    draft.word = f"EXPORT {kind}"
    draft.at += 1
    draft.door(draft.word)
    if kind == "MODEL":
        draft.reads[draft.script.names.table(draft.path())] = None
    if kind == "METADATA":
        draft.opaque("EXPORT METADATA is not read")
    _options(draft)
    at = draft.find("AS", start=draft.at)
    if at is not None:
        draft.outputs = draft.query(draft.tokens[at + 1 :])
        draft.moves = True
    elif kind == "DATA":
        raise Unreadable("EXPORT DATA has no query")


def load(draft: Draft) -> None:
    """LOAD DATA: from files into a table. Nothing leaves by it, so it is no export."""
    draft.take("LOAD")
    if not draft.take("DATA"):
        raise Unreadable("LOAD is of no DATA")
    draft.word = "LOAD DATA"
    overwrite = draft.take("OVERWRITE")
    if not overwrite and not draft.take("INTO"):
        raise Unreadable("LOAD DATA is into nothing")
    temporary = draft.take("TEMP", "TABLE") or draft.take("TEMPORARY", "TABLE")
    name = _table(draft, "TABLE", temporary)
    draft.door("LOAD DATA")
    if overwrite:
        draft.add("destroy", name, where="none")
    draft.add("write_rows", name)
    _options(draft)
