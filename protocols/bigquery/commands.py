"""A request as a command: verbs, kinds and objects of all that it does, the text that a human approves, the facts.

A request has as many effects as its doors (effects.py) and its SQL (the analysis) have; each is a part of the command,
and is judged by itself. The command's own verb and kind are those of the gravest. What the text reads and writes comes
from the analysis; what lies behind its views from the dry run (Estimate), where there was one.

A caller's own dry run does nothing but tell of what it names: one effect, inspect, of all of it. SQL within a
definition (a view's query, a routine's body) runs later, but is what the definition gives out: it is analysed too, and
its reads are the command's.

poll_of() makes the command of a request that goes on with what was decided before: kind session, and under the masks of
then. Source: bigquery note 4, 5 and 6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from protocols.bigquery.effects import effects as doors_of
from protocols.bigquery.estimates import Estimate, places
from protocols.bigquery.facts import FACTS, WAREHOUSE
from protocols.bigquery.intent import intent_of
from protocols.bigquery.methods import KIND_OF
from protocols.bigquery.parameters import safe_target
from protocols.bigquery.queries import text as text_in
from protocols.bigquery.requests import Asked
from proxy.core.events import ESTIMATE_FACT, INTENT_FACT, Command
from proxy.core.http.heads import RequestHead, encode_request, without
from proxy.core.text import harmless
from proxy.core.warehouse import GRAVITY, UNRESOLVED, Analysis, Statement, TableName

VERBS: Final = frozenset(KIND_OF)
TEXT_LIMIT: Final = 16 * 1024  # characters of a body in the text that a human approves; the tape has all of it
_SECRET_FIELDS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
_GRAVITY: Final = {verb: place for place, verb in enumerate(("cancel", "poll", "upload", "discover", *GRAVITY))}

Effect = tuple[str, tuple[str, ...]]  # verb, objects


def command_of(asked: Asked, analysis: Analysis, estimate: Estimate, flow: int, data: bytes) -> Command:
    """Return a request as a command; analysis: of all its SQL (merged). data: as it is taped."""
    found = _effects(asked, analysis)
    facts = _facts(asked, analysis)
    facts |= _told(facts, asked, analysis, estimate)
    objects = tuple(dict.fromkeys(name for _, names in found for name in names))
    verb = max((verb for verb, _ in found), key=lambda each: _GRAVITY.get(each, len(_GRAVITY)), default="read_rows")
    whole = Command(
        protocol="bigquery",
        verb=verb,
        kind=KIND_OF[verb],
        text=text_of(asked),
        objects=objects,
        facts=facts,
        flow=flow,
        data=data,
    )
    if len(found) < 2:
        return whole
    parts = tuple(replace(whole, verb=each, kind=KIND_OF[each], objects=names, data=None) for each, names in found)
    return replace(whole, parts=parts)


def with_estimate(command: Command, asked: Asked, analysis: Analysis, estimate: Estimate) -> Command:
    """Return a command that was made without an estimate, with it: nothing but facts is another."""
    facts = {**command.facts, **_told(command.facts, asked, analysis, estimate)}
    parts = tuple(replace(each, facts=facts) for each in command.parts)
    return replace(command, facts=facts, parts=parts)


def texts_of(asked: Asked) -> tuple[tuple[str, str, str | None], ...]:
    """Return the SQL of a request, each with the project and the dataset that complete its names."""
    if asked.query is not None:
        return ((asked.query.text, asked.query.project, asked.query.dataset or None),)
    default = f"{asked.project}.{asked.id('dataset')}" if asked.id("dataset") else None
    found = []
    for each in asked.sql:
        text = each.text
        body = asked.body or {}
        if each.form == "routine":
            if str(body.get("language") or "SQL").upper() != "SQL":
                continue  # code that sees its arguments alone; what reaches further is a door of its own
            if body.get("routineType") == "SCALAR_FUNCTION":
                text = f"SELECT ({text})"
        elif each.form == "expression":
            text = f"SELECT ({text})"
        found.append((text, asked.project, default))
    return tuple(found)


def merged(analyses: Sequence[Analysis]) -> Analysis:
    """Return the analyses of several texts as one."""
    if len(analyses) == 1:
        return analyses[0]
    return Analysis(
        tuple(statement for each in analyses for statement in each.statements),
        tuple(word for each in analyses for word in each.control),
        any(each.opaque for each in analyses),
        next((each.why for each in analyses if each.why), ""),
    )


def poll_of(asked: Asked, what: str, flow: int, data: bytes, verb: str = "poll") -> Command:
    """Return a request that goes on with something of the caller's own; what: it, in words."""
    facts = {"bq_method": asked.method.name, "bq_project": asked.project, "tables_read": (), "tables_written": ()}
    return Command(
        protocol="bigquery",
        verb=verb,
        kind=KIND_OF[verb],
        text=f"{asked.method.name} {what}",
        facts={**FACTS, **facts, WAREHOUSE: ()},
        flow=flow,
        data=data,
    )


