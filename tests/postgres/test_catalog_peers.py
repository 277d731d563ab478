"""The catalogue against real servers: where the values of each column really come from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

import pytest
import uvloop

from protocols.postgres.catalog import Catalog, CatalogError
from proxy.core.gate import Reader
from proxy.core.parties import Credential, Secret, Target
from proxy.policy.sql import SqlReader
from tests.peers.postgres import PASSWORD, PostgresServer

pytestmark = pytest.mark.peer

T = TypeVar("T")

SCHEMA = """
create schema crm;
create schema by_scram;
create type mood as enum ('sad', 'it''s "ok"');
create domain email as text check (value like '%@%');
create domain tight as numeric(6, 2);
create type pair as (a int, b mood);
create table crm.cust (id int primary key, email email, mood mood, moods mood[], pair pair, price tight,
                       gone int, low text generated always as (lower(email)) stored);
alter table crm.cust drop column gone;
create table public.orders (id int, cust_id int, note text);
create table by_scram.orders (id int);
create view crm.mails as select id, email as mail from crm.cust;
create view crm.mails2 as select upper(m.mail) as up, o.note from crm.mails m join public.orders o on o.cust_id = m.id;
create view crm.stars as select * from crm.cust;
create materialized view crm.stored as select email from crm.cust;
create view crm.over_stored as select email from crm.stored;
create table public.events (at date, who text, what text) partition by range (at);
create table public.events_1 (what text, who text, at date not null);
alter table public.events attach partition public.events_1 for values from ('2020-01-01') to ('2021-01-01');
create table public.events_2 partition of public.events for values from ('2021-01-01') to ('2022-01-01')
  partition by range (at);
