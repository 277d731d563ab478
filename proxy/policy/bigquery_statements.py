"""One statement of BigQuery: by its first word, to what it does.

Queries and DML are parsed; all else is read by its own words (bigquery_ddl.py). EXECUTE IMMEDIATE of a plain string is
read like the text around it; of anything else it is opaque, and so is CALL. A first word that is not in the table is
UNKNOWN.

SET @@dataset_id and SET @@dataset_project_id change what later names mean: followed where the value is a plain string
and control flow does not decide about it, else all that follows is opaque.

Source: bigquery note 4, 11 and 12; GoogleSQL for BigQuery, "Data manipulation language", "Procedural language".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from sqlglot import exp

from proxy.core.warehouse import Outputs, TableName, Where
from proxy.policy import bigquery_ddl as ddl
from proxy.policy.bigquery_draft import Draft, parse
from proxy.policy.bigquery_lex import Unreadable, string_value
from proxy.policy.bigquery_sources import Scope, of_table
from proxy.policy.bigquery_where import is_always_true

# Variables of the system that may be set without changing what anything means.
_HARMLESS: Final = frozenset({"time_zone", "query_label"})
# A plain name of a dataset or project, without dots. Source: "Name datasets", "Creating and managing projects".
_DEFAULT: Final = re.compile(r"[A-Za-z0-9_-]+")


def query(draft: Draft) -> None:
    """SELECT, WITH, FROM, or a query in brackets."""
    draft.word = "SELECT"
    draft.outputs = draft.query(draft.tokens)


def dml(draft: Draft) -> None:
    """INSERT, UPDATE, DELETE, MERGE."""
    draft.calls(draft.tokens)
    _head(draft)
    try:
        if draft.has("|>"):
            raise Unreadable("pipes within a statement that writes are not followed")
        tree = parse(draft.text, draft.tokens)
        match tree:
            case exp.Insert():
                _insert(draft, tree)
            case exp.Update():
                _update(draft, tree)
            case exp.Delete():
                _delete(draft, tree)
            case exp.Merge():
                _merge(draft, tree)
            case _:
                raise Unreadable("the parser reads this as another statement")
        draft.reader.check(tree)
    except (Unreadable, RecursionError) as error:
        if draft.word == "MERGE" and draft.has("DELETE"):
            draft.add("destroy", *draft.writes, where="always_true")
        draft.opaque(str(error) if isinstance(error, Unreadable) else "the text is nested too deeply to be read")


def _head(draft: Draft) -> None:
    """The table that it writes, by its own words: known even where the rest cannot be read."""
    words = {"INSERT": "INTO", "DELETE": "FROM", "MERGE": "INTO", "UPDATE": ""}
    draft.at = 1
    if words[draft.word]:
        draft.take(words[draft.word])
    name = draft.target(draft.path())
    if draft.word == "DELETE":
        draft.where = "present" if draft.find("WHERE") is not None else "none"
        return
    draft.add("write_rows", name)


def _target(draft: Draft, node: exp.Expr) -> TableName:
    """The table as the parser sees it must be the one that the words say."""
    table = node.this if isinstance(node, exp.Schema) else node
    if not isinstance(table, exp.Table):
        raise Unreadable("the table that is written cannot be told")
    name = draft.script.names.table(draft.reader.name_of(table))
    if name not in draft.writes:
        raise Unreadable("the parser sees another table written")
    return name


def _insert(draft: Draft, tree: exp.Insert) -> None:
    _target(draft, tree.this)
    body = tree.expression
    if isinstance(body, exp.Values):
        value = draft.reader.value(body, None)
        draft.moves = bool(value.origins or value.taint)
        draft.outputs = Outputs(also=value.origins, taint=value.taint)
    elif isinstance(body, exp.Query):
        draft.outputs = draft.reader.query(body, None, {})
        draft.moves = True
    else:
        raise Unreadable("an INSERT without rows")


def _scope(draft: Draft, tree: exp.Expr, table: exp.Expr) -> Scope:
    name = _target(draft, table)
    scope = Scope(None, {})
    scope.sources.append(of_table(name, table.alias_or_name.lower().rsplit(".", 1)[-1]))
    return scope


def _where(draft: Draft, tree: exp.Expr, scope: Scope) -> Where:
    where = tree.args.get("where")
    if where is None:
        return "none"
    draft.reader.filters.update(dict.fromkeys(draft.reader.value(where.this, scope).origins))
    return "always_true" if is_always_true(where.this) else "present"


def _update(draft: Draft, tree: exp.Update) -> None:
    scope = _scope(draft, tree, tree.this)
    source = tree.args.get("from_")
    if source is not None:
        draft.reader.join(source.this, scope, tree.args.get("joins") or source.this.args.get("joins") or ())
    values = [draft.reader.value(each, scope) for each in _assigned(tree)]
    taint = next((value.taint for value in values if value.taint), "")
    draft.outputs = Outputs(also=tuple(dict.fromkeys(o for value in values for o in value.origins)), taint=taint)
    draft.moves = bool(draft.outputs.also or taint)
    draft.where = _where(draft, tree, scope)
    draft.effects.clear()
    draft.add("write_rows", *draft.writes, where=draft.where)


def _assigned(update: exp.Expr) -> list[exp.Expr]:
    """What is stored by SET: the columns that it is stored in are not read."""
    return [each.expression if isinstance(each, exp.EQ) else each for each in update.expressions]


def _delete(draft: Draft, tree: exp.Delete) -> None:
    tables = tree.args.get("tables") or [tree.this]
    if len(tables) != 1 or tree.args.get("using"):
        raise Unreadable("a DELETE of several tables")
    draft.where = _where(draft, tree, _scope(draft, tree, tables[0]))


def _merge(draft: Draft, tree: exp.Merge) -> None:
    scope = _scope(draft, tree, tree.this)
    draft.reader.join(tree.args["using"], scope, ())
    condition = tree.args["on"]
    draft.reader.filters.update(dict.fromkeys(draft.reader.value(condition, scope).origins))
    source = tree.args["using"].alias_or_name.lower().rsplit(".", 1)[-1]
    everything = isinstance(condition, exp.Boolean) or _chooses_nothing(condition, source)
    whens = tree.args["whens"].expressions
    values = [draft.reader.value(each, scope) for when in whens for each in _stored(when)]
    guards = [when.args["condition"] for when in whens if when.args.get("condition") is not None]
    draft.reader.filters.update(dict.fromkeys(o for each in guards for o in draft.reader.value(each, scope).origins))
    taint = next((value.taint for value in values if value.taint), "")
    if any(isinstance(when.args.get("then"), exp.Insert) and not when.args["then"].expression for when in whens):
        taint = "whole rows of the source are stored"
    draft.outputs = Outputs(also=tuple(dict.fromkeys(o for value in values for o in value.origins)), taint=taint)
    draft.moves = True
    draft.effects.clear()
    for when in whens:
        then = when.args.get("then")
        guard = when.args.get("condition")
        if isinstance(then, exp.Insert):
            draft.add("write_rows", *draft.writes)
            continue
        unguarded = guard is None or is_always_true(guard) or (everything and _chooses_nothing(guard, source))
        whole: Where = "always_true" if unguarded and (when.args.get("source") or everything) else "present"
        draft.where = "always_true" if "always_true" in (whole, draft.where) else "present"
        if isinstance(then, exp.Update):
            draft.add("write_rows", *draft.writes, where=whole)
        else:
            draft.add("destroy", *draft.writes, where=whole)


def _stored(when: exp.Expr) -> list[exp.Expr]:
    """What one clause of a MERGE stores; what it is stored in is not read."""
    then = when.args.get("then")
    if isinstance(then, exp.Update):
        return _assigned(then)
    if isinstance(then, exp.Insert):
        return [then.expression] if isinstance(then.expression, exp.Expr) else []
    return [] if then is None else [then]


def _chooses_nothing(condition: exp.Expr, source: str) -> bool:
    """Whether a condition of a MERGE leaves the rows of its target alone: it is about the source's columns only."""
    columns = list(condition.find_all(exp.Column))
    about_source = bool(source) and all(column.table.lower() == source for column in columns)
    return is_always_true(condition) or about_source


