"""Lineage against real servers: a canary in a column must show up only where the facts say it may.

Every query runs on PostgreSQL 15 and 18, over a table whose column email holds a canary. An output column in which
the canary shows must have cust.email (or all of cust, or an unknown table's email) among its sources, or be opaque.
A column that the server itself traces to a table's column must have that column among its sources; one that is
called bare must be the very one. Names and number of columns must be the server's.
"""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from proxy.core.statement import ColumnRef, OutputColumn
from proxy.policy.sql import read_sql
from tests.peers.postgres import PostgresServer

pytestmark = pytest.mark.peer

SETUP = """
create table cust (id int primary key, name text, email text, tags text[], doc jsonb);
create table orders (oid int primary key, cust_id int, note text, total numeric);
insert into cust select i, 'name' || i, 'CANARY' || i, array['tag'], '{}' from generate_series(1, 3) i;
insert into orders select i, i, 'note' || i, i from generate_series(1, 3) i;
"""

QUERIES = r"""
select email from cust
select c.email e from cust c
select public.cust.email from public.cust
select * from cust
table cust
select c from cust c
select c.* from cust c, orders
select cust from cust
select email::text, email::varchar(5), lower(email), email||'' from cust
select name from cust
select case when id > 1 then email else name end from cust
select case when email like 'C%' then 'x' else 'y' end from cust
select coalesce(email), max(email) from cust group by email
select max(email) from cust
select array_agg(email), string_agg(email, ',') from cust
select unnest(array[email]) from cust
select (select email from cust limit 1)
select (select email from orders limit 1) from cust
select array(select email from cust)
values ((select email from cust limit 1), 2)
select note from orders union select email from cust
select id, name from cust union all select id, email from cust
select email from cust except select name from cust
select name from cust except select email from cust
select to_jsonb(c), row_to_json(c.*), json_build_object('a', c.email) from cust c
select c.row_to_json from cust c
select c.max from cust c
select c.json_agg from cust c
select row_to_json(c) ->> 'email' from cust c
select (c).email, (c).name from cust c
select (c.*)::text from cust c
select row(c.email, 1), row(c.*) from cust c
select (x.c).email from (select c from cust c) as x(c)
select (x).* from (select cust from cust) q(x)
with x as (select * from cust) select email from x
with x as materialized (select email, name from cust) select name from x
with x(a, b) as (select email, name from cust) select a from x
with x(a, b) as (select * from cust) select a, b, email from x
with x(a, b, c) as (select * from cust) select c from x
with x(a, b) as (select email, name from cust) select b from x
with recursive r(a, b, n) as (select name, email, 1 from cust union all select b, a, n+1 from r where n < 3) select a from r
with recursive r(a, b, n) as (select name, email, 1 from cust union all select b, a, n+1 from r where n < 3) select n from r
with recursive r as (select id, name from cust where id=1 union all select c.id, c.email from cust c join r on c.id = r.id+1) select name from r
with recursive a as (select * from b), b as (select email from cust) select * from a
with recursive r as (select *, 1 as n from cust union all select c.*, n+1 from cust c join r using (id) where n < 2) select email, n from r
with x as (select 1 as id, 'y' as email) select email from x
with cust as (select 1 as id, 'y'::text as email) select email from cust
with cust as (select 1 as id, 'y'::text as email) select email from public.cust
with cust as (select * from cust) select email from cust
with a as (with b as (select email from cust) select * from b) select email from a
select * from (select email, name from cust) x
select x.name from (select email, name from cust) x
select name from (select email, name from cust) x(name, other)
select name from (select * from cust) x(id, name2, name)
select q from (select id, name, email q from cust) x
select x from (select email from cust) x
select x.* from (select email from cust) x, orders o
select email from cust join orders on id = cust_id
select email from cust natural join orders
select note from cust join orders on id = cust_id
select id from cust join (select cust_id id, note from orders) o using (id)
select j.email from (cust join orders on id = cust_id) j
select j.note from (cust join orders on id = cust_id) as j
select j.c from (cust c join orders on id = cust_id) as j(a, b, c)
select u.email from cust a join cust b using (email) as u
select email from cust a join cust b using (email)
select email from cust a full join (select name as email from cust) b using (email)
select l.e from orders, lateral (select email e from cust where id = cust_id) l
select l.e from cust c, lateral (select c.email e) l
select l.e from cust c cross join lateral (values (c.email)) l(e)
select g.v from cust c, unnest(array[c.email]) g(v)
select g from cust c, unnest(array[c.email]) g
select v from cust c, unnest(array[c.email], array[1]) with ordinality as g(v, w, o)
select o from cust c, unnest(array[c.email], array[1]) with ordinality as g(v, w, o)
select value from cust c, jsonb_each_text(to_jsonb(c))
select key from cust c, jsonb_each_text(to_jsonb(c))
select r.email from cust c, jsonb_to_record(to_jsonb(c)) as r(email text)
select r.* from cust c, jsonb_to_record(to_jsonb(c)) as r(email text)
select j.* from cust c, json_each(row_to_json(c)) j
select count(*), count(email), min(id) from cust
select count(*) filter (where email like 'C%') from cust
select percentile_disc(0.5) within group (order by email) from cust
select mode() within group (order by email) from cust
select string_agg(name, ',' order by email) from cust
select first_value(email) over (order by id), row_number() over (order by email) from cust
select lag(name) over w from cust window w as (order by email)
select distinct on (email) name from cust
select distinct email from cust
select name from cust order by email
select name, email as e from cust order by e
select name from cust where email like 'C%'
select name from cust group by name having max(email) > 'a'
select exists(select email from cust)
select 'CANARY1' in (select email from cust)
select email = any(array['x']) from cust
select nullif(email, name), greatest(email, name), concat(email, 1), format('%s', email) from cust
select email collate "C" from cust
select tags[1], doc->'x' from cust
select array[email, name], array[[email]] from cust
select xmlelement(name a, email) from cust
select xmlforest(email as x, name) from cust
select x.v from cust, xmltable('/a' passing xmlelement(name a, email) columns v text path '.') x
select query_to_xml('select email from cust', true, true, '')
select table_to_xml('cust', true, true, '')
select * from (values (1, (select email from cust limit 1))) v(a, b)
select b from (values (1, (select email from cust limit 1))) v(a, b)
select a from (values (1, (select email from cust limit 1))) v(a, b)
update cust set name = 'x' where id = 1 returning email
update cust set name = email returning name
update cust c set name = o.note from orders o where o.cust_id = c.id returning c.email, o.note
update orders o set note = c.email from cust c where o.cust_id = c.id returning o.*
delete from cust where id = 2 returning *
delete from cust c using orders o where c.id = o.cust_id returning o.note, email
insert into orders select 10, 1, email, 1 from cust limit 1 returning note
insert into cust(id, email) values (9, 'CANARY9') returning email, id
insert into cust(id, email) values (1, 'x') on conflict (id) do update set name = excluded.email || cust.email returning name
with d as (delete from cust returning email) select * from d
with d as (delete from cust returning email), i as (insert into orders select 11, 1, email, 1 from d limit 1 returning note) select note from i
with u as (update cust set name = 'x' returning *) select name, email from u
select a.email from cust a, cust b
select cust.email from cust, orders
select (array_agg(c))[1].email from cust c
select (array_agg(c))[1] from cust c
select (select c from cust c limit 1)
select (select row(email) from cust limit 1)
select (r).f1 from (select row(email) r from cust) x
select s.* from (select c, o from cust c, orders o) s
select a.b from (select email from cust) a(b)
select quote_literal(c) from cust c
select c::text, c.quote_literal from cust c
select concat_ws(',', c.*) from cust c
select md5(email), length(email), email like 'a%' from cust
select t.x from cust as t(x, y, z)
select t.z from cust as t(x, y, z)
select t.doc from cust as t(x, y, z)
select * from cust as t(x, y, z)
select substring(email from 1 for 3), trim(both 'x' from email), overlay(email placing 'x' from 20), extract(year from now()) from cust
select email at time zone 'utc' from (select now() email) x
select json_object('a': email), json_array(email), json_arrayagg(email), json_objectagg(name: email) from cust group by email, name
select min(email) over (partition by id), sum(id) over (order by email rows between 1 preceding and current row) from cust
select grouping(email), name from cust group by grouping sets ((email, name), (name))
select current_user, current_date, localtimestamp, user, session_user
select 1 as email, 'x' as name
select true, null, 1.5, 'x', -1, b'1', interval '1 day', date '2020-01-01', array[1], row(1), 1+1, not true, 1 is null
select current_catalog, current_schema, cast(1 as text), '1'::int, (select 1), (select 1 as q), exists(select 1), array(select 1), least(1,2), coalesce(1), case when true then 1 end, case when true then 1 else id end from cust
select x.row_to_json from (select * from cust) x
select (select c.email) from cust c
select (select (select email)) from cust
select a from (select email, name from cust) x(b, a)
select email from (select 1 as q) s, cust
select email from (select name as email from cust) s
select (with x as (select email from cust) select max(email) from x)
select lower((with x as (select email from cust) select max(email) from x)) from orders
select * from (select email from cust union select note from orders) u
select u.email from (select note as email from orders union select email from cust) u
select u.note from (select id, name as note from cust intersect select id, email from cust) u
select (a).email from (select array_agg(c) from cust c) s(b), unnest(b) a
select a.email from (select array_agg(c) from cust c) s(b), unnest(b) a
select (jsonb_agg(c))->0->>'email' from cust c
select s.j->>'email' from (select to_jsonb(c) j from cust c) s
select k.j from (select row_to_json(q) j from (select email from cust) q) k
select string_agg(q.x, '') from (select email from cust) q(x)
select v.x from cust c cross join (values (1)) w(y), lateral (select c.email) v(x)
select n from orders o, lateral (with x as (select email from cust where id = o.cust_id) select email from x) l(n)
select array_to_string(array(select email from cust), ',')
select (select string_agg(email, ',') from cust where id = o.cust_id) from orders o
select greatest((select max(email) from cust), note) from orders
select name from cust where id = (select min(id) from cust where email like 'C%')
select (t.r).name from (select c as r from cust c) t
select (t.r).email from (select c as r from cust c) t
select r.email from (select (c).* from cust c) r
select (c).* from cust c
select r.x from (select (c).* from cust c) r(x, y, z)
select r.z from (select (c).* from cust c) r(x, y, z)
select email from only cust
select ctid, xmin, tableoid::regclass from cust
select name as email, email as name from cust
select "email" from "cust"
select EMAIL from CUST
select min(c) from (select email as c from cust) x
select x."?column?" from (select email || '' from cust) x
select lower from (select lower(email) from cust) x
select max from (select max(email) from cust) x
select "case" from (select case when true then email end from cust) x
select coalesce from (select coalesce(email, '') from cust) x
select row from (select row(email) from cust) x
select array[c.email] || array[c.name] from cust c
select regexp_replace(email, 'x', 'y'), split_part(email, 'Y', 1), reverse(email) from cust
select translate(email, 'abc', 'xyz'), left(email, 3), repeat(email, 2) from cust
select encode(convert_to(email, 'utf8'), 'escape') from cust
select to_tsvector('simple', email) from cust
select regexp_matches(email, '(.*)') from cust
select m[1] from cust, regexp_matches(email, '(.*)') m
select t from cust, string_to_table(email, '1') t
select json_build_object('k', json_build_array(email)) from cust
select (jsonb_populate_record(null::cust, to_jsonb(c))).email from cust c
select p.email from cust c, jsonb_populate_record(null::cust, to_jsonb(c)) p
select p.id, p.email from cust c, jsonb_populate_record(c, '{}') p
select last_value(email) over w, nth_value(c, 1) over w from cust c window w as (order by id)
select coalesce(name, (select max(c2.email) from cust c2)) from cust
select o.* from orders o union all select id, id, email, 1 from cust
insert into orders (oid, note) select 20, email from cust limit 1 returning (select note), note, orders
insert into orders values (21, 1, (select max(email) from cust), 1) returning orders.*
insert into orders (oid, note) values (1, (select max(email) from cust)) on conflict (oid) do update set note = excluded.note returning note
update orders set (note, total) = (select email, 1 from cust limit 1) returning note, total
update orders set note = (select email from cust where id = cust_id) where oid = 1 returning lower(note)
with x as (update orders o set note = c.email from cust c where c.id = o.cust_id returning o.note) select note from x
with recursive r(n, x, y, z) as (select 1, email, name, '' from cust union all select n+1, z, x, y from r where n < 4) select y from r
with recursive r(n, x, y, z) as (select 1, email, name, '' from cust union all select n+1, z, x, y from r where n < 4) select z from r
with recursive r(n, x) as (select 1, name from cust union all select n+1, (select max(email) from cust) from r where n < 3) select x from r
with recursive r(n, x) as (select 1, name from cust union all (with q as (select n+1 as n, (select max(email) from cust) as e from r where n < 3) select * from q)) select x from r
""".strip().splitlines()

