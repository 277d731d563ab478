"""The facts of a statement one by one: functions, columns, moved data, WHERE, names, settings, COPY, inner."""

from __future__ import annotations

import pytest

from proxy.core.statement import ColumnRef, Copy, Statement
from proxy.policy.sql import VERBS, read_sql
from proxy.policy.sql_verbs import STATEMENTS


def one(text: str) -> Statement:
    statements = read_sql(text)
    assert len(statements) == 1, statements
    return statements[0]


@pytest.mark.parametrize(
    ("text", "functions"),
    [
        ("select lower(a), pg_catalog.upper(b), s.f(c) from t", ("lower", "pg_catalog.upper", "s.f")),
        ("select trim(both 'x' from a), extract(year from b) from t", ("btrim", "extract")),
        ("call s.p(f())", ("s.p", "f")),
        ("create trigger x after insert on t execute function s.f()", ("s.f",)),
        ("create view v as select purge()", ("purge",)),
        ("select a @@@@ b from t", ("operator(@@@@)",)),
        ("execute p(f())", ("f",)),
    ],
)
def test_functions(text: str, functions: tuple[str, ...]) -> None:
    assert one(text).functions == functions


def refs(*names: str) -> set[ColumnRef]:
    return {ColumnRef(name.rpartition(".")[0] or None, name.rpartition(".")[2]) for name in names}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("select a from t where b = 1 order by c", ("t.a", "t.b", "t.c")),
        ("select x.a from s.t x where x.b > 0", ("s.t.a", "s.t.b")),
        ("select t.a, s.u.b from t, s.u", ("t.a", "s.u.b")),
        ("select a from t, u", ("a",)),
        ("select a as z from t order by z", ("t.a",)),
        ("select * from t join u using (id)", ("id", "t.*", "u.*")),
        ("select * from t natural join u", ("t.*", "u.*")),
        ("select a from t group by b having max(c) > 0", ("t.a", "t.b", "t.c")),
        ("select sum(a) over (partition by b order by c) from t", ("t.a", "t.b", "t.c")),
        ("select count(*) filter (where a > 0) from t", ("t.a",)),
        ("select distinct on (a) b from t", ("t.a", "t.b")),
        ("select (select b from u where u.x = t.y) from t", ("b", "u.x", "t.y")),
        ("select x.b from (select a as b from t where c) x", ("t.a", "t.c")),
        ("with x as (select a from t) select a from x", ("t.a",)),
        ("update t set a = b + 1 where c = 2", ("t.b", "t.c")),
        ("delete from t using u where t.a = u.b", ("t.a", "u.b")),
        ("insert into t (a) select b from u", ("u.b",)),
        ("insert into t (a) values (1) on conflict (b) do update set c = excluded.d where t.e > 0",
         ("t.b", "t.d", "t.e")),
        ("insert into t (a) values (1) returning b", ("t.b",)),
        ("copy t (a, b) to stdout", ("t.a", "t.b")),
        ("copy t to stdout", ("t.*",)),
        ("create index on t (lower(a)) where b", ("t.a", "t.b")),
        ("merge into t using u on t.a = u.b when matched and u.c then update set d = u.e", ("t.a", "u.b", "u.c", "u.e")),  # noqa: E501
        ("with recursive r as (select a from t union all select t.b from t, r where r.a = t.c) select a from r",
         ("t.a", "t.b", "t.c")),
    ],
)  # fmt: skip
def test_columns_read(text: str, columns: tuple[str, ...]) -> None:
    assert set(one(text).columns) == refs(*columns)


