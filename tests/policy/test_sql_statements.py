"""What each statement is and touches: a table of texts with the facts that are expected of them."""

from __future__ import annotations

import pytest

from proxy.core.statement import Statement
from proxy.policy.sql import VERBS, read_sql


def one(text: str) -> Statement:
    statements = read_sql(text)
    assert len(statements) == 1, statements
    return statements[0]


# text, verb, kind, tables read, tables written; a trailing "!" on the kind: opaque.
TABLE = """
select 1 | SELECT | read | |
select * from t | SELECT | read | t |
table t | SELECT | read | t |
values (1), (2) | SELECT | read | |
select * from only s.t | SELECT | read | s.t |
select * from db.s.t | SELECT | read | s.t |
select * from "S"."T" | SELECT | read | S.T |
select * from "a.b" | SELECT | read | "a.b" |
select * from a."b.c", "a.b".c | SELECT | read | a."b.c" "a.b".c |
select * from T, S.U | SELECT | read | t s.u |
select * from t for update | SELECT | read | t |
select * from t for share of t nowait | SELECT | read | t |
select * from t tablesample bernoulli (10) repeatable (1) | SELECT | read | t |
select * from a join b using (id) left join c on a.x = c.x | SELECT | read | a b c |
select * from a natural full join (b cross join c) | SELECT | read | a b c |
select * from (select * from (select * from t) x) y | SELECT | read | t |
select (select max(a) from u) from t where exists (select 1 from v) | SELECT | read | t v u |
select * from t where a in (select b from u) order by (select c from v limit 1) | SELECT | read | t u v |
select * from t where (a, b) = (select c, d from u) | SELECT | read | t u |
select a from t union select b from u except (select c from v intersect select d from w) | SELECT | read | t u v w |
select * from t, lateral (select * from u where u.id = t.id) x | SELECT | read | t u |
select * from rows from (generate_series(1, 2), unnest(array[1])) with ordinality | SELECT | read | |
select * from unnest(array(select a from t)) | SELECT | read | t |
select * from pg_catalog.pg_class | SELECT | read | pg_catalog.pg_class |
select array(select a from t), row((select b from u)) | SELECT | read | t u |
select case when exists (select 1 from t) then (select 1 from u) end | SELECT | read | t u |
select sum(a) over (partition by (select 1 from u)) from t | SELECT | read | t u |
select a from t group by grouping sets ((a), ()) having count(*) > (select b from u) | SELECT | read | t u |
select distinct on ((select 1 from u)) a from t | SELECT | read | t u |
select a[(select 1 from u)] from t | SELECT | read | t u |
select * from json_table((select a from t), '$' columns (x int path '$')) j | SELECT | read | t |
select * from xmltable('/a' passing (select a from t) columns x int path '.') x | SELECT | read | t |
select xmlelement(name a, (select b from t)) | SELECT | read | t |
select json_object('a': (select b from t)), json_array(select c from u) | SELECT | read | t u |
select x is json, json_value(x, '$.a'), json_exists(x, '$'), json_query(x, '$') from t | SELECT | read | t |
select now() at time zone 'utc', current_user, extract(year from x), x::text collate "C" from t | SELECT | read | t |
select a between 1 and 2, a is distinct from 1, a similar to 'x', nullif(a, 1) from t | SELECT | read | t |
select * from t limit (select 1 from u) offset (select 2 from v) | SELECT | read | t u v |
with x as (select * from t) select * from x | SELECT | read | t |
with x as (select * from t) select * from x, s.x, y | SELECT | read | t s.x y |
with t as (select * from t) select * from t | SELECT | read | t |
with x as (with y as (select 1 from t) select * from y) select * from x, y | SELECT | read | t y |
with x as (select 1 from t), y as (select * from x) select * from y | SELECT | read | t |
with recursive x as (select 1 from t union all select 1 from x, u) select * from x | SELECT | read | t u |
with recursive a as (select * from b), b as (select 1 from t) select * from a | SELECT | read | t |
with x as (select 1 from t) select * from (select * from x) y where exists (select 1 from x) | SELECT | read | t |
with unused as (select 1 from secrets) select 1 | SELECT | read | secrets |
with x as (select 1) select * from public.x | SELECT | read | public.x |
with d as (delete from t returning *) select * from d | SELECT | delete | | t
with i as (insert into t select * from u returning *) select * from i, v | SELECT | write | u v | t
with u as (update t set a = 1) select 1 | SELECT | write | | t
with a as (insert into t values (1)), b as (delete from u) select 1 | SELECT | delete | | t u
with t as (select 1) insert into t select * from t | INSERT | write | | t
with t as (select 1 as a) delete from t using t x | DELETE | delete | | t
with t as (select 1 as a) update t set a = 2 | UPDATE | write | | t
insert into t values (1, 2) | INSERT | write | | t
insert into s.t (a) default values | INSERT | unknown | |
insert into s.t default values | INSERT | write | | s.t
insert into t select * from u | INSERT | write | u | t
insert into t values ((select a from u)) | INSERT | write | u | t
insert into t with x as (select * from u) select * from x | INSERT | write | u | t
insert into t values (1) on conflict (a) do update set b = (select c from u) where t.d > 1 | INSERT | write | u | t
insert into t values (1) on conflict do nothing returning (select a from u) | INSERT | write | u | t
update t set a = 1 | UPDATE | write | | t
update only s.t x set a = u.b from u where x.id = u.id | UPDATE | write | u | s.t
update t set (a, b) = (select c, d from u) | UPDATE | write | u | t
update t set a = default where current of c | UPDATE | write | | t
delete from t | DELETE | delete | | t
delete from t using u, v where t.id = u.id returning (select 1 from w) | DELETE | delete | u v w | t
merge into t using u on t.a = u.a when matched then update set b = u.b | MERGE | write | u | t
merge into t using (select * from u) x on t.a = x.a when not matched then insert values (x.a) | MERGE | write | u | t
merge into t using u on t.a = u.a when matched then delete when not matched then do nothing | MERGE | delete | u | t
select * into n from t | SELECT INTO | define | t | n
select 1 into temp n | SELECT INTO | define | | n
create table n as select * from t | CREATE TABLE AS | define | t | n
create table n as table t with no data | CREATE TABLE AS | define | t | n
create table n as execute p(1) | CREATE TABLE AS | define! | | n
create materialized view n as select * from t | CREATE MATERIALIZED VIEW | define | t | n
refresh materialized view concurrently n | REFRESH MATERIALIZED VIEW | write | | n
create view s.v as select * from t | CREATE VIEW | define | t | s.v
create or replace recursive view v (n) as select 1 union all select n from v | CREATE VIEW | define | | v
truncate t, only s.u restart identity cascade | TRUNCATE TABLE | delete | | t s.u
drop table t, s.u cascade | DROP TABLE | delete | | t s.u
drop view v | DROP VIEW | delete | | v
drop materialized view v | DROP MATERIALIZED VIEW | delete | | v
drop foreign table v | DROP FOREIGN TABLE | delete | | v
drop index concurrently i | DROP INDEX | delete | |
drop function f(int) | DROP FUNCTION | delete | |
drop schema s cascade | DROP SCHEMA | delete | |
drop trigger x on s.t | DROP TRIGGER | delete | | s.t
drop rule x on t | DROP RULE | delete | | t
drop policy x on t | DROP POLICY | admin | | t
drop cast (int as text) | DROP CAST | delete | |
drop type x, y | DROP TYPE | delete | |
drop domain x | DROP DOMAIN | delete | |
drop sequence x | DROP SEQUENCE | delete | |
drop extension x | DROP EXTENSION | admin | |
drop owned by x | DROP OWNED | admin | |
drop role x | DROP ROLE | admin | |
drop database x | DROP DATABASE | delete | |
drop tablespace x | DROP TABLESPACE | delete | |
drop subscription x | DROP SUBSCRIPTION | admin | |
drop user mapping for x server y | DROP USER MAPPING | admin | |
drop operator class x using btree | DROP OPERATOR CLASS | delete | |
drop text search configuration x | DROP TEXT SEARCH CONFIGURATION | delete | |
create table n (a int default f(), like l, check (g(a) > 0)) inherits (p) | CREATE TABLE | define | l p | n
create table n partition of p for values in (1) | CREATE TABLE | define | p | n
create table n partition of p for values in (purge()) | CREATE TABLE | define! | p | n
create temp table n (a int) | CREATE TABLE | define | | n
create foreign table n (a int) server s | CREATE FOREIGN TABLE | define | | n
create index on s.t (lower(a)) where b > 0 | CREATE INDEX | define | | s.t
create index on t (purge(a)) | CREATE INDEX | define! | | t
create unique index concurrently i on t (a) include (b) | CREATE INDEX | define | | t
create sequence s | CREATE SEQUENCE | define | | s
create schema s create table t (a int) grant select on t to x | CREATE SCHEMA | admin | | t
create schema s | CREATE SCHEMA | define | |
create function f() returns int language sql as 'select 1' | CREATE FUNCTION | define | |
create function f() returns int begin atomic select a from t; delete from u; end | CREATE FUNCTION | define | t | u
create procedure p() language plpgsql as 'begin end' | CREATE PROCEDURE | define | |
create trigger x after insert on t execute function s.f() | CREATE TRIGGER | define | | t
create rule r as on insert to t do instead insert into u values (new.a) | CREATE RULE | define | | t u
create type x as enum ('a') | CREATE TYPE | define | |
create type x as (a int) | CREATE TYPE | define | | x
create type x as range (subtype = int) | CREATE TYPE | define | |
create type x | CREATE TYPE | define | |
create domain d as int check (value > 0) | CREATE DOMAIN | define | |
create aggregate a(int) (sfunc = f, stype = int) | CREATE AGGREGATE | define | |
create operator === (leftarg = int, rightarg = int, function = f) | CREATE OPERATOR | define | |
create cast (int as text) with function f(int) | CREATE CAST | define | |
create statistics s on a, b from t | CREATE STATISTICS | define | t |
create policy p on t using (a = current_user) | CREATE POLICY | admin | | t
create role r | CREATE ROLE | admin | |
create user r | CREATE USER | admin | |
create group r | CREATE GROUP | admin | |
create database d | CREATE DATABASE | admin | |
create extension e | CREATE EXTENSION | admin | |
create publication p for table t | CREATE PUBLICATION | admin | | t
create subscription s connection 'x' publication p | CREATE SUBSCRIPTION | admin | |
create server s foreign data wrapper f | CREATE SERVER | admin | |
create user mapping for x server s | CREATE USER MAPPING | admin | |
create event trigger e on ddl_command_start execute function f() | CREATE EVENT TRIGGER | admin | |
create tablespace x location '/x' | CREATE TABLESPACE | admin | |
create language l | CREATE EXTENSION | admin | |
import foreign schema s from server x into y | IMPORT FOREIGN SCHEMA | admin | |
alter table t add column a int | ALTER TABLE | define | | t
alter table t add column a int default purge() | ALTER TABLE | define! | | t
alter table t alter a type int using purge(a) | ALTER TABLE | define! | | t
alter table t add constraint x foreign key (a) references u | ALTER TABLE | define | u | t
alter table t rename to u | ALTER TABLE | define | | t
alter table t rename column a to b | ALTER TABLE | define | | t
alter view v rename to w | ALTER VIEW | define | | v
alter table t set schema s | ALTER TABLE | define | | t
alter index i set (fillfactor = 50) | ALTER INDEX | define | | i
alter sequence s restart | ALTER SEQUENCE | define | | s
alter function f(int) stable | ALTER FUNCTION | define | |
alter function f(int) owner to x | ALTER FUNCTION | admin | |
alter role r rename to s | ALTER ROLE | admin | |
alter database d rename to e | ALTER DATABASE | admin | |
alter database d set work_mem = 1 | ALTER DATABASE | admin | |
alter role r set work_mem = 1 | ALTER ROLE | admin | |
alter role r superuser | ALTER ROLE | admin | |
alter system set work_mem = 1 | ALTER SYSTEM | admin | |
alter default privileges grant select on tables to x | ALTER DEFAULT PRIVILEGES | admin | |
alter type x add value 'b' | ALTER TYPE | define | |
alter domain d set not null | ALTER DOMAIN | define | |
alter extension e update | ALTER EXTENSION | admin | |
alter policy p on t using (true) | ALTER POLICY | admin | | t
alter subscription s disable | ALTER SUBSCRIPTION | admin | |
comment on table s.t is 'x' | COMMENT | define | | s.t
comment on column s.t.a is 'x' | COMMENT | define | | s.t
comment on function f() is 'x' | COMMENT | define | |
security label on table t is 'x' | SECURITY LABEL | admin | | t
grant select on s.t, u to x | GRANT | admin | | s.t u
grant select (a) on t to x | GRANT | admin | | t
grant all on all tables in schema s to x | GRANT | admin | |
revoke all on t from x | REVOKE | admin | | t
grant a to b | GRANT ROLE | admin | |
revoke a from b | REVOKE ROLE | admin | |
reassign owned by a to b | REASSIGN OWNED | admin | |
vacuum (full, analyze) s.t | VACUUM | admin | | s.t
vacuum | VACUUM | admin | |
analyze t (a) | ANALYZE | admin | | t
cluster t using i | CLUSTER | admin | | t
reindex table t | REINDEX | admin | | t
reindex database d | REINDEX | admin | |
checkpoint | CHECKPOINT | admin | |
load 'x' | LOAD | admin | |
lock table t in access share mode | LOCK TABLE | read | t |
lock t | LOCK TABLE | write | t |
copy t to stdout | COPY | transfer | t |
copy t from stdin | COPY | write | | t
copy t from stdin where a > 0 | COPY | write | | t
copy (select * from t) to stdout | COPY | transfer | t |
copy (delete from t returning *) to stdout | COPY | delete | | t
copy (select purge()) to stdout | COPY | execute! | |
copy t to '/x' | COPY | admin | t |
copy t from '/x' | COPY | admin | | t
copy t to program 'x' | COPY | admin! | t |
copy (select * from t) to program 'x' | COPY | admin | t |
do 'begin end' | DO | execute! | |
do language plpython3u $$x$$ | DO | execute! | |
call s.p(1) | CALL | execute! | |
call p((select a from t)) | CALL | execute! | t |
execute p | EXECUTE | execute! | |
execute p((select a from t)) | EXECUTE | execute! | t |
prepare p as select * from t | PREPARE | read | t |
prepare p as delete from t where a = $1 | PREPARE | delete | | t
deallocate p | DEALLOCATE | session | |
deallocate all | DEALLOCATE | session | |
declare c cursor for select * from t | DECLARE | read | t |
declare c cursor for select purge() | DECLARE | execute! | |
fetch 5 from c | FETCH | read | |
move 5 from c | MOVE | read | |
close c | CLOSE | session | |
explain select * from t | EXPLAIN | read | t |
explain delete from t | EXPLAIN | read | | t
explain analyze delete from t | EXPLAIN | delete | | t
explain (analyze, buffers) insert into t values (1) | EXPLAIN | write | | t
explain (analyze false) delete from t | EXPLAIN | read | | t
explain (analyze 0) delete from t | EXPLAIN | read | | t
explain (analyze off, analyze on) delete from t | EXPLAIN | delete | | t
explain (analyze maybe) delete from t | EXPLAIN | delete | | t
explain select purge() | EXPLAIN | execute! | |
explain analyze execute p | EXPLAIN | execute! | |
explain create table n as select * from t | EXPLAIN | read | t | n
show work_mem | SHOW | read | |
show all | SHOW | read | |
set work_mem = '4MB' | SET | session | |
set role x | SET | admin | |
set session authorization x | SET | admin | |
reset work_mem | RESET | session | |
set constraints all deferred | SET CONSTRAINTS | session | |
discard all | DISCARD | session | |
listen c | LISTEN | session | |
unlisten * | UNLISTEN | session | |
notify c, 'x' | NOTIFY | write | |
begin | BEGIN | session | |
start transaction isolation level serializable | BEGIN | session | |
commit and chain | COMMIT | session | |
end | COMMIT | session | |
rollback | ROLLBACK | session | |
abort | ROLLBACK | session | |
savepoint a | SAVEPOINT | session | |
release a | RELEASE | session | |
rollback to savepoint a | ROLLBACK TO | session | |
prepare transaction 'x' | PREPARE TRANSACTION | session | |
commit prepared 'x' | COMMIT PREPARED | session | |
rollback prepared 'x' | ROLLBACK PREPARED | session | |
select purge() | SELECT | execute! | |
select * from purge() | SELECT | execute! | |
select * from t where purge(a) | SELECT | execute! | t |
select a from t order by purge(a) | SELECT | execute! | t |
select count(*) filter (where purge()) from t | SELECT | execute! | t |
select sum(a) over (order by purge()) from t | SELECT | execute! | t |
select a from t where a = -'1' and b = - 1 limit -'1' | SELECT | read | t |
select * from t limit purge() | SELECT | execute! | t |
select public.lower(a) from t | SELECT | execute! | t |
select pg_catalog.lower(a) from t | SELECT | read | t |
select pg_catalog.purge() | SELECT | execute! | |
select lower(a), count(*), now(), random(), pg_sleep(1), gen_random_uuid() from t | SELECT | read | t |
select a operator(public.+) b from t | SELECT | execute! | t |
select a operator(pg_catalog.+) b from t | SELECT | read | t |
select a <=> b from t | SELECT | execute! | t |
select a <=> any(select b from u) from t | SELECT | execute! | t u |
select nextval('s') | SELECT | write | |
select setval('s', 1) | SELECT | write | |
select currval('s'), lastval() | SELECT | read | |
select pg_notify('c', 'x') | SELECT | write | |
select lo_get(1) | SELECT | transfer! | |
select lo_unlink(1) | SELECT | delete | |
select lo_import('/x') | SELECT | admin! | |
select lo_export(1, '/x') | SELECT | admin! | |
select pg_read_file('/x') | SELECT | admin! | |
select * from pg_ls_dir('/x') | SELECT | admin! | |
select pg_stat_file('x') | SELECT | admin! | |
select pg_terminate_backend(1) | SELECT | admin! | |
select pg_cancel_backend(1) | SELECT | admin! | |
select pg_reload_conf() | SELECT | admin! | |
select pg_advisory_lock(1) | SELECT | read | |
select pg_logical_slot_get_changes('x', null, null) | SELECT | admin! | |
select pg_create_physical_replication_slot('x') | SELECT | admin! | |
select query_to_xml('select 1', true, true, '') | SELECT | execute! | |
select table_to_xml('t', true, true, '') | SELECT | execute! | |
select database_to_xml(true, true, '') | SELECT | execute! | |
select cursor_to_xml('c', 1, true, true, '') | SELECT | execute! | |
select * from ts_stat('select 1') | SELECT | execute! | |
select * from dblink('x', 'select 1') as t(a int) | SELECT | execute! | |
select set_config('search_path', '', false) | SELECT | session | |
select set_config(a, b, false) from t | SELECT | execute! | t |
select set_config('search_path', b, false) from t | SELECT | execute! | t |
select set_config('a', '1', true), set_config('b', '1', true) | SELECT | execute! | |
insert into t select purge() | INSERT | execute! | | t
update t set a = purge() | UPDATE | execute! | | t
delete from t where purge() | DELETE | delete! | | t
select email(c) from cust c | SELECT | execute! | cust |
"""