# What a server of that version, or built without libxml, does not have; all else must run.
MISSING = ("42601", "42883", "42703", "0A000", "42P01", "42P10")
MISSING_LIMIT = 12

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(params=["postgres15", "postgres18"], scope="module")
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.database("sql_lineage", SETUP) as name, server.connect(dbname=name) as connection:
        connection.autocommit = True
        yield connection


def covers(output: OutputColumn, table: str, column: str) -> bool:
    names = {ColumnRef(each, name) for each in (table, f"public.{table}", None) for name in (column, "*")}
    return output.opaque or any(source in names for source in output.sources)


def test_the_canary_shows_only_where_the_facts_say(connection: Connection) -> None:
    attributes = {
        (relation, number): (table, column)
        for relation, table, number, column in connection.execute(
            "select attrelid, attrelid::regclass::text, attnum, attname from pg_attribute"
            " where attrelid in ('cust'::regclass, 'orders'::regclass)"
        )
    }
    missing: list[str] = []
    shown = 0
    for query in QUERIES:
        (statement,) = read_sql(query)
        outputs = statement.outputs
        assert outputs is not None, query
        try:
            with connection.transaction(force_rollback=True):
                cursor = connection.execute(query.encode())
                rows = cursor.fetchall()
        except psycopg.Error as error:
            assert error.sqlstate in MISSING, (query, error)
            missing.append(query)
            continue
        assert cursor.description is not None and cursor.pgresult is not None
        if not statement.outputs_exact:
            if any("CANARY" in str(row) for row in rows):
                shown += 1
                assert any(covers(output, "cust", "email") for output in outputs), query
            continue
        assert [output.name for output in outputs] == [column.name for column in cursor.description], query
        for place, output in enumerate(outputs):
            if any("CANARY" in str(row[place]) for row in rows):
                shown += 1
                assert covers(output, "cust", "email"), (query, output)
            traced = attributes.get((cursor.pgresult.ftable(place), cursor.pgresult.ftablecol(place)))
            if traced is not None:
                table, column = str(traced[0]), str(traced[1])
                assert covers(output, table, column), (query, output, traced)
                if output.bare and output.sources[0].name != "*":
                    assert output.sources[0].name == column, (query, output, traced)
    assert shown > 100
    assert len(missing) <= MISSING_LIMIT, missing
