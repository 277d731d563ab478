"""A small catalogue and real SQL readings, for the tests of masks."""

from __future__ import annotations

from typing import Any

from proxy.core.events import Command
from proxy.policy.sql import read_sql

# Name as written -> relations that it may mean, with the tables behind views, as the protocol gives them.
RELATIONS: dict[str, tuple[str, ...]] = {
    "cust": ("public.cust",),
    "public.cust": ("public.cust",),
    "orders": ("public.orders",),
    "t": ("public.t",),
    "v": ("public.v", "public.cust"),
    "api.cust": ("api.cust", "public.cust"),
    "part_a": ("public.part_a", "public.cust"),
    "either": ("a.either", "b.either"),
    "pg_stats": ("pg_catalog.pg_stats", "pg_catalog.pg_statistic", "pg_catalog.pg_class"),
    "mystats": ("public.mystats", "pg_catalog.pg_stats", "pg_catalog.pg_statistic"),
    "pg_statistic": ("pg_catalog.pg_statistic",),
    "pg_class": ("pg_catalog.pg_class",),
    "hidden_view": (),
}


def sql(text: str, **more: Any) -> Command:
    """The Command that the PostgreSQL protocol would make of a text; names that RELATIONS does not have are unknown."""
    statements = read_sql(text)
    names = {name for each in statements for name in (*each.tables_read, *each.tables_written)}
    facts = {
        "statements": statements,
        "resolved": {name: RELATIONS.get(name, ()) for name in names},
        "opaque": any(each.opaque for each in statements),
        **more,
    }
    first = statements[0]
    return Command("postgres", first.verb, first.kind, text, facts=facts)
