"""Where each column of a result comes from, and whether a WHERE chooses rows.

An expectation names the sources of each output: "t.a" bare, "~t.a" computed, "" none, "?" opaque, "*t" a star.
"""

from __future__ import annotations

import pytest

from proxy.core.statement import OutputColumn
from proxy.policy.sql import read_sql


def shown(output: OutputColumn) -> str:
    names = " ".join(f"{source.table}.{source.name}" if source.table else source.name for source in output.sources)
    if output.name == "*" and output.sources:
        names = "*" + " ".join(str(source.table) for source in output.sources)
    prefix = "" if output.bare or not names else "~"
    return f"{prefix}{names}{'?' if output.opaque else ''}"


EXACT = [
    ("select email from cust", ["cust.email"]),
    ("select c.email as e, s.t.b from cust c, s.t", ["cust.email", "s.t.b"]),
    ("select email from cust, orders", ["email"]),
    ("select lower(email), email || '', email::varchar(5), email from cust",
     ["~cust.email", "~cust.email", "~cust.email", "cust.email"]),
    ("select 1, 'x', null, now(), current_user, $1", ["", "", "", "", "", ""]),
    ("select count(*), count(email), max(email) from cust", ["", "~cust.email", "~cust.email"]),
    ("select count(*) filter (where email = 'x') from cust", ["~cust.email"]),
    ("select case when a then b else c end, coalesce(d), nullif(e, f), greatest(g, h) from t",
     ["~t.a t.b t.c", "~t.d", "~t.e t.f", "~t.g t.h"]),
    ("select array[a, b], row(a, b), (a, b), array[[a]] from t", ["~t.a t.b", "~t.a t.b", "~t.a t.b", "~t.a"]),
    ("select a[b], (c).d, (e).f.g from t", ["~t.b t.a", "~t.c", "~t.e"]),
    ("select c from cust c", ["~cust.*"]),
    ("select cust from cust", ["~cust.*"]),
    ("select (c).email, (c.*)::text, row_to_json(c), row(c.*) from cust c",
     ["~cust.email cust.c", "~cust.*", "~cust.*", "~cust.*"]),
    ("select c.row_to_json, c.max, c.count from cust c",
     ["~cust.row_to_json cust.*", "~cust.max cust.*", "cust.count"]),
    ("select (row_to_json(c)).x, (array_agg(c))[1].email from cust c", ["~cust.*", "~cust.*"]),
    ("select (c).b from cust c(a, b)", ["~cust.*"]),
    ("select (email).name from cust email", ["~cust.name cust.email"]),
    ("select (x).a from (select a from t) x", ["~t.a"]),
    ("select (select email from cust)", ["~cust.email"]),
    ("select (select max(b) from u) from t", ["~b"]),
    ("select (select u.b from u) from t", ["~u.b"]),
    ("select exists (select email from cust), email in (select x.a from x), array(select x.a from x) from cust",
     ["", "~cust.email x.a", "~x.a"]),
    ("select a from t union select b from u", ["~t.a u.b"]),
    ("select a, 1 from t union all select 2, b from u", ["~t.a", "~u.b"]),
    ("select a from t intersect (select b from u except select c from v)", ["~t.a u.b v.c"]),
    ("values ((select a from t), 1), (2, (select b from u))", ["~t.a", "~u.b"]),
    ("select column2 from (values ((select a from t), 1), (2, (select b from u))) v", ["~u.b"]),
    ("select y from (values ((select a from t), 1)) v(x, y)", [""]),
    ("select * from (select a, lower(b) as c from t) x", ["t.a", "~t.b"]),
    ("select x.* from (select a from t) x, u", ["t.a"]),
    ("select c from (select a as b, b as c from t) x", ["t.b"]),
    ("select x from (select a from t) x", ["~t.a"]),
    ("select c from (select a, b from t) x(c, d)", ["t.a"]),
    ("select a from (select * from t) x", ["t.a"]),
    ("select a from (select * from t) x(b, a)", ["~t.*"]),
    ("select a, q from (select *, 1 as q from t) x", ["t.a", ""]),
    ("select x.a from (select * from t, u) x", ["~t.a u.a"]),
    ("select a from t as x(a, b)", ["~t.*"]),
    ("select z from (select (c).* from cust c) r(x, y, z)", ["~cust.*"]),
    ("select j.a from (t join u on true) as j", ["~t.a u.a"]),
    ("select j.a from (t join u on true) as j(a)", ["~t.* u.*"]),
    ("select k.id from t join u using (id) as k", ["id"]),
    ("select id from t join (select b as id from u) x using (id)", ["~u.b t.id"]),
    ("with x as (select a from t) select a from x", ["t.a"]),
    ("with x(b) as (select a from t) select b from x", ["t.a"]),
    ("with x(b, c) as (select * from t) select c from x", ["~t.*"]),
    ("with x as materialized (select lower(a) as a from t) select a from x y", ["~t.a"]),
    ("with t as (select 1 as a) select a from t", [""]),
    ("with t as (select 1 as a) select a from s.t", ["s.t.a"]),
    ("with t as (select a from t) select a from t", ["t.a"]),
    ("with x as (select a from t), y as (select a as b from x) select b from y", ["t.a"]),
    ("with recursive r(a, b) as (select x, y from t union all select b, a from r) select a from r", ["~t.x t.y"]),
    ("with recursive r(a, b) as (select x, 1 from t union all select a, b + 1 from r) select a, b from r",
     ["~t.x", ""]),
    ("with recursive r as (select * from t union all select u.* from u join r using (id)) select a from r",
     ["~t.* u.*"]),
    ("with recursive a as (select * from b), b as (select x from t) select * from a", ["t.x"]),
    ("with recursive r(a) as (select x from t union all select a from r) search depth first by a set s "
     "cycle a set c using p select a, s, c, p from r", ["~t.x", "~t.x", "~t.x", "~t.x"]),
    ("with d as (delete from t returning a, b as c) select c from d", ["t.b"]),
    ("select e from t, lateral (select t.a as e) x", ["t.a"]),
    ("select g.n from generate_series(1, 2) g(n)", ["~"]),
    ("select v from t, unnest(array[t.a]) v", ["~t.a t.v"]),
    ("select value from t, json_each(t.a)", ["~t.a t.value"]),
    ("select r.x from t, json_to_record(t.a) as r(x int, y text)", ["~t.a"]),
    ("select x from xmltable('/a' passing (select a from t) columns x int path '.', y int path '.') q", ["~t.a"]),
    ("select j.x from t, json_table(t.a, '$' columns (x int path '$', nested '$.n' columns (y int path '$'))) j",
     ["~t.a"]),
    ("select string_agg(a, ',' order by b) from t", ["~t.a"]),
    ("select percentile_disc(0.5) within group (order by a) from t", ["~t.a"]),
    ("select first_value(a) over (partition by b order by c), rank() over w from t window w as (order by d)",
     ["~t.a", ""]),
    ("select distinct on (b) a from t where c order by d", ["t.a"]),
    ("select a as b from t group by a having max(c) > 1", ["t.a"]),
    ("select purge(), purge(a), lower(purge()) from t", ["?", "~t.a?", "?"]),
    ("select x from purge() x", ["?"]),
    ("select a <=> b from t", ["~t.a t.b?"]),
    ("select query_to_xml('select 1', true, true, '')", ["?"]),
    ("select email(c) from cust c", ["~cust.*?"]),
    ("select x.row_to_json from (select a from t) x", ["~t.a?"]),
    ("insert into t (a) values (1) returning a, b", ["t.a", "t.b"]),
    ("insert into t (a, b) select x, 1 from u returning a, b", ["~t.a u.x", "t.b"]),
    ("insert into t select x, y from u returning a", ["~t.* u.x u.y"]),
    ("update t set a = b returning a, b", ["~t.a t.b", "t.b"]),
    ("update t set a = u.x from u returning a, u.x, old.b", ["~t.a u.x", "u.x", "t.b"]),
    ("delete from t using u where t.a = u.b returning t.a, u.b", ["t.a", "u.b"]),
    ("merge into t using u on t.a = u.a when matched then update set b = u.c returning merge_action(), t.b",
     ["", "~t.b u.c"]),
    ("insert into t (a) values (1) on conflict (a) do update set b = excluded.c returning b", ["~t.b t.c"]),
    ("insert into t (a) values (1)", []),
    ("copy t (a, b) to stdout", ["t.a", "t.b"]),
    ("copy (select lower(a) from t) to stdout", ["~t.a"]),
    ("explain select a from t where b", ["~t.b t.a"]),
    ("show work_mem", [""]),
    ("select json_object('a': a), json_array(b), json_value(c, '$'), json_arrayagg(d), json_objectagg(e: f) from t",
     ["~t.a", "~t.b", "~t.c", "~t.d", "~t.e t.f"]),
    ("select xmlelement(name x, xmlattributes(a as y), b), xmlforest(c) from t", ["~t.a t.b", "~t.c"]),
    ("select overlay(a placing b from 2), trim(both c from d), extract(year from e) from t",
     ["~t.a t.b", "~t.d t.c", "~t.e"]),
]  # fmt: skip

