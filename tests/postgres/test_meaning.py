"""What written names may mean: quoting, relatives, attributes that are functions, computed columns, two databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from protocols.postgres.meaning import Known, Meaning, meaning, parts_of
from protocols.postgres.reading import CommandReader
from proxy.core.statement import Statement
from proxy.policy.sql import SqlReader, read_sql

COLUMNS: Mapping[str, Known] = {
    "public.cust": Known({"id": False, "email": False, "domain": True}),
    "public.parent": Known({"id": False}, ("public.child",)),
    "public.view": Known({"id": False}),
    "public.calls": Known({"id": False}),
}


class Catalogue:
    """A few relations of public; view reads cust, calls hides what it reads."""

    version = 1

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        return (name if "." in name else f"public.{name}",)

    def known(self, name: str) -> Known | None:
        return COLUMNS.get(name)

    def bases(self, name: str) -> frozenset[str]:
        return frozenset({"public.cust"} if name == "public.view" else {name})

    def hides(self, name: str) -> bool:
        return name == "public.calls"

    def function_name(self, oid: int) -> str | None:
        return None


def meant(text: str) -> Meaning:
    return meaning(Catalogue(), read_sql(text)[0], ("public",))


@pytest.mark.parametrize(
    ("text", "name", "resolved"),
    [
        ("select email from cust", "cust", ("public.cust",)),
        ("select c.email, c.ctid, c.* from cust c", "cust", ("public.cust",)),
        ("select lower(g) from cust, generate_series(1, 2) g", "cust", ("public.cust",)),
        ("select c.leak from cust c", "cust", ()),
        ("select upper((c).leak) from cust c", "cust", ()),
        ("copy (select c.leak from cust c) to stdout", "cust", ()),
        ("explain analyze select 1 from cust c where c.leak = 'x'", "cust", ()),
        ("select domain from cust", "cust", ()),
        ("select domain from cust, parent", "cust", ()),
        ("select id from parent", "parent", ("public.parent", "public.child")),
        ("select id from view", "view", ("public.view", "public.cust")),
        ("select id from calls", "calls", ()),
        ("select id from nobody_knows", "nobody_knows", ()),
        ("delete from cust c where c.leak = 'x'", "cust", ()),
    ],
)
def test_name_means_what_it_may(text: str, name: str, resolved: tuple[str, ...]) -> None:
    assert meant(text).resolved[name] == resolved


def test_only_relations_with_the_columns_of_the_text_are_alike() -> None:
    assert meant("select id from view").alike["view"] == ("public.view",)
    assert meant("select id from parent").alike["parent"] == ("public.parent", "public.child")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a", ("a",)),
        ("a.b.c", ("a", "b", "c")),
        ('"a.b"', ("a.b",)),
        ('public."Odd.Table"', ("public", "Odd.Table")),
        ('"say ""hi"".".t', ('say "hi".', "t")),
    ],
)
def test_quoted_names_are_one_part(name: str, parts: tuple[str, ...]) -> None:
    assert parts_of(name) == parts


def test_facts_of_two_databases_have_different_keys() -> None:
    """Their catalogues may have the same version, and the same text means something else."""
    statements = SqlReader()("create table kept as select lower(note) from cust")
    keys = set()
    for _ in range(2):
        command = CommandReader(Catalogue()).command(statements, statements[0].text, b"", _nothing, ("public",))
        keys.add(command.facts["cache_key"])
    assert len(keys) == 2


def test_name_that_may_be_anything_in_one_part_may_be_so_in_all() -> None:
    text = "select c.leak from cust c; select email from cust"
    for each in (text, "; ".join(reversed(text.split("; ")))):
        command = CommandReader(Catalogue()).command(read_sql(each), each, b"", _nothing, ("public",))
        assert command.facts["resolved"]["cust"] == ()


def _nothing(verb: str, name: str) -> Sequence[Statement] | None:
    return None
