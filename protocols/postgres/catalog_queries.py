"""What is asked of a target's catalogue: all of it, or only what has changed since the last time. Texts alone.

What has changed is told by xmin, the transaction that wrote a row of the catalogue (PostgreSQL 18 docs 5.6): every
transaction below the xmin of the last reading's snapshot had ended by then, so that only rows whose xmin is not
below it can be new. age() compares across wrap-around and takes frozen rows for old. A relation is read again whole
if its row, one of its columns, defaults, rules or parents, or its schema's name is new; a parent that was taken
away shows in the columns that it shared (one without columns shows nowhere, and matters as little). What is gone is
missing from the list of all oids. Of functions and types the new ones are read; nobody asks for those gone.

Source: PostgreSQL 18 documentation chapter 52 (System Catalogs), 9.27.8 (txid_snapshot_xmin); every query was run
on 15 and 18 and keeps to columns and functions that 12 has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

# Which database of which start of which server, and from which transaction on its rows may be new next time.
MARK: Final = """
    SELECT pg_postmaster_start_time()::text || ' ' || (SELECT oid FROM pg_database WHERE datname = current_database()),
           txid_snapshot_xmin(txid_current_snapshot())"""

# Field of Tables -> query; the words in braces are conditions, none for all.
_RELATIONS: Final = {
    "relations": """
        SELECT c.oid, n.nspname, c.relname, c.relkind, c.reltoastrelid, a.columns
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN (SELECT attrelid, json_agg(json_build_array(attnum, attname, atttypid::int8, atttypmod)
                                             ORDER BY attnum) AS columns
                   FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped {attrelid} GROUP BY attrelid
                  ) a ON a.attrelid = c.oid
        WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S') {c.oid}""",
    "inherits": "SELECT inhrelid, inhparent FROM pg_inherits WHERE true {inhrelid}",
    "reads": """
        SELECT DISTINCT r.ev_class, d.refobjid, d.refobjsubid
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.refobjid <> r.ev_class {r.ev_class}""",
    "calls": """
        SELECT DISTINCT r.ev_class
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid >= 16384
          AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) {r.ev_class}""",
    "generated": """
        SELECT a.attrelid, a.attnum, d.refobjsubid
        FROM pg_attribute a JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
          AND d.refobjsubid NOT IN (0, a.attnum)
          AND (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
               OR d.classid = 'pg_class'::regclass AND d.objid = a.attrelid AND d.objsubid = a.attnum)
        WHERE a.attgenerated <> '' {a.attrelid}""",
}
_OTHERS: Final = {
    "functions": """
        SELECT p.oid, n.nspname, p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE true {functions}""",
    "types": """
        SELECT t.oid, t.typname, t.typtype, t.typcategory, t.typbasetype, t.typtypmod, t.typelem, e.labels
        FROM pg_type t
        LEFT JOIN (SELECT enumtypid, json_agg(enumlabel ORDER BY enumsortorder) AS labels
                   FROM pg_enum GROUP BY enumtypid) e ON e.enumtypid = t.oid
        LEFT JOIN pg_type i ON i.oid = t.typelem LEFT JOIN pg_class c ON c.oid = coalesce(i.typrelid, t.typrelid)
        WHERE (t.oid >= 16384 OR t.typtype = 'd') AND (c.relkind IS NULL OR c.relkind = 'c') {types}""",
    "role_schemas": "SELECT n.nspname FROM pg_namespace n JOIN pg_roles r ON r.rolname = n.nspname",
}
_LIVE: Final = "SELECT string_agg(oid::text, ',') FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'f', 'p', 'S')"
_CHANGED: Final = """
    SELECT string_agg(oid::text, ',' ORDER BY oid) FROM (
        SELECT oid FROM pg_class WHERE NEW(xmin)
        UNION SELECT attrelid FROM pg_attribute WHERE NEW(xmin)
        UNION SELECT adrelid FROM pg_attrdef WHERE NEW(xmin)
        UNION SELECT ev_class FROM pg_rewrite WHERE NEW(xmin)
        UNION SELECT inhrelid FROM pg_inherits WHERE NEW(xmin)
        UNION SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NEW(n.xmin)
    ) changed"""


def everything() -> dict[str, str]:
    """Return the queries that read all, by field of Tables."""
    return {name: _filled(text, {}) for name, text in (_RELATIONS | _OTHERS).items()}


def of_relations(oids: Iterable[int]) -> dict[str, str]:
    """Return the queries that read these relations, by field of Tables."""
    listed = ",".join(map(str, oids))
    columns = ("attrelid", "c.oid", "inhrelid", "r.ev_class", "a.attrelid")
    only = {column: f"AND {column} = ANY('{{{listed}}}'::oid[])" for column in columns}
    return {name: _filled(text, only) for name, text in _RELATIONS.items()}


def changes(since: int) -> dict[str, str]:
    """Return the queries that tell what is new since a MARK's second column: changed, live, and whole _OTHERS."""
    # Transactions 0 to 2 are no real ones (src/include/access/transam.h).
    # A sub-select is computed once and not for every row.
    horizon = f"(SELECT age('{max(since % 2**32, 3)}'::xid))"  # a number of ours

    def new(column: str) -> str:
        return f"age({column}) <= {horizon}"

    changed = _CHANGED.replace("NEW(xmin)", new("xmin")).replace("NEW(n.xmin)", new("n.xmin"))
    labels = f"SELECT enumtypid FROM pg_enum WHERE {new('xmin')}"  # noqa: S608  # a number of ours
    conditions = {
        "functions": f"AND ({new('p.xmin')} OR {new('n.xmin')})",
        "types": f"AND ({new('t.xmin')} OR t.oid IN ({labels}))",
    }
    others = {name: _filled(text, conditions) for name, text in _OTHERS.items()}
    return {"changed": changed, "live": _LIVE, **others}


def definitions(of: Iterable[int] | None = None) -> str:
    """Return the query for the texts of views: all, or these."""
    only = f"oid = ANY('{{{','.join(map(str, of))}}}'::oid[])" if of is not None else "oid >= 16384"
    return f"SELECT oid, pg_get_viewdef(oid) FROM pg_class WHERE relkind IN ('v', 'm') AND {only}"  # noqa: S608  # oids


def _filled(text: str, conditions: Mapping[str, str]) -> str:
    for place in ("attrelid", "c.oid", "inhrelid", "r.ev_class", "a.attrelid", "functions", "types"):
        text = text.replace(f"{{{place}}}", conditions.get(place, ""))
    return text