INEXACT = [
    ("select * from t", ["*t"]),
    ("table t", ["*t"]),
    ("select * from t, s.u", ["*t", "*s.u"]),
    ("select c.*, 1 from cust c", ["*cust", ""]),
    ("select * from (select * from t) x", ["*t"]),
    ("select * from (select *, lower(a) as q from t) x", ["*t", "~t.a"]),
    ("select * from t join u using (id)", ["*t", "*u"]),
    ("select * from (select a from t) x natural join (select a from u) y", ["t.a", "u.a"]),
    ("select * from t union select * from u", ["~*t u"]),
    ("select (f(a)).* from t", ["~*t?"]),
    ("select * from (select (c).* from cust c) x", ["~*cust"]),
    ("select * from json_each((select a from t))", ["~*t"]),
    ("delete from t returning *", ["*t"]),
    ("update t set a = u.b from u returning t.*", ["~t.a u.b", "*t"]),
    ("copy t to stdout", ["*t"]),
]


@pytest.mark.parametrize(("text", "outputs"), EXACT)
def test_exact_outputs(text: str, outputs: list[str]) -> None:
    (statement,) = read_sql(text)
    assert statement.outputs is not None
    found = [shown(output) for output in statement.outputs]
    assert found == [each.rstrip("~") if each == "~" else each for each in outputs]
    assert statement.outputs_exact


