"""What somebody tries who may do anything but see the masked columns (masked_shop.MASKS): data of test_masking_attacks.

A line: what becomes of each statement of the attempt (separated by ";;"), "-" it runs, "D" a mask's guard denies it,
"E" the server refuses it; two words where PostgreSQL 15 and 18 differ. Whatever runs must show no canary.

Predicates are no masks' business: WHERE, HAVING, ORDER BY and the number of rows stay oracles that only a rule closes.
"""

# ruff: noqa: E501

ATTEMPTS = r"""
- | select * from customers
- | select lower(email), upper(card), email||'', code+1, born+1, balance*2 from customers
- | select c.contact_of from customers c
- | select upper(c.contact_of) from customers c
- | select contact_of(c) from customers c
- | select lower(contact) from persons
- | select contact from persons
- | select lower(contact) from vips
- | select "E-Mail", lower("E-Mail"), plain from "Odd.Table"
- | copy "Odd.Table" to stdout
- | copy (select lower("E-Mail") from "Odd.Table") to stdout
- | copy customers to stdout
--- | set search_path = safe, public;; copy customers to stdout;; select lower(email) from customers
---- | set search_path = public, safe;; copy customers to stdout;; copy customers (name, email) to stdout;; select lower(email) from customers
----- | select * from visits;; select lower(email) from visits;; select email from visits_2;; select lower(email) from visits_2;; select lower(email) from visits_1
----- | select * from frozen;; select upper(copied) from frozen;; select * from folk;; select upper(reach) from folk;; select upper(contact) from people
E | select email::regoper from customers
E | select email::int from customers
E | select chr(code) from customers
E | select get_bit('\x00', code) from customers
E | select make_date(code, 13, 1) from customers
- | select format_type(code, code), code::oid::regclass::text from customers
E | select nextval(code::oid::regclass) from customers
D- | select setseed((ascii(email)-110)/100.0) from customers;; select random()
D- | select lo_create(code::oid) from customers;; select oid from pg_largeobject_metadata
D- | select query_to_xml('select set_config(''application_name'', email, false) from customers', true, true, '');; show application_name
DED | alter schema public rename to other;; select email from other.customers limit 1;; alter schema other rename to public
DEEE | create schema x create view v as select email as z from public.customers;; select z from x.v;; select upper(z) from x.v;; drop schema x cascade
-DEE- | begin;; create schema x create view v as select email as z from public.customers;; select z from x.v;; select upper(z) from x.v;; rollback
DE | create rule r as on insert to orders do also insert into safe.customers select 1, email from customers;; drop rule r on orders
D | insert into orders(oid, note) values (100, (select email from customers limit 1))
D | insert into orders(oid, note) values (1, 'x') on conflict (oid) do update set note = (select email from customers limit 1)
D | update orders set note = (select email from customers limit 1)
D | update customers set name = email
D | update customers set name = email returning name
D | insert into customers(id, name, email) values (1,'x','y@') on conflict (id) do update set name = customers.email returning name
- | delete from orders using customers where oid=999 returning email
- | update customers set name = name returning email, lower(email), name
E | select pg_temp.x from customers pg_temp
D | select chunk_data from pg_toast.pg_toast_2619 limit 1
- | select name from customers union select email from customers
-- | explain (analyze, verbose) select email_of(1);; explain verbose select * from orders where note = email_of(1)
- | select email_of(1), shout(email_of(1))
E | select scream(email) from customers
- | select shout(email) from customers
D | call tell()
D | do $$ begin raise notice '%', (select email from customers limit 1); end $$
- | select whisper(email) from customers
-D | listen leak;; select pg_notify('leak', email) from customers
D | create table t2 (x text default email_of(1))
D | alter table orders add column e text generated always as (email_of(oid)) stored
D | alter table orders alter note set default email_of(1)
D | alter table orders alter note type text using email_of(oid)
D | create index on orders (email_of(oid))
D | create view v as select email_of(1)
D | insert into orders(oid, note) select 50, c.contact_of from customers c limit 1
---- | create table t3 (x text, y text generated always as (upper(x)) stored);; insert into t3 values ('a');; select * from t3;; drop table t3
- | select lower(c.name) from customers c, generate_series(1, 2) g
- | select (c).name, (c).email, upper((c).email) from customers c
- | select date_trunc('day', now()), at + 1 from visits
- | select lower(item), total * 2 from orders
- | with recursive r(n, e) as (select 1, email from customers where id = 1 union all select n+1, e from r where n < 3) select * from r
- | select array_agg(email), string_agg(email, ','), json_agg(c), to_jsonb(array_agg(c)) from customers c
- | select row_to_json(c), c::text, c from customers c
- | select u&"em\0061il" from customers
- | select /* name */ email from customers -- name
- | select "email" as name from customers
-D | set standard_conforming_strings = off;; select '\', email, ' from customers where name <> '\'
-D | set client_encoding = 'SJIS';; select email from customers
---- | prepare p as select email, lower(email), name from customers;; execute p;; execute p;; explain execute p
------ | begin;; declare c cursor with hold for select email, lower(email), name from customers;; commit;; fetch 1 from c;; fetch all from c;; close c
D | create temp table kept as select lower(email) from customers
-- | create temp table fine as select id, name from customers;; select * from fine
D | select email into temp x from customers
-- | select id, name into temp x2 from customers;; select * from x2
D | copy customers to '/tmp/leak.txt'
D | copy (select name, email from customers) to program 'cat > /tmp/leak.txt'
- | copy (select email from customers) to stdout (format csv, header)
- | copy customers (name, email, code, born) to stdout (format binary)
- | copy visits_1 to stdout
- | copy (select * from visits) to stdout
E | copy people to stdout
E - | copy frozen to stdout
D | select * from pg_stats where tablename = 'customers'
D | select most_common_vals::text from pg_catalog.pg_stats
D | select * from pg_statistic
D | select query_to_xml('select email from customers', true, true, '')
- E | select table_to_xml('customers', true, true, '')
- | select * from json_to_recordset((select json_agg(c) from customers c)) as x(email text)
- | select x.email from customers c, jsonb_populate_record(null::safe.customers, to_jsonb(c)) x
- E | select * from xmltable('/x' passing xmlelement(name x, (select email from customers limit 1)) columns v text path '.')
- | select grouping(email), count(*) from customers group by rollup(email)
E | select email from customers group by email order by 1 for update
- | select email from customers for update
- | select * from customers tablesample system(100)
D | select lo_get(1)
D | select lo_from_bytea(0, email::bytea) from customers
D | select pg_read_file('/etc/passwd')
D | select pg_advisory_lock(code) from customers
- | select pg_advisory_unlock(code) from customers
-- | update customers set email = email || 'x' where id = 1 returning email, upper(email);; update customers set email = rtrim(email, 'x') where id = 1
- | merge into customers c using orders o on c.id = o.customer_id when matched then update set name = c.name
D | merge into orders o using customers c on c.id = o.customer_id when matched then update set note = c.email
E - | merge into customers c using orders o on c.id = o.customer_id when matched then update set name = c.name returning merge_action(), c.email, lower(c.email), c.name
E - | update customers set name = name returning old.email, lower(new.email), old.name
E | insert into customers (id, name, email) values (1, 'x', 'a@b')
E | insert into customers (id, name, email) values (77, 'x', 'noat')
D | insert into customers (id, name, email) select 78, 'x', email from customers
D | insert into customers (id, name, email) select id + 500, name, replace(email, '@', '') from customers
DE | alter table customers rename column email to e2;; select e2 from customers
-DE- | begin;; alter view people rename column contact to other;; select other, lower(other) from people;; rollback
DED | alter view people rename column contact to other;; select other, lower(other) from people;; alter view people rename column other to contact
D | create or replace view people as select id, name, email as contact, born from customers
----- | begin;; create table t (email text);; insert into t values ('visible');; select email, upper(email) from t;; rollback
----- | select set_config('search_path', 'safe', false);; select email from customers;; select set_config('search_path', 'public', false);; select email, upper(email) from customers;; copy customers to stdout
-- | reset search_path;; select email from customers
- | select case when email like 'k%' then 'yes' end from customers
- | select nullif(email, 'x'), coalesce(email, 'y'), greatest(email, name) from customers
- | select distinct on (email) email, name from customers
- | select first_value(email) over (order by id), lag(lower(email)) over (order by id), rank() over (order by email) from customers
- | select (select email from customers where id = 1), array(select email from customers), exists(select email from customers)
- | values ((select email from customers limit 1), 1)
- | table customers
- | select c.* from orders o, lateral (select email e, upper(email) from customers where id = o.customer_id) c
- | select unnest(tags), tags[1], array_to_string(tags, ','), cardinality(tags) from customers
- | select note->>'k', jsonb_each(note), note::text from customers
- | select mood::text, mood from customers
- | select phones, (phones[1]).label, phones::text, unnest(phones) from customers
- | select mail, mail::text, born, born::text, extract(year from born), balance::text, ref::text, ref from customers
- | select email from only customers
- | select email as "?column?" from customers
- | select pg_get_viewdef('people'), pg_get_functiondef('emails'::regproc)
------ | select * from emails();; select * from all_customers();; select email, upper(email) from all_customers();; select name from all_customers();; select (all_customers()).email;; select f.email from all_customers() f
E | select email_of(id) from orders
D | select dblink('dbname=shop', 'select email from customers')
- | notify leak, 'x'
-- | select * from information_schema.columns limit 1;; select * from pg_indexes where tablename = 'customers'
--- | select customers from customers;; select customers.* from customers;; select public.customers.email from public.customers
- | select name, email from customers union all select note, item from orders
- | select max(email), min(code), sum(balance), avg(code), count(distinct email) from customers
- | select format('%s', email), concat(email, ''), email::bytea, encode(email::bytea, 'hex'), md5(email), left(email, 3), length(email), ascii(email) from customers
- | with x as (update customers set name = name returning email) select upper(email) from x
D | with x as (select email from customers) insert into orders (oid, note) select 99, email from x
- | with x as materialized (select * from customers) select upper(x.email), x.email from x
D | do language plpgsql 'begin perform 1; end'
- | explain (analyze, verbose, costs off) select email from customers where email = (select max(email) from customers)
- | explain (verbose, format json) select * from customers where email > 'k'
D | select email from customers \;
- | select 1; select email from customers; select lower(email) from customers
D | begin; update orders set note = (select email from customers limit 1); commit
EE | lock table customers;; truncate customers
"""