def taped(head: RequestHead, body: bytes) -> bytes:
    """Return a request as the tape has it: as it came, without what proves who sent it. body: unpacked."""
    fields = without(head.fields, _SECRET_FIELDS | {"content-encoding", "transfer-encoding"})
    return encode_request(head.method, safe_target(head.target), fields) + body


# -- effects --------------------------------------------------------------------------------------------


def _effects(asked: Asked, analysis: Analysis) -> list[Effect]:
    found: list[Effect] = []
    if asked.dry_run and asked.job == "query":
        return [("inspect", _names((*analysis.tables_read, *analysis.tables_written)))]
    for statement in analysis.statements:
        found += [(effect.verb, _names(effect.objects)) for effect in statement.effects]
    if analysis.opaque and not any(verb == "UNKNOWN" for verb, _ in found):
        found.append(("UNKNOWN", ()))
    if asked.job != "query":
        found = [each for each in found if each[0] != "session"]
    if asked.sql:  # a definition: what its SQL does it does when it is used, but it shows what that reads
        found = [(verb if verb in ("export", "call", "UNKNOWN") else "read_rows", names) for verb, names in found]
    found += [(door.verb, door.objects) for door in doors_of(asked)]
    return list(dict.fromkeys(found))


def _names(tables: Iterable[TableName]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name_of(table) for table in tables))


def name_of(table: TableName) -> str:
    """Return a table's full name; "*" stands for a dataset that nobody knows."""
    return f"{table.project}.{'*' if table.dataset == UNRESOLVED else table.dataset}.{table.table}"


# -- facts ----------------------------------------------------------------------------------------------


def _facts(asked: Asked, analysis: Analysis) -> dict[str, Any]:
    """All that is known before the dry run."""
    statements = analysis.statements
    doors = doors_of(asked)
    read = _names(table for each in statements for table in each.tables_read)
    read += tuple(name for door in doors if door.verb == "read_rows" for name in door.objects)
    written = _names(table for each in statements for table in each.tables_written)
    written += tuple(name for door in doors if door.kind in ("write", "delete") for name in door.objects)
    where = _where(statements)
    opaque = analysis.opaque or any(each.opaque for each in statements)
    why = analysis.why or next((each.why for each in statements if each.why), "")
    outside = (*(place for door in doors for place in door.outside), *(uri for each in statements for uri in each.uris))
    facts: dict[str, Any] = {
        **FACTS,
        WAREHOUSE: statements,
        "tables_read": tuple(dict.fromkeys(read)),
        "tables_written": tuple(dict.fromkeys(written)),
        "functions": tuple(dict.fromkeys(name for each in statements for name in each.functions)),
        "kinds": tuple(dict.fromkeys(effect.kind for each in statements for effect in each.effects)),
        "where": where,
        "where_missing": where in ("none", "always_true"),
        "multi": len(statements) > 1,
        "moves_data": any(each.moves_data for each in statements) or asked.destination is not None,
        "opaque": opaque,
        "why": why,
        "bq_method": asked.method.name,
        "bq_job": asked.job,
        "bq_project": asked.project,
        "bq_location": asked.location,
        "bq_destination": "" if asked.destination is None else str(asked.destination),
        "bq_write_disposition": asked.write,
        "bq_uris": tuple(dict.fromkeys((*asked.uris, *(uri for each in statements for uri in each.uris)))),
        "bq_doors": tuple(
            dict.fromkeys((*(door.why for door in doors), *(name for each in statements for name in each.doors)))
        ),
        "bq_outside": tuple(dict.fromkeys(outside)),
        "bq_labels": dict(asked.labels),
        "bq_special": asked.special,
        "bq_routines": tuple(dict.fromkeys(name for each in statements for name in each.routines)),
        "bq_session": bool(asked.session_id),
        "bq_asks_dry_run": asked.dry_run,
        "bq_maximum_bytes": (asked.query.maximum_bytes or 0) if asked.query is not None else 0,
    }
    values = _values(asked)
    said = intent_of(asked)
    more = ({"values": values} if values else {}) | ({INTENT_FACT: said} if said else {})
    return facts | more