def _rows() -> list[tuple[str, ...]]:
    return [tuple(cell.strip() for cell in line.rsplit("|", 4)) for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("text", "verb", "kind", "read", "written"), _rows(), ids=lambda value: str(value)[:60])
def test_statement(text: str, verb: str, kind: str, read: str, written: str) -> None:
    if kind == "unknown":
        assert read_sql(text)[0].verb == "UNPARSABLE"
        return
    statement = one(text)
    expected = (verb, kind.rstrip("!"), read.split(), written.split())
    assert (statement.verb, statement.kind, list(statement.tables_read), list(statement.tables_written)) == expected
    assert statement.opaque or not kind.endswith("!")
    assert bool(statement.opaque_reason) == statement.opaque
    assert statement.verb in VERBS
    assert statement.kind in statement.kinds
    assert statement.text == text


def test_the_table_is_large() -> None:
    assert len(_rows()) > 250
    assert len({row[0] for row in _rows()}) == len(_rows())


def test_an_operator_may_vouch_for_functions() -> None:
    text = "select public.st_distance(a, b) <=> c from t"
    assert read_sql(text)[0].kind == "execute"
    (statement,) = read_sql(text, frozenset(("public.st_distance", "operator(<=>)")))
    assert (statement.kind, statement.opaque) == ("read", False)
    assert read_sql("select purge()", frozenset(("public.st_distance",)))[0].kind == "execute"