def finish_delete(draft: Draft) -> None:
    """DELETE: what it destroys, once its WHERE was read."""
    dml(draft)
    draft.add("destroy", *draft.writes, where=draft.where)


def transaction(draft: Draft) -> None:
    """BEGIN, COMMIT, ROLLBACK [TRANSACTION]."""
    if draft.word == "ROLLBACK" and draft.script.names.moved:
        draft.script.lost = "ROLLBACK decides which temporary tables there are"
    draft.at = 1
    draft.take("TRANSACTION")
    draft.add("session", type_="transaction")
    if draft.at < len(draft.tokens):
        draft.opaque(f"{draft.word} ends in what is not known here")


def declare(draft: Draft) -> None:
    """DECLARE names type DEFAULT expression."""
    draft.add("session", type_="variable")
    at = draft.find("DEFAULT")
    if at is not None:
        draft.expression(draft.tokens[at + 1 :])


def set_variable(draft: Draft) -> None:
    """SET of variables of the script, or of the system; the latter see Setter in bigquery.py."""
    draft.add("session", type_="variable")
    at = draft.find("=")
    if at is None:
        raise Unreadable("SET has no =")
    value = draft.tokens[at + 1 :]
    draft.expression(value)
    head = draft.tokens[1:at]
    if not any(token.word == "@" for token in head):
        return
    name = ".".join(token.text.lower() for token in head if token.kind == "word")
    if name in _HARMLESS:
        return
    plain = string_value(value[0]) if len(value) == 1 and value[0].kind == "string" else None
    if (
        name not in ("dataset_id", "dataset_project_id")
        or plain is None
        or len(head) != 3
        or not _DEFAULT.fullmatch(plain)
    ):
        draft.script.lost = f"SET @@{name} changes what later statements mean"
        draft.opaque(draft.script.lost)
    elif name == "dataset_id":
        draft.script.names.set_dataset(plain)
    else:
        draft.script.names.set_project(plain)