def _told(facts: Mapping[str, Any], asked: Asked, analysis: Analysis, estimate: Estimate) -> dict[str, Any]:
    """What the dry run adds; facts: those before it, of which it changes some."""
    return {
        "beneath": estimate.beneath,
        "opaque": facts["opaque"] or bool(estimate.opaque),
        "why": facts["why"] or estimate.opaque,
        "bq_bytes": estimate.bytes,
        "bq_price": estimate.price,
        "bq_dry_run": estimate.known,
        "bq_statement_type": estimate.statement_type,
        **places(asked, analysis, estimate),
        **({ESTIMATE_FACT: (estimate.bytes, estimate.price)} if estimate.known else {}),
    }


def _where(statements: Iterable[Statement]) -> str:
    """The weakest condition of all that change rows: one without any makes the whole be without."""
    found = [each.where for each in statements if each.where is not None]
    return next((where for where in ("none", "always_true", "present") if where in found), "")


def _values(asked: Asked) -> tuple[str | None, ...]:
    """The parameters of a query, as an approver reads them."""
    if asked.query is None:
        return ()
    found: list[str | None] = []
    for each in asked.query.parameters:
        value = each.get("parameterValue")
        plain = value.get("value") if isinstance(value, Mapping) and set(value) <= {"value"} else value
        name = f"@{each['name']} = " if each.get("name") else ""
        shown = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
        found.append(None if plain is None and not name else f"{name}{shown}")
    return tuple(found)


# -- text -----------------------------------------------------------------------------------------------


def text_of(asked: Asked) -> str:
    """Return what a human approves: the SQL of a query, or what the method does and with what."""
    if asked.query is not None:
        return _query_text(asked)
    name = asked.method.name
    match asked.job:
        case "load":
            sources = ", ".join(asked.uris) or "an upload"
            return f"load {sources} into {asked.destination} ({asked.write})"
        case "copy":
            how = text_in(asked.configuration, "operationType") or "COPY"
            return f"copy {', '.join(map(str, asked.sources))} to {asked.destination} ({asked.write}, {how})"
        case "extract":
            return f"extract {', '.join(map(str, asked.sources))} to {', '.join(asked.uris)}"
    line = f"{name} {asked.object}{asked.line.route.decorator}"
    if asked.id("policy"):
        line += f" policy {asked.id('policy')}"
    if name == "tabledata.insertAll":
        return f"{line} ({len((asked.body or {}).get('rows') or ())} rows)"
    if asked.parameters.pairs:
        line += " " + " ".join(f"{key}={value}" for key, value in asked.parameters.pairs)
    if not asked.body:
        return line
    body = json.dumps(asked.body, ensure_ascii=False, indent=1)
    more = f"\n[{len(body) - TEXT_LIMIT} characters more]" if len(body) > TEXT_LIMIT else ""
    return f"{line}\n{body[:TEXT_LIMIT]}{more}"


def _query_text(asked: Asked) -> str:
    """The text of a query; what its settings do beside it stands below it, as a comment."""
    query = asked.query
    assert query is not None
    notes = []
    if asked.dry_run:
        notes.append("dry run")
    if asked.destination is not None:
        notes.append(f"into {asked.destination} ({asked.write})")
    if query.dataset:
        notes.append(f"names are of {query.dataset}")
    notes += [f"reads {each.name}: {', '.join((*each.uris, each.connection))}" for each in query.tables]
    notes += [f"runs code: {each}" for each in query.code]
    notes += [f"changes the schema: {each}" for each in query.schema_options]
    notes += [f"{key}: {value}" for key, value in query.properties.items()]
    if query.create_session:
        notes.append("begins a session")
    notes += [f"asks for {each}" for each in asked.special if each not in ("create_session", "service_account")]
    # One line each, whatever a caller has put into a value: it may not read like SQL, or like another note.
    return "\n".join([query.text, *(f"-- {harmless(note)}" for note in notes)])
