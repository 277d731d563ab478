"""Laundering: what would carry masked values to where no mask stands is refused, and what would not is not."""

from __future__ import annotations

import pytest

from proxy.core.events import Command
from proxy.core.statement import Statement
from proxy.core.verdict import Mask
from proxy.masking import Masking
from tests.masking.world import sql

MASKING = Masking(b"k" * 32)
EMAIL = Mask("hide", columns=("public.cust.email", "cust.card"))
FIND = Mask("find", detectors=("email",))

REFUSED = """
create table x as select email from cust
create temp table x as select lower(email) from cust
create table x as select row_to_json(c) from cust c
create table x as select c from cust c
create table x as select nick from v
create table x as table v
create table x as select * from nowhere
create table x as select f_unknown()
create table x as execute p
select email into x from cust
insert into t select email from cust
insert into t(a) values ((select email from cust limit 1))
insert into cust(id, email) values (1, 'a') on conflict (id) do update set note = cust.email
update cust set note = email
update t set a = c.email from cust c where c.id = t.id
merge into t using cust c on c.id = t.id when matched then update set a = c.email
with x as (insert into t select email from cust returning 1) select * from x
create materialized view w as select * from cust
create view w as select email from cust
create view w as select upper(nick) from v
create schema s create view w as select email from cust
create rule r as on insert to cust do also notify x
create trigger tr after insert on cust for each row execute function f()
create policy p on cust using (true)
alter table cust rename column email to e
alter table cust rename to cust2
alter table cust add column z text generated always as (email) stored
alter table cust set schema other
create function f() returns text language sql as 'select 1'
create or replace procedure f() language sql as 'select 1'
create foreign table ft (a text) server s
import foreign schema public from server s into x
create publication p for all tables
create extension dblink
do $$begin end$$
call p()
execute p
selec nonsense
copy cust to '/tmp/x'
copy (select email from cust) to '/tmp/x'
copy (select email from cust) to program 'cat'
select * from pg_stats
select * from pg_catalog.pg_statistic
select * from mystats
select pg_notify('c', email) from cust
select set_config('a.b', email, false) from cust
select pg_advisory_lock(card) from cust
select pg_read_file('/etc/passwd')
select pg_catalog.lo_get(1)
select * from dblink('', 'select 1') as x(a int)
select pg_logical_slot_peek_changes('s', null, null)
prepare p as insert into t select email from cust
explain analyze create table x as select email from cust
select 1; create table x as select email from cust
"""

ALLOWED = """
select email from cust
select email from cust where email like 'a%'
select f_unknown()
select * from v
select * from pg_class
create table x as select id from cust where email = 'x'
create table x as select count(*) from cust
create table x as select * from orders
create table x as select city from either
create table plain (a int, b text)
create table plain (like cust)
create index i on cust (email)
create view w as select id from cust
create schema s
insert into t select id from cust
insert into cust(id, email) values (1, 'a@b')
insert into cust(id, email) select 1, a from t
update cust set note = 'x' where email = 'y'
update cust set visits = visits + 1 where email = 'y'
update cust set email = 'y' where id = 1
delete from cust where email = 'x'
merge into t using cust c on c.id = t.id when matched then update set a = c.id
refresh materialized view w
alter table orders add column z int
create trigger tr after insert on orders for each row execute function f()
copy cust to stdout
copy cust from stdin
copy cust(id) to '/tmp/x'
copy (select id from cust) to '/tmp/x'
select pg_notify('c', 'x')
select set_config('search_path', 'x', false)
prepare p as select email from cust
declare c cursor for select email from cust
explain select email from cust
explain analyze select email from cust
explain create table x as select email from cust
comment on column cust.email is 'x'
grant select on cust to bob
drop table cust
truncate cust
vacuum cust
lock table cust
fetch c
begin
set search_path = x
show all
listen x
"""


@pytest.mark.parametrize("text", REFUSED.strip().splitlines())
def test_refused_under_column_masks_and_only_there(text: str) -> None:
    denied = MASKING.guard((FIND, EMAIL), sql(text))
    assert denied is not None
    assert denied.rule == "hide"
    assert len(denied.reason) > 20
    assert MASKING.guard((FIND,), sql(text)) is None
    assert MASKING.guard((), sql(text)) is None


@pytest.mark.parametrize("text", ALLOWED.strip().splitlines())
def test_allowed_under_column_masks(text: str) -> None:
    assert MASKING.guard((EMAIL,), sql(text)) is None


@pytest.mark.parametrize(
    ("kind", "refused"), [("transfer", True), ("define", True), ("read", False), ("delete", False)]
)
@pytest.mark.parametrize("mask", [EMAIL, FIND])
def test_replication_is_refused_under_any_mask(mask: Mask, kind: str, refused: bool) -> None:
    statement = Statement("START_REPLICATION", kind, "x")  # type: ignore[arg-type]
    facts = {"replication": True, "statements": (statement,)}
    denied = MASKING.guard((mask,), Command("postgres", "X", kind, "x", facts=facts))  # type: ignore[arg-type]
    assert (denied is not None) == refused


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        (Command("p", "UNPARSABLE", "unknown", "x", facts={"statements": (), "opaque": True}), True),
        (Command("p", "X", "read", "x", facts={"opaque": True}), True),
        (Command("p", "EMPTY", "session", "", facts={"statements": ()}), False),
        (Command("ssh", "EXEC", "execute", "ls"), False),
    ],
)
def test_commands_without_statements(command: Command, refused: bool) -> None:
    assert (MASKING.guard((EMAIL,), command) is not None) == refused


def test_a_function_called_by_its_oid_passes_unless_it_is_a_door() -> None:
    for name, refused in (("public.f", False), ("pg_catalog.lo_get", True), ("loread", True)):
        statement = Statement("FUNCTION_CALL", "execute", "x", functions=(name,), opaque=True)
        command = Command("p", "FUNCTION_CALL", "execute", "x", facts={"statements": (statement,), "opaque": True})
        assert (MASKING.guard((EMAIL,), command) is not None) == refused


def test_missing_names_are_any_table() -> None:
    assert MASKING.guard((EMAIL,), sql("insert into t select id from orders", resolved={})) is not None
    assert MASKING.guard((EMAIL,), sql("alter table orders add column z int", resolved={})) is not None