def check(draft: Draft) -> None:
    """ASSERT expression [AS text]."""
    at = draft.find("AS")
    draft.expression(draft.tokens[1 : at if at is not None else len(draft.tokens)])
    draft.add("read_rows", *draft.reader.reads)


def raising(draft: Draft) -> None:
    """RAISE [USING MESSAGE = expression]."""
    draft.add("session", type_="control")
    at = draft.find("=")
    draft.expression(draft.tokens[at + 1 :] if at is not None else ())


def control(draft: Draft) -> None:
    """BREAK, LEAVE, CONTINUE, ITERATE, RETURN."""
    draft.add("session", type_="control")


def call(draft: Draft) -> None:
    """CALL: what the procedure does is not in the text."""
    draft.at = 1
    name = draft.script.names.table(draft.path())
    draft.add("call", name, type_="procedure")
    arguments = draft.tokens[draft.at + 1 : -1]
    draft.expression(arguments)
    draft.routines[str(name)] = None
    if str(name) not in draft.script.limits.trusted_routines:
        draft.opaque(f"{name} is a procedure that nobody here has read", None)


def execute(draft: Draft) -> None:
    """EXECUTE IMMEDIATE; bigquery.py reads the text of a plain string."""
    draft.word = "EXECUTE IMMEDIATE"
    draft.add("call", type_="text")
    if draft.peek(1) != "IMMEDIATE":
        raise Unreadable("EXECUTE is of nothing that is known here")
    using = draft.find("USING")
    if using is not None:
        draft.expression(draft.tokens[using + 1 :])
    if immediate_text(draft) is None:
        last = draft.find("INTO") or using or len(draft.tokens)
        draft.expression(draft.tokens[2:last])
        draft.opaque("EXECUTE IMMEDIATE of a text that is made when it runs", None)


def immediate_text(draft: Draft) -> str | None:
    """Return the text that EXECUTE IMMEDIATE runs, None where it is no plain string."""
    if len(draft.tokens) < 3 or draft.tokens[2].kind != "string":
        return None
    if len(draft.tokens) > 3 and draft.tokens[3].word not in ("INTO", "USING"):
        return None
    return string_value(draft.tokens[2])


READERS: Final[Mapping[str, Callable[[Draft], None]]] = {
    "SELECT": query, "WITH": query, "FROM": query, "(": query,
    "INSERT": dml, "UPDATE": dml, "MERGE": dml, "DELETE": finish_delete,
    "TRUNCATE": ddl.truncate, "CREATE": ddl.create, "ALTER": ddl.alter, "DROP": ddl.drop, "UNDROP": ddl.undrop,
    "GRANT": ddl.grant, "REVOKE": ddl.grant, "EXPORT": ddl.export, "LOAD": ddl.load,
    "BEGIN": transaction, "COMMIT": transaction, "ROLLBACK": transaction,
    "DECLARE": declare, "SET": set_variable, "ASSERT": check, "RAISE": raising,
    "BREAK": control, "LEAVE": control, "CONTINUE": control, "ITERATE": control, "RETURN": control,
    "CALL": call, "EXECUTE": execute,
}  # fmt: skip