@pytest.mark.parametrize(("text", "outputs"), INEXACT)
def test_inexact_outputs(text: str, outputs: list[str]) -> None:
    (statement,) = read_sql(text)
    assert statement.outputs is not None
    assert [shown(output) for output in statement.outputs] == outputs
    assert not statement.outputs_exact


@pytest.mark.parametrize("text", ["execute p", "fetch c", "call p()", "show all"])
def test_unknown_outputs(text: str) -> None:
    (statement,) = read_sql(text)
    assert statement.outputs is None
    assert not statement.outputs_exact


def test_the_result_of_select_into_is_not_sent() -> None:
    (statement,) = read_sql("select email into n from cust")
    assert statement.outputs == ()


ALWAYS_TRUE = """
true
1 = 1
'a' = 'a'
1 <> 2
2 > 1
not false
not 1 = 2
x = x
t.x = x
x >= x
x is not distinct from x
x is null or x is not null
x = 5 or true
x = 5 or 1 = 1
1 = 1 and 'a' = 'a'
'a' like '%'
x like '%'
x ilike '%%'
null is null
't'
'yes'::bool
$1
$1 = $2
1 = $1
now() > '2000-01-01'
random() < 2
length('a') = 1
1 in (1, 2)
1 between 0 and 2
exists (select 1)
not (1 > 2 or false)
true is true
-'1'
-'1' = 1
'1'::text::bool
$1::bool is null
current_user = 'x'
(1 = 1)
1.0 = 1
'a' = 'A'
x = 1 or not (1 = 2)
"""

PRESENT = """
x
false
1 = 0
1 = 1 and x = 2
'1' = '2' and x = 1
not true
not x
x = 1
x = y
t.x = u.x
x > x
x like 'a%'
x like '_%'
x is null
x is null or y is not null
x in (1, 2)
x = any($1)
x = $1
exists (select 1 from u)
x = 5 or y = 6
x between 1 and 2
not (x = 1)
f(x)
null = null
null
current of c
lower(x) = 'a'
x = (select 1)
"""


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("predicate", _lines(ALWAYS_TRUE))
def test_always_true(predicate: str) -> None:
    (statement,) = read_sql(f"delete from t where {predicate}")
    assert statement.where == "always_true"
    assert read_sql(f"select a from t where {predicate}")[0].where == "always_true"


@pytest.mark.parametrize("predicate", _lines(PRESENT))
def test_where_present(predicate: str) -> None:
    (statement,) = read_sql(f"update t set a = 1 where {predicate}")
    assert statement.where == "present"