@pytest.mark.parametrize(
    ("text", "written", "moved", "moves"),
    [
        ("insert into t (a, b) values (1, 2)", ("t.a", "t.b"), (), False),
        ("insert into t select * from u", (), ("u.*",), True),
        ("insert into t (a) select count(*) from u", ("t.a",), (), False),
        ("insert into t (a) values ((select b from u))", ("t.a",), ("u.b",), True),
        ("insert into t (a) select purge()", ("t.a",), (), True),
        ("insert into t (a) values (1) on conflict do update set b = t.c", ("t.a", "t.b"), ("t.c",), True),
        ("update t set a = 1", ("t.a",), (), False),
        ("update t set a = a + 1", ("t.a",), (), False),
        ("update t set a = b", ("t.a",), ("t.b",), True),
        ("update t set (a, b) = (select c, d from u)", ("t.a", "t.b"), ("c", "d"), True),
        ("update t set a = u.b from u", ("t.a",), ("u.b",), True),
        ("delete from t where a = 1", (), (), False),
        ("merge into t using u on t.a = u.a when matched then update set b = u.c", ("t.b",), ("u.c",), True),
        ("merge into t using u on t.a = u.a when not matched then insert (a) values (u.a)", ("t.a",), ("u.a",), True),
        ("merge into t using u on t.a = u.a when matched then delete", (), (), False),
        ("select a into n from t", (), ("t.a",), True),
        ("create table n as select a from t", (), ("t.a",), True),
        ("create table n as select a from t with no data", (), (), False),
        ("create materialized view n as select a from t", (), ("t.a",), True),
        ("create view n as select a from t", (), (), False),
        ("refresh materialized view n", (), (), True),
        ("copy t (a) to '/x'", (), ("t.a",), True),
        ("copy t to program 'x'", (), ("t.*",), True),
        ("copy t to stdout", (), (), False),
        ("copy t (a) from stdin", ("t.a",), (), False),
        ("copy t from '/x'", (), (), False),
        ("with x as (insert into n select a from t) select 1", (), ("t.a",), True),
        ("explain analyze insert into n select a from t", (), ("t.a",), True),
        ("explain insert into n select a from t", (), ("t.a",), False),
        ("with d as (delete from t returning a) insert into n (x) select a from d", ("n.x",), ("t.a",), True),
    ],
)
def test_moved_data(text: str, written: tuple[str, ...], moved: tuple[str, ...], moves: bool) -> None:
    statement = one(text)
    assert set(statement.columns_written) == refs(*written)
    assert statement.moves_data is moves
    assert set(statement.moved) == refs(*moved)


@pytest.mark.parametrize(
    ("text", "where", "unrestricted"),
    [
        ("delete from t", "none", True),
        ("update t set a = 1", "none", True),
        ("delete from t where a = 1", "present", False),
        ("with d as (delete from t) select 1 where 1 = 2", "none", True),
        ("with d as (delete from t where a = 1) delete from u where true", "always_true", True),
        ("with d as (delete from t where a = 1) select 1", "present", False),
        ("with i as (insert into t values (1)) select 1", "none", False),
        ("explain analyze delete from t", "none", True),
        ("explain delete from t", "none", False),
        ("prepare p as delete from t", "none", True),
        ("copy (delete from t returning *) to stdout", "none", True),
        ("select a from t", "none", False),
        ("select a from t union select b from u", None, False),
        ("values (1)", None, False),
        ("insert into t values (1)", None, False),
        ("begin", None, False),
    ],
)
def test_where_of_the_weakest(text: str, where: str | None, unrestricted: bool) -> None:
    statement = one(text)
    assert statement.where == where
    assert statement.more.get("unrestricted", False) is unrestricted


