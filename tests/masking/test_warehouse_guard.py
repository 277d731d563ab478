"""Laundering in BigQuery: what would carry masked values to where no mask stands is refused, the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from proxy.core.events import Command
from proxy.core.verdict import Mask
from proxy.core.warehouse import KIND_OF, Statement, gravest
from proxy.masking import Masking
from proxy.policy.bigquery import analyse

MASKING = Masking(b"k" * 32)
EMAIL = Mask("hide", columns=("p.d.customers.email", "cards.number"))
NESTED = Mask("nested", columns=("p.d.people.home.street",))
FIND = Mask("find", detectors=("email",))


def request(text: str = "", *parts: tuple[str, Sequence[str]], dataset: str | None = None, **facts: Any) -> Command:
    """A request as protocols/bigquery/commands.py makes it: effects of its SQL, then of its doors (parts)."""
    analysis = analyse(text, "p", dataset) if text else None
    statements: tuple[Statement, ...] = analysis.statements if analysis else ()
    found: list[tuple[Any, tuple[str, ...]]] = [
        (effect.verb, tuple(map(str, effect.objects))) for each in statements for effect in each.effects
    ]
    found += [(verb, tuple(objects)) for verb, objects in parts]
    known = {
        "warehouse": statements, "opaque": bool(analysis and analysis.opaque),
        "bq_job": "query" if text else "", "bq_method": "jobs.query", **facts,
    }  # fmt: skip
    made = tuple(Command("bigquery", verb, KIND_OF[verb], "", objects=objects, facts=known) for verb, objects in found)
    worst = gravest([verb for verb, _ in found])
    return Command("bigquery", worst, KIND_OF[worst], text, facts=known, parts=made if len(made) > 1 else ())


REFUSED = """
create table d.x as select email from d.customers
create table d.x as select lower(email) e from d.customers
create table d.x as select to_json_string(c) from d.customers c
create table d.x as select c from d.customers c
create table d.x as select any_value(c).email from d.customers c
create table d.x as select array_agg(c) a from d.customers c
create table d.x as select email = 'x' as hit from d.customers
create table d.x as select * from d.customers
create table d.x as select * except (name) from d.customers
create table d.x as with a as (select email e from d.customers) select e from a
create table d.x as from d.customers |> select email
create table d.x as select email from `p.d.customers`
create table d.x as select email from D.CUSTOMERS
create table d.x as select email from `d.cust*`
create table d.x as select email from `d.customers$20260101`
create table d.x as select email from d.customers for system_time as of current_timestamp()
create table d.x as select (select max(email) from d.customers) m from d.orders
create table d.x as select id from d.orders union all select email from d.customers
create table d.x as select v from d.customers unpivot (v for k in (name, email))
create table d.x as select number from other.cards
create temp table x as select email from d.customers
create temp table x as select email from d.customers; select * from x
create or replace table d.customers as select * replace (name as email), email as e2 from d.customers
create table d.x as select * from y
insert into d.x select email from d.customers
insert into d.x (a) values ((select email from d.customers limit 1))
insert into d.x select * from vector_search(table d.customers, 'email', table d.q)
update d.customers set name = email where id = 1
update d.x set a = c.email from d.customers c where c.id = x.id
merge d.x using d.customers c on x.id = c.id when not matched then insert row
merge d.x using d.customers c on x.id = c.id when matched then update set a = c.email
create view d.v as select email from d.customers
create materialized view d.v as select email, count(*) n from d.customers group by email
create snapshot table d.s clone d.customers
create table d.s clone d.customers
create table d.s copy d.customers
create function d.f() as ((select email from d.customers limit 1))
create function d.f(x string) as (x)
create table function d.f() as select id from d.orders
create procedure d.p() begin select 1; end
create model d.m options (model_type = 'kmeans') as select email from d.customers
create function d.f(x string) returns string remote with connection `us.c` options (endpoint = 'https://x')
create external table d.e options (format = 'CSV', uris = ['gs://b/x'])
create schema d2 options (linked_dataset = 'p.d')
create temp function f() as ((select email from d.customers limit 1)); create table d.x as select f() as a
create temp function f(x string) returns string language js options (library = ['gs://b/l.js']) as 'return x'
export data options (uri = 'gs://b/*', format = 'CSV') as select email from d.customers
export model d.m options (uri = 'gs://b/m')
load data into d.x from files (format = 'CSV', uris = ['gs://b/x'])
select * from external_query('us.c', 'select 1')
select * from ml.predict(model d.m, (select email from d.customers))
select ai.generate(('x', email), connection_id => 'us.c') from d.customers
select d.f(email) from d.customers
call d.p()
execute immediate concat('select ', 'email')
execute immediate 'create table d.x as select email from d.customers'
execute immediate 'insert into d.x values (?)' using (select email from d.customers limit 1)
declare x string; set x = (select email from d.customers); execute immediate 'update d.x set a = @b' using x as b
execute immediate 'create table d.x as select ? as e' using (select email from d.customers limit 1)
declare x string; execute immediate 'select email from d.customers limit 1' into x; insert into d.x values (x)
declare x string; set x = (select email from d.customers limit 1); insert into d.x values (x)
declare x string default (select email from d.customers limit 1); create table d.x as select x as y
for r in (select email from d.customers) do insert into d.x values (r.email); end for
begin select error(email) from d.customers; exception when error then insert into d.l select @@error.message; end
if (select count(*) from d.customers) > 1 then insert into d.x select email from d.customers; end if
set @@query_label = (select email from d.customers limit 1)
declare x string; set x = (select email from d.customers limit 1); set @@query_label = x
alter table d.customers rename to c2
alter table d.customers rename column email to e
alter table d.x rename to customers
what does not parse
""".strip().splitlines()

PASSES = """
select email from d.customers
select c.email from d.customers c
select * from d.customers where email like 'a%' order by email
select count(*) from d.customers group by email
create table d.x as select id from d.customers
create table d.x as select id from d.customers where email = 'x'
create table d.x as select * except (email) from d.customers
create table d.x as select * except (Email, name) from d.customers
create table d.x as select count(*) n from d.customers
create table d.x as select email from d.orders
create table d.x like d.customers
create table d.x (email string)
create or replace table d.customers (email string)
insert into d.customers (id, email) values (1, 'a@b.c')
insert into d.x select o.* from d.orders o
update d.customers set name = upper(name) where email = 'x'
delete from d.customers where email = 'x'
truncate table d.customers
drop table d.customers
merge d.x using d.orders o on x.id = o.id when matched then update set a = o.id
create view d.v as select id, name from d.customers
create materialized view d.v as select name, count(*) n from d.customers group by name
create snapshot table d.s clone d.orders
create search index i on d.customers (email)
create temp function f(x string) as (upper(x)); select f(email) from d.customers
create temp table x as select id from d.orders
export data options (uri = 'gs://b/*', format = 'CSV') as select id from d.customers
execute immediate 'select email from d.customers'
execute immediate 'insert into d.x select id from d.orders where id = ?' using (select max(id) from d.orders)
set @@query_label = 'a:b'; select email from d.customers
set @@time_zone = 'UTC'
declare x int64 default 1; create table d.y as select x as n from d.orders
begin transaction; insert into d.x select id from d.customers; commit transaction
alter table d.orders rename column a to b
grant `roles/bigquery.dataViewer` on table d.customers to 'user:a@b.c'
select column_name from d.INFORMATION_SCHEMA.COLUMNS
""".strip().splitlines()


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_carry_masked_values_is_refused(text: str) -> None:
    denied = MASKING.guard((EMAIL,), request(text))
    assert denied is not None and denied.rule == "hide" and denied.reason
    assert MASKING.guard((), request(text)) is None


@pytest.mark.parametrize("text", PASSES)
def test_what_carries_none_passes(text: str) -> None:
    assert MASKING.guard((EMAIL,), request(text)) is None


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("create table d.x as select home.street from d.people", True),
        ("create table d.x as select home from d.people", True),
        ("create table d.x as select home.* from d.people", True),
        ("create table d.x as select home.* except (zip) from d.people", True),
        ("create table d.x as select * except (home) from d.people", True),  # a pattern below is not taken apart
        ("create table d.x as select home.zip from d.people", False),
        ("create table d.x as select struct(home.zip as a, home.street as b) s from d.people", True),
        ("create table d.x as select struct(home.zip as a) s from d.people", False),
    ],
)
def test_nested_fields(text: str, refused: bool) -> None:
    assert (MASKING.guard((NESTED,), request(text)) is not None) is refused


@pytest.mark.parametrize(
    ("text", "alone", "in_session"),
    [
        ("declare x string default (select email from d.customers limit 1)", False, True),
        ("declare x string; set x = (select email from d.customers limit 1)", False, True),
        ("execute immediate 'select email from d.customers limit 1' into x", False, True),
        ("declare x int64 default 1", False, False),
        ("declare x int64 default (select max(id) from d.orders)", False, False),
        ("create table d.x as select x as y", False, True),  # a variable of an earlier request, maybe
        ("create table d.x as select o.id from d.orders o", False, False),
        ("select email from d.customers", False, False),
    ],
)
def test_sessions_keep_variables(text: str, alone: bool, in_session: bool) -> None:
    assert (MASKING.guard((EMAIL,), request(text)) is not None) is alone
    for facts in ({"bq_session": True}, {"bq_special": ("create_session",)}):
        assert (MASKING.guard((EMAIL,), request(text, **facts)) is not None) is in_session


def test_a_default_dataset_and_an_unknown_one() -> None:
    text = "create table x as select email from customers"
    assert MASKING.guard((EMAIL,), request(text, dataset="d")) is not None
    assert MASKING.guard((EMAIL,), request(text, dataset="other")) is None
    assert MASKING.guard((EMAIL,), request(text)) is not None  # nobody knows of which dataset


def test_what_lies_behind_a_view_counts() -> None:
    text = "create table d.x as select nick from d.v"
    assert MASKING.guard((EMAIL,), request(text)) is None
    assert MASKING.guard((EMAIL,), request(text, beneath=("p.d.orders",))) is None
    assert MASKING.guard((EMAIL,), request(text, beneath=("p.d.orders", "p.d.Customers"))) is not None
    # A table that is beneath itself has its own columns; another one may be the view.
    assert MASKING.guard((EMAIL,), request("create table d.x as select id from d.customers",
                                           beneath=("p.d.customers",))) is None  # fmt: skip
    joined = "create table d.x as select v.id from d.v join d.customers c on c.id = v.id"
    assert MASKING.guard((EMAIL,), request(joined, beneath=("p.d.customers",))) is not None
    whole = "merge d.x using d.v v on x.id = v.id when not matched then insert row"
    assert MASKING.guard((EMAIL,), request(whole)) is None
    assert MASKING.guard((EMAIL,), request(whole, beneath=("p.d.customers",))) is not None
    star = "create table d.x as select * except (email) from d.v"
    assert MASKING.guard((EMAIL,), request(star, beneath=("p.d.customers",))) is not None


def test_a_destination_keeps_what_a_query_reads() -> None:
    into: dict[str, Any] = {"bq_destination": "p.d.x"}
    part = ("write_rows", ("p.d.x",))
    assert MASKING.guard((EMAIL,), request("select email from d.customers", part, **into)) is not None
    assert MASKING.guard((EMAIL,), request("select id from d.customers", part, **into)) is None
    abroad = ("export", ("q.d.x",))
    found = MASKING.guard((EMAIL,), request("select id from d.orders", part, abroad, bq_destination="q.d.x"))
    assert found is not None


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        (request("", ("read_rows", ["p.d.customers"]), ("write_rows", ["p.d.x"]), bq_job="copy"), True),
        (request("", ("read_rows", ["p.d.cust*"]), ("write_rows", ["p.d.x"]), bq_job="copy"), True),
        (request("", ("read_rows", ["p.d.orders"]), ("write_rows", ["p.d.customers"]), bq_job="copy"), False),
        (request("", ("read_rows", ["p.d.customers"]), ("export", ["p.d.customers"]), bq_job="extract"), True),
        (request("", ("read_rows", ["p.d.orders"]), ("export", ["p.d.orders"]), bq_job="extract"), False),
        (request("", ("write_rows", ["p.d.x"]), bq_job="load", bq_uris=("gs://b/x",)), True),
        (request("", ("write_rows", ["p.d.x"]), bq_job="load"), False),
        (request("", ("define", ["p.d.x"]), ("export", ["p.d.x"]), bq_method="tables.insert"), True),
        (request("", ("define", ["p.d.x"]), ("read_rows", ["p.d.customers"]), bq_method="tables.insert"), True),
        (request("", ("define", ["p.d2.*"]), ("export", ["p.d2.*"]), bq_method="datasets.insert"), True),
        (request("", ("define", ["p.d.customers"]), bq_method="tables.patch"), False),
        (request("", ("define", ["p.d.f"]), ("grant", ["p.d.f"]), bq_method="routines.insert"), True),
        (request("", ("destroy", ["p.d.f"]), bq_method="routines.delete"), False),
        (request("", ("write_rows", ["p.d.customers"]), bq_method="tabledata.insertAll"), False),
        (request("", ("read_rows", ["p.d.customers"]), bq_method="tabledata.list"), False),
        (request("", ("inspect", ["p.*.*"]), bq_method="datasets.list"), False),
        (request("select 1", ("export", ["p.*.*"])), True),  # tableDefinitions, code from a bucket
        (request("select 1", ("session", ["p.*.*"])), False),
        (request("select email from d.customers", ("define", ["p.d.v"]), bq_job="", bq_method="tables.insert"), True),
        (request("select id from d.customers", ("define", ["p.d.v"]), bq_job="", bq_method="tables.insert"), False),
        (request("select (email = 'x')", ("grant", ["p.d.customers"]), bq_job="",
                 bq_method="rowAccessPolicies.insert"), False),
        (request("select 1", opaque=True), True),  # as the dry run told of other tables than the text
    ],
)  # fmt: skip
def test_the_doors_without_sql(command: Command, refused: bool) -> None:
    assert (MASKING.guard((EMAIL,), command) is not None) is refused


def test_one_statement_that_nobody_can_read_is_enough() -> None:
    assert MASKING.guard((EMAIL,), request("select 1; select d.f(1)", opaque=False)) is not None


def test_a_dry_run_of_a_query_stores_nothing() -> None:
    asked = request("create table d.x as select email from d.customers", bq_asks_dry_run=True)
    assert MASKING.guard((EMAIL,), asked) is not None  # not an inspect: something is done
    facts = dict(asked.facts)
    told = Command("bigquery", "inspect", "read", asked.text, objects=("p.d.customers", "p.d.x"), facts=facts)
    assert MASKING.guard((EMAIL,), told) is None
    copying = Command("bigquery", "inspect", "read", "", facts=facts | {"bq_job": "copy"})
    assert MASKING.guard((EMAIL,), copying) is not None


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        (request("select email from d.customers"), False),
        (request("create table d.x as select email from d.customers"), False),
        (request("export data options (uri = 'gs://b/*', format = 'CSV') as select 1 as a"), True),
        (request("select * from external_query('us.c', 'select 1')"), False),
        (request("select * from ml.predict(model d.m, (select id from d.orders))"), True),
        (request("create external table d.e options (format = 'CSV', uris = ['gs://b/x'])"), False),
        (request("", ("read_rows", ["p.d.orders"]), ("export", ["p.d.orders"]), bq_job="extract"), True),
        (request("", ("read_rows", ["p.d.orders"]), ("write_rows", ["p.d.x"]), bq_job="copy"), False),
        (request("", ("read_rows", ["p.d.o"]), ("write_rows", ["q.d.x"]), ("export", ["p.d.o"]), bq_job="copy"), True),
        (request("select 1", ("write_rows", ["q.d.x"]), ("export", ["q.d.x"]), bq_destination="q.d.x"), True),
        (request("select 1", ("export", ["p.*.*"])), False),
    ],
)
def test_under_detectors_what_no_detector_looks_into_is_refused(command: Command, refused: bool) -> None:
    denied = MASKING.guard((FIND,), command)
    assert (denied is not None) is refused
    assert denied is None or denied.rule == "find"


def test_the_reason_names_the_rule_that_masks() -> None:
    other = Mask("other", columns=("p.d.orders.total",))
    denied = MASKING.guard((other, EMAIL), request("create table d.x as select email from d.customers"))
    assert denied is not None and denied.rule == "hide"
    assert "leave it out" in denied.reason