create table public.events_2a partition of public.events_2 for values from ('2021-01-01') to ('2021-02-01');
create table public.old (a int);
create table public.young (b int) inherits (public.old);
create function crm.mail(int) returns text language sql stable as 'select email from crm.cust where id = $1';
create view crm.hidden as select crm.mail(id) as x, id from public.orders;
create function crm.join2(text, text) returns text language sql stable as 'select email from crm.cust limit 1';
create operator crm.@@@ (leftarg = text, rightarg = text, function = crm.join2);
create view crm.plus as select note operator(crm.@@@) 'x' as x, note from public.orders;
create function crm.pair_text(pair) returns text language sql stable as 'select email from crm.cust limit 1';
create cast (pair as text) with function crm.pair_text(pair);
create view crm.casts as select pair::text as x, pair from crm.cust;
create view crm.keys as select rolname, rolpassword from pg_authid;
create view crm.both as select id, email from crm.cust union all select id, note from public.orders;
create view crm.const as select 1 as one, exists (select 1 from crm.cust where email = 'x@') as found;
create view crm.whole as select c from crm.cust c;
create table "crm"."odd.name" ("a.b" int, "Üpper" text);
create sequence crm.counter;
"""


def run(work: Coroutine[object, object, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):  # a signal's exception would not get out of uvloop
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def catalog_of(server: PostgresServer, database: str, reader: Reader | None = None) -> Catalog:
    settings: dict[str, object] = {"sslmode": "prefer"}
    target = Target("t", "postgres", "127.0.0.1", server.port, database, settings=settings)
    return Catalog(target, Credential("by_scram", Secret(PASSWORD)), reader)


@pytest.fixture(scope="module", params=["15", "18"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    found = request.getfixturevalue(f"postgres{request.param}")
    assert isinstance(found, PostgresServer)
    with found.database("catalogue", SCHEMA):
        yield found


@pytest.fixture(scope="module")
def catalog(server: PostgresServer) -> Catalog:
    found = catalog_of(server, "catalogue")
    run(found.refresh())
    return found


@pytest.fixture(scope="module")
def oid(server: PostgresServer) -> Callable[[str], int]:
    def look_up(name: str) -> int:
        ((found,),) = server.run(f"select '{name}'::regclass::oid", dbname="catalogue")
        assert isinstance(found, int)
        return found

    return look_up


def test_a_table_and_its_dropped_column(catalog: Catalog, oid: Callable[[str], int]) -> None:
    cust = oid("crm.cust")
    assert catalog.origins(cust, 2) == ("crm.cust.email",)
    assert catalog.origins(cust, 8) == ("crm.cust.low", "crm.cust.email")  # generated from it
    assert catalog.origins(cust, 7) is None  # dropped
    whole = catalog.origins(cust, 0)
    assert whole is not None and set(whole) >= {"crm.cust.id", "crm.cust.email", "crm.cust.low"}
    assert catalog.origins(cust, -1) == ("crm.cust.#1",)
    assert catalog.origins(99_999_999, 1) is None
    assert [column.name for column in catalog.columns("crm.cust")] == [
        "id",
        "email",
        "mood",
        "moods",
        "pair",
        "price",
        "low",
    ]
    assert catalog.columns("crm.cust")[-1].attnum == 8


def test_views_lead_to_their_tables(catalog: Catalog, oid: Callable[[str], int]) -> None:
    """Without a reader of SQL each column of a view may come from all that the view reads."""
    mails = catalog.origins(oid("crm.mails"), 2)
    assert mails == ("crm.mails.mail", "crm.cust.email", "crm.cust.id")
    twice = catalog.origins(oid("crm.mails2"), 1)
    assert twice is not None
    assert {"crm.mails2.up", "crm.mails.mail", "crm.cust.email", "public.orders.note"} <= set(twice)
    over = catalog.origins(oid("crm.over_stored"), 1)
    assert over is not None and {"crm.stored.email", "crm.cust.email"} <= set(over)
    assert catalog.origins(oid("crm.hidden"), 1) is None
    assert catalog.bases("crm.mails2") == {"crm.cust", "public.orders"}
    assert catalog.bases("crm.over_stored") == {"crm.stored", "crm.cust"}
    assert catalog.bases("crm.cust") == {"crm.cust"}
    assert catalog.bases("no.such") == {"no.such"}
    assert catalog.hides("crm.hidden") and not catalog.hides("crm.mails")


def test_a_reader_of_sql_tells_a_views_columns_apart(server: PostgresServer, oid: Callable[[str], int]) -> None:
    catalog = catalog_of(server, "catalogue", SqlReader())
    run(catalog.refresh())

    def found(name: str, attnum: int) -> tuple[str, ...] | None:
        return catalog.origins(oid(name), attnum)

    assert found("crm.mails", 1) == ("crm.mails.id", "crm.cust.id")
    assert found("crm.mails", 2) == ("crm.mails.mail", "crm.cust.email")
    assert found("crm.mails2", 1) == ("crm.mails2.up", "crm.cust.email", "crm.mails.mail")
    assert found("crm.mails2", 2) == ("crm.mails2.note", "public.orders.note")
    assert found("crm.stars", 7) == ("crm.stars.low", "crm.cust.email", "crm.cust.low")
    assert found("crm.over_stored", 1) == ("crm.over_stored.email", "crm.cust.email", "crm.stored.email")
    assert found("crm.hidden", 1) is None
    assert found("crm.hidden", 2) == ("crm.hidden.id", "public.orders.id")
    assert found("crm.plus", 1) is None  # an operator that is a function of a user
    assert found("crm.plus", 2) == ("crm.plus.note", "public.orders.note")
    assert found("crm.casts", 1) is None  # a cast that is a function of a user
    assert found("crm.casts", 2) == ("crm.casts.pair", "crm.cust.pair")
    assert found("crm.keys", 2) == ("crm.keys.rolpassword", "pg_catalog.pg_authid.rolpassword")
    assert found("crm.both", 2) == ("crm.both.email", "crm.cust.email", "public.orders.note")
    assert found("crm.const", 1) == ("crm.const.one",)
    whole = found("crm.whole", 1)
    assert whole is not None and {"crm.cust.email", "crm.cust.low"} <= set(whole)
    assert catalog.bases("crm.keys") == {"pg_catalog.pg_authid"}


def test_partitions_keep_a_columns_name_and_not_its_number(catalog: Catalog, oid: Callable[[str], int]) -> None:
    assert catalog.origins(oid("events_1"), 2) == ("public.events_1.who", "public.events.who")
    deep = catalog.origins(oid("events_2a"), 2)
    assert deep == ("public.events_2a.who", "public.events.who", "public.events_2.who")
    assert catalog.origins(oid("events"), 3) == (
        "public.events.what",
        "public.events_1.what",
        "public.events_2.what",
        "public.events_2a.what",
    )
    assert catalog.origins(oid("young"), 1) == ("public.young.a", "public.old.a")
    assert catalog.origins(oid("young"), 2) == ("public.young.b",)
    assert catalog.bases("public.events_2a") == {"public.events_2a", "public.events_2", "public.events"}


def test_toast_is_its_owners_data(server: PostgresServer, catalog: Catalog) -> None:
    ((toast,),) = server.run(
        "select reltoastrelid from pg_class where relname = 'orders' and reltoastrelid > 0", dbname="catalogue"
    )
    assert isinstance(toast, int)
    found = catalog.origins(toast, 3)
    assert found is not None and "public.orders.note" in found


def test_names_through_the_search_path(catalog: Catalog) -> None:
    assert catalog.search_path == ("$user", "public")
    assert catalog.resolve("orders", ("public", "by_scram")) == ("public.orders",)
    assert catalog.resolve("orders", ("crm", "by_scram", "public")) == ("by_scram.orders",)
    # $user may be by_scram, which is named like a role, or nothing: both are possible.
    assert catalog.resolve("orders", ("$user", "public")) == ("by_scram.orders", "public.orders")
    assert catalog.resolve("orders", ('"$user"', "public")) == ("by_scram.orders", "public.orders")
    assert set(catalog.resolve("orders", None)) == {"by_scram.orders", "public.orders"}
    assert catalog.resolve("orders", ("crm",)) == ()
    assert catalog.resolve("crm.cust", ("public",)) == ("crm.cust",)
    assert catalog.resolve("catalogue.crm.cust", None) == ("crm.cust",)
    assert catalog.resolve("pg_class", ("public",)) == ("pg_catalog.pg_class",)
    assert catalog.resolve("crm.odd.name", ("public",)) == ("crm.odd.name",)
    assert catalog.resolve("odd.name", ("crm",)) == ("crm.odd.name",)
    assert catalog.resolve("nothing", None) == ()
    assert [column.name for column in catalog.columns("crm.odd.name")] == ["a.b", "Üpper"]


def test_types_of_users(server: PostgresServer, catalog: Catalog) -> None:
    def type_oid(name: str) -> int:
        ((found,),) = server.run(f"select '{name}'::regtype::oid", dbname="catalogue")
        assert isinstance(found, int)
        return found

    mood = catalog.user_type(type_oid("mood"))
    assert mood is not None and (mood.shape, mood.labels) == ("enum", ("sad", 'it\'s "ok"'))
    email = catalog.user_type(type_oid("email"))
    assert email is not None and (email.shape, email.over) == ("domain", 25)
    tight = catalog.user_type(type_oid("tight"))
    assert tight is not None and (tight.shape, tight.over, tight.modifier) == ("domain", 1700, (6 << 16 | 2) + 4)
    moods = catalog.user_type(type_oid("mood[]"))
    assert moods is not None and (moods.shape, moods.over) == ("array", type_oid("mood"))
    pair = catalog.user_type(type_oid("pair"))
    assert pair is not None and pair.shape == "composite"
    assert catalog.user_type(type_oid("information_schema.sql_identifier")) is not None
    assert catalog.user_type(type_oid("crm.cust")) is None


def test_functions_by_oid(server: PostgresServer, catalog: Catalog) -> None:
    ((found,),) = server.run("select 'crm.mail'::regproc::oid", dbname="catalogue")
    assert isinstance(found, int)
    assert catalog.function_name(found) == "crm.mail"
    assert catalog.function_name(99_999_999) is None


def test_ddl_is_seen_after_the_next_reading(server: PostgresServer) -> None:
    async def work() -> None:
        with server.database("changing", "create table t (secret text); create view v as select 1 as x"):
            catalog = catalog_of(server, "changing")
            assert catalog.old and catalog.version == 0 and catalog.resolve("t", None) == ()
            await catalog.refresh()
            assert not catalog.old and catalog.version == 1
            ((view,),) = server.run("select 'v'::regclass::oid", dbname="changing")
            assert isinstance(view, int)
            assert catalog.origins(view, 1) == ("public.v.x",)
            await catalog.refresh()
            assert catalog.version == 1  # nothing has changed
            server.run("drop view v; create view v as select secret as x from t", dbname="changing")
            ((view,),) = server.run("select 'v'::regclass::oid", dbname="changing")
            assert isinstance(view, int)
            catalog.stale()
            assert catalog.old and catalog.origins(view, 1) is None
            await catalog.refresh()
            assert catalog.version == 2 and catalog.origins(view, 1) == ("public.v.x", "public.t.secret")

    run(work())


def test_a_temporary_table_shadows(server: PostgresServer) -> None:
    async def work() -> None:
        with server.connect(dbname="catalogue") as other:
            other.execute("create temp view orders as select email from crm.cust")
            catalog = catalog_of(server, "catalogue")
            await catalog.refresh()
            assert catalog.resolve("orders", ("public",)) == ("pg_temp.orders", "public.orders")
            assert catalog.bases("pg_temp.orders") == {"crm.cust"}

    run(work())


def test_a_locked_table_costs_precision_and_nothing_else(server: PostgresServer, oid: Callable[[str], int]) -> None:
    async def work() -> None:
        with server.connect(dbname="catalogue") as other, other.transaction():
            other.execute("lock table crm.cust in access exclusive mode")
            catalog = catalog_of(server, "catalogue")
            await catalog.refresh()
            assert "crm.cust.email" in (catalog.origins(oid("crm.mails"), 2) or ())

    run(work())


def test_a_failure_leaves_nothing_known(server: PostgresServer) -> None:
    async def work() -> None:
        now = [100.0]
        settings: dict[str, object] = {"sslmode": "prefer"}
        target = Target("t", "postgres", "127.0.0.1", server.port, "going", settings=settings)
        with server.database("going", "create table t (a int)"):
            catalog = Catalog(target, Credential("by_scram", Secret(PASSWORD)), clock=lambda: now[0])
            await catalog.refresh()
            assert catalog.resolve("t", None) == ("public.t",)
        now[0] += 61
        assert catalog.old
        with pytest.raises(CatalogError) as caught:
            await catalog.refresh()
        assert PASSWORD not in str(caught.value)
        assert catalog.resolve("t", None) == () and catalog.version == 2 and catalog.search_path is None
        with server.database("going", "create table t (a int)"):
            with pytest.raises(CatalogError):  # too soon: not tried again
                await catalog.refresh()
            now[0] += 6
            await catalog.refresh()
            assert catalog.resolve("t", None) == ("public.t",)

    run(work())


def test_no_connection_stays(server: PostgresServer, catalog: Catalog) -> None:
    assert not catalog.old
    text = "select count(*) from pg_stat_activity where application_name = 'gatecast catalogue'"
    while server.run(text) != [(0,)]:  # a backend takes a moment to leave; the test's timeout is the limit
        pass