@pytest.mark.parametrize(
    ("text", "control", "name"),
    [
        ("begin", "begin", None),
        ("start transaction read only", "begin", None),
        ("commit", "commit", None),
        ("rollback", "rollback", None),
        ('savepoint "A b"', "savepoint", "A b"),
        ("release savepoint x", "release", "x"),
        ("rollback to x", "rollback_to", "x"),
        ("prepare transaction 'g'", "prepare_transaction", "g"),
        ("commit prepared 'g'", None, "g"),
        ("prepare P as select 1", None, "p"),
        ("execute p(1)", None, "p"),
        ("deallocate p", None, "p"),
        ("deallocate all", None, None),
        ("declare c cursor for select 1", None, "c"),
        ("fetch next from c", None, "c"),
        ("move c", None, "c"),
        ("close c", None, "c"),
        ("close all", None, None),
        ("listen ch", None, "ch"),
        ("unlisten ch", None, "ch"),
        ("unlisten *", None, None),
        ("notify ch", None, "ch"),
        ("explain execute p", None, "p"),
        ("create table n as execute p", None, "p"),
    ],
)
def test_names_and_control(text: str, control: str | None, name: str | None) -> None:
    statement = one(text)
    assert (statement.control, statement.name) == (control, name)
    assert not statement.literal_free


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("set work_mem = '4MB'", ("work_mem", "4MB")),
        ("set Search_Path to a, \"B\"", ("search_path", "a, B")),
        ("set local x.y = 5", ("x.y", "5")),
        ("/* x */ set standard_conforming_strings = off", ("standard_conforming_strings", "off")),
        ('set "Standard_Conforming_Strings" to off', ("standard_conforming_strings", "off")),
        ("set names 'SJIS'", ("client_encoding", "SJIS")),
        ("set time zone 'utc'", ("timezone", "utc")),
        ("set time zone interval '1' hour", ("timezone", "1")),
        ("set x to default", ("x", None)),
        ("set x = -1.5", ("x", "-1.5")),
        ("set x = true", ("x", "true")),
        ("reset x", ("x", None)),
        ("reset all", ("all", None)),
        ("discard all", ("all", None)),
        ("discard plans", None),
        ("set role none", ("role", "none")),
        ("set session authorization default", ("session_authorization", None)),
        ("set transaction isolation level serializable", ("transaction_isolation", "serializable")),
        ("set session characteristics as transaction read only", ("transaction_read_only", "1")),
        ("select set_config('Search_Path', 'a', false)", ("search_path", "a")),
        ("select pg_catalog.set_config('role', 'x', true)", ("role", "x")),
        ("select set_config('a', 'x', true), set_config('standard_conforming_strings', 'off', true)",
         ("standard_conforming_strings", "off")),
        ("select set_config('a' || 'b', 'x', true)", ("all", None)),
        ("alter system set work_mem = 1", None),
    ],
)  # fmt: skip
def test_settings(text: str, setting: tuple[str, str | None] | None) -> None:
    statement = one(text)
    assert statement.setting == setting
    assert not statement.literal_free


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("select a from t limit 5", 5),
        ("select a from t fetch first 3 rows only", 3),
        ("select a from t fetch first row only", 1),
        ("select a from t limit all", None),
        ("select a from t limit null", None),
        ("select a from t limit $1", None),
        ("select a from t limit 1 + 1", None),
        ("select a from (select a from t limit 5) x", None),
        ("select a from t union select a from u limit 7", 7),
        ("select a from t limit 99999999999999999999", None),
    ],
)
def test_limit(text: str, limit: int | None) -> None:
    assert one(text).limit == limit


TEXT_DEFAULT = Copy("out", "t", (), "client", "text", "\t", "\\N", False, "", "", False, None)


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("copy t to stdout", TEXT_DEFAULT),
        ("copy s.t (a, b) from stdin",
         Copy("in", "s.t", ("a", "b"), "client", "text", "\t", "\\N", False, "", "", False, None)),
        ("copy t to stdout with csv header",
         Copy("out", "t", (), "client", "csv", ",", "", True, '"', '"', False, None)),
        ("copy t to stdout (format csv, header)",
         Copy("out", "t", (), "client", "csv", ",", "", True, '"', '"', False, None)),
        ("copy t to stdout (format 'CSV', header off, delimiter ';', null 'x', quote '''', "
         "escape '\\', force_quote (a))",
         Copy("out", "t", (), "client", "csv", ";", "x", False, "'", "\\", True, None)),
        ("copy t to stdout with delimiter as '|' null as 'x' csv header quote '''' escape 'e' force quote *",
         Copy("out", "t", (), "client", "csv", "|", "x", True, "'", "e", True, None)),
        ("copy t to stdout csv quote ''''",
         Copy("out", "t", (), "client", "csv", ",", "", False, "'", "'", False, None)),
        ("copy t from stdin (format csv, header match, null '', encoding 'latin1')",
         Copy("in", "t", (), "client", "csv", ",", "", True, '"', '"', False, "latin1")),
        ("copy t to stdout (header 1)",
         Copy("out", "t", (), "client", "text", "\t", "\\N", True, "", "", False, None)),
        ("copy t to stdout (header 0, delimiter e'\\x01')",
         Copy("out", "t", (), "client", "text", "\x01", "\\N", False, "", "", False, None)),
        ("copy binary t to '/x'",
         Copy("out", "t", (), "file", "binary", "\t", "\\N", False, "", "", False, None)),
        ("copy t from program 'x' with (format binary)",
         Copy("in", "t", (), "program", "binary", "\t", "\\N", False, "", "", False, None)),
        ("copy (select 1) to stdout (format nonsense)",
         Copy("out", None, (), "client", "unknown", "\t", "\\N", False, "", "", False, None)),
    ],
)  # fmt: skip
def test_copy(text: str, copy: Copy) -> None:
    assert one(text).copy == copy


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("prepare p (int, as_type) as select a as b from t where c = $1", "select a as b from t where c = $1"),
        ('prepare "as" as insert into t values ($1)', "insert into t values ($1)"),
        ("prepare p /* as select 1 */ as -- as\n delete from t", "-- as\n delete from t"),
        ("prepare p as with x as (select 1) select * from x", "with x as (select 1) select * from x"),
        ("declare c no scroll cursor with hold for select a from t for update", "select a from t for update"),
        ("DECLARE c CURSOR FOR VALUES (1)", "VALUES (1)"),
    ],
)
def test_inner_text(text: str, inner: str) -> None:
    found = one(text).inner
    assert found is not None
    assert found.text == inner
    assert read_sql(inner)[0].tables_read == found.tables_read


@pytest.mark.parametrize(
    ("text", "verb", "kind"),
    [
        ("explain delete from t", "DELETE", "delete"),
        ("copy (select a from t) to stdout", "SELECT", "read"),
        ("create view v as select a from t", "SELECT", "read"),
        ("create table n as select a from t", "SELECT", "read"),
        ("explain create table n as select a from t", "CREATE TABLE AS", "define"),
    ],
)
def test_inner(text: str, verb: str, kind: str) -> None:
    inner = one(text).inner
    assert inner is not None
    assert (inner.verb, inner.kind) == (verb, kind)


def test_other_things_worth_knowing() -> None:
    assert one("select 't'::regclass").more == {"casts": ("regclass",)}
    assert one("select a from t for update").more == {"locks": True}
    assert one("set local a = 1").more == {"local": True}
    assert one("drop schema a, b cascade").more == {"objects": ("a", "b"), "cascade": True}
    assert one("do language plperl 'x'").more == {"language": "plperl"}
    assert one("copy t to stdout csv force quote a, b").more == {"force_quote": ("a", "b")}
    assert one("alter system set a = 1").more == {"stored_setting": ("a", "1")}
    assert one("drop trigger x on s.t").more == {"objects": ("s.t.x",)}


def test_kinds_hold_everything_that_is_in_it() -> None:
    text = "with a as (insert into t values (1)), b as (delete from u) select purge()"
    assert set(one(text).kinds) == {"read", "write", "delete", "execute"}
    assert one(text).kind == "delete"
    assert one("insert into t values (1)").kinds == ("write",)


def test_verbs_are_closed() -> None:
    assert {"UNPARSABLE", "UNKNOWN", "SELECT", "DROP TABLE", "CREATE MATERIALIZED VIEW"} <= VERBS
    assert not any("?" in verb for verb in VERBS)
    assert {verb for verb, _ in STATEMENTS.values() if "?" not in verb} <= VERBS
