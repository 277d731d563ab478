// What node-postgres and its companions do, against whatever server the PG* variables name: one line of JSON for
// each thing tried, with nothing in it that differs from run to run. tests/postgres/test_node_peers.py compares the
// lines of a direct run with those of one through the gateway.

import {Readable} from 'node:stream';
import {pipeline} from 'node:stream/promises';
import {createHash} from 'node:crypto';
import pg from 'pg';
import Cursor from 'pg-cursor';
import QueryStream from 'pg-query-stream';
import {from as copyFrom, to as copyTo} from 'pg-copy-streams';

const say = (what, value) => console.log(JSON.stringify([what, value]));
const digest = data => createHash('sha256').update(data).digest('hex').slice(0, 16);
const failure = error => ({
  code: error.code, severity: error.severity, message: error.message, detail: error.detail, hint: error.hint,
  position: error.position, schema: error.schema?.replace(/_\d+$/, ''), table: error.table, column: error.column,
  constraint: error.constraint, where: error.where, routine: error.routine,
});
const refused = async promise => promise.then(() => 'no error', failure);

async function connected(more = {}) {
  const client = new pg.Client({ssl: false, ...more});
  await client.connect();
  return client;
}

async function queries(client) {
  say('types', (await client.query(`SELECT 1::int2 a, 2::int8 b, 3.5::numeric c, 'x'::text d, NULL::text e,
    true f, ARRAY[1,2,NULL] g, '{"a": [1, null]}'::jsonb h, '\\x00ff'::bytea i, 'Infinity'::float8 j,
    '2026-01-02 03:04:05+00'::timestamptz k, ARRAY['a,b', '"']::text[] l, point(1,2) m, '1 day'::interval n`)).rows);
  const binary = await client.query({text: 'SELECT $1::int4 a, $2::text b, $3::bool c', values: [7, 'ü', false], binary: true});
  say('binary', [binary.rows, binary.fields.map(field => [field.name, field.dataTypeID, field.format])]);
  say('empty', [(await client.query('')).rows, (await client.query({text: '', values: []})).rows.length]);
  const many = await client.query('SELECT 1 AS one; SELECT 2 AS two, 3 AS three; CREATE TEMP TABLE several (a int)');
  say('several', many.map(result => [result.command, result.rowCount, result.rows]));
  say('rowMode', (await client.query({text: 'SELECT 1, 2, 2', rowMode: 'array'})).rows);
  for (let i = 0; i < 8; i++) {
    const named = await client.query({name: 'again', text: 'SELECT $1::int + 1 AS next, $2::text AS t', values: [i, `v${i}`]});
    say('named', named.rows);
  }
  say('named, other text', await refused(client.query({name: 'again', text: 'SELECT 2'})));
  const large = Buffer.alloc(3_000_000, 'gatecast');
  const back = await client.query('SELECT $1::bytea AS data, length($1::bytea) AS size', [large]);
  say('large', [digest(back.rows[0].data), back.rows[0].size]);
  say('many parameters', (await client.query(
    `SELECT ${Array.from({length: 1000}, (_, i) => `$${i + 1}::int`).join('+')} AS sum`,
    Array.from({length: 1000}, (_, i) => i))).rows);
}

async function errors(client) {
  await client.query('CREATE TEMP TABLE item (id int PRIMARY KEY, name text NOT NULL CHECK (name <> \'bad\'))');
  await client.query("INSERT INTO item VALUES (1, 'one')");
  say('syntax', await refused(client.query('SELEC 1')));
  say('unknown', await refused(client.query('SELECT nothing FROM item')));
  say('duplicate', await refused(client.query('INSERT INTO item VALUES ($1, $2)', [1, 'again'])));
  say('check', await refused(client.query('INSERT INTO item VALUES ($1, $2)', [2, 'bad'])));
  say('parameter', await refused(client.query('SELECT $1::int', ['x'])));
  say('wrong count', await refused(client.query('SELECT $1::int, $2::int', [1])));
  say('in a function', await refused(client.query("DO $$ BEGIN RAISE EXCEPTION 'told' USING HINT = 'hint', DETAIL = 'more', ERRCODE = 'GC001'; END $$")));
  await client.query('BEGIN');
  await client.query("INSERT INTO item VALUES (5, 'five')");
  say('fails', await refused(client.query('SELECT 1/0')));
  say('aborted', await refused(client.query('SELECT 1')));
  say('rolled back', (await client.query('COMMIT')).command);
  await client.query('BEGIN');
  await client.query('SAVEPOINT a');
  say('in a savepoint', await refused(client.query('INSERT INTO item VALUES (1, $1)', ['x'])));
  await client.query('ROLLBACK TO a');
  await client.query("INSERT INTO item VALUES (6, 'six')");
  say('committed', [(await client.query('COMMIT')).command, (await client.query('SELECT id FROM item ORDER BY id')).rows]);
  const notices = [];
  const hear = notice => notices.push([notice.severity, notice.code, notice.message, notice.hint]);
  client.on('notice', hear);
  await client.query("DO $$ BEGIN RAISE NOTICE 'one %', 1; RAISE WARNING 'two' USING HINT = 'h'; END $$");
  client.off('notice', hear);
  say('notices', notices);
}

async function waiting(client) {
  const queued = Promise.all(Array.from({length: 200}, (_, i) => client.query('SELECT $1::int AS i', [i])));
  say('queued', (await queued).reduce((sum, result) => sum + result.rows[0].i, 0));
  const mixed = await Promise.all([
    client.query('SELECT 1 AS a'), refused(client.query('SELECT x')), client.query('SELECT $1::text AS b', ['b']),
    refused(client.query('SELECT $1::int', ['no'])), client.query('SELECT 3 AS c'),
  ]);
  say('mixed', mixed.map(each => each.rows ?? each.code));
}

async function cursors(client) {
  const cursor = client.query(new Cursor('SELECT i, repeat($1, 10) AS t FROM generate_series(1, 25) AS i', ['x']));
  const sizes = [];
  for (let rows = await cursor.read(10); rows.length; rows = await cursor.read(10)) sizes.push([rows.length, rows[0].i]);
  say('cursor', sizes);
  await cursor.close();
  const left = client.query(new Cursor('SELECT i FROM generate_series(1, 100000) AS i'));
  say('cursor, closed early', (await left.read(3)).map(row => row.i));
  await left.close();
  say('cursor, fails', await refused(client.query(new Cursor('SELECT 1/(i - 5) FROM generate_series(1, 10) AS i')).read(20)));
  let count = 0, sum = 0;
  for await (const row of client.query(new QueryStream('SELECT i FROM generate_series(1, $1::int) AS i', [5000], {batchSize: 77}))) {
    count++; sum += row.i;
  }
  say('stream', [count, sum]);
  for await (const row of client.query(new QueryStream('SELECT i FROM generate_series(1, 100000) AS i', [], {batchSize: 10}))) {
    if (row.i === 25) break;
  }
  say('stream, left early', (await client.query('SELECT 1 AS one')).rows);
}

async function copies(client) {
  await client.query('CREATE TEMP TABLE copied (i int, t text)');
  const lines = function* () { for (let i = 0; i < 50_000; i++) yield `${i}\tline ${i}\n`; };
  const into = client.query(copyFrom('COPY copied FROM STDIN'));
  await pipeline(Readable.from(lines()), into);
  say('copy in', into.rowCount);
  const out = [];
  const from = client.query(copyTo("COPY (SELECT * FROM copied ORDER BY i) TO STDOUT (FORMAT csv, HEADER)"));
  for await (const chunk of from) out.push(chunk);
  say('copy out', [digest(Buffer.concat(out)), from.rowCount]);
  const bad = client.query(copyFrom('COPY copied FROM STDIN'));
  say('copy in, bad data', await refused(pipeline(Readable.from(['1\tone\nx\ttwo\n']), bad)));
  const failing = client.query(copyFrom('COPY copied FROM STDIN'));
  say('copy in, given up', await refused(pipeline(Readable.from(async function* () {
    yield '1\tone\n';
    throw new Error('the source failed');
  }()), failing)));
  say('copy out, fails', await refused((async () => {
    for await (const _ of client.query(copyTo('COPY (SELECT 1/(500 - i) FROM copied) TO STDOUT'))) ;
  })()));
  say('after copies', (await client.query('SELECT count(*)::int AS n FROM copied')).rows);
}

async function others(client) {
  const listener = await connected();
  const heard = [];
  const done = new Promise(resolve => listener.on('notification', message => {
    heard.push([message.channel, message.payload, message.processId === client.processID]);
    if (message.payload === 'last') resolve();
  }));
  await listener.query('LISTEN news');
  await client.query('BEGIN; NOTIFY news, \'first\'; NOTIFY news');
  await client.query('COMMIT');
  await client.query("SELECT pg_notify('news', $1)", ['last']);
  await done;
  say('heard', heard);
  const own = (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;
  say('own pid', own === client.processID);

  const query = new pg.Query('SELECT pg_sleep(60)');
  const ended = new Promise(resolve => { query.on('error', resolve); query.on('end', resolve); });
  listener.query(query);
  const watcher = await connected();
  while ((await watcher.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND query LIKE 'SELECT pg_sleep%'", [listener.processID])).rowCount === 0) ;
  new pg.Client({ssl: false}).cancel(listener, query);
  say('cancelled', failure(await ended));
  say('after cancel', (await listener.query('SELECT 1 AS one')).rows);

  const gone = new Promise(resolve => listener.on('error', resolve));
  await watcher.query('SELECT pg_terminate_backend($1)', [listener.processID]);
  const lost = await gone;
  say('terminated', [lost.code, lost.severity]);
  await watcher.end();

  const pool = new pg.Pool({ssl: false, max: 8});
  const answers = await Promise.all(Array.from({length: 100}, (_, i) => pool.query('SELECT $1::int * 2 AS n', [i])));
  say('pool', answers.reduce((sum, answer) => sum + answer.rows[0].n, 0));
  await pool.end();

  const settings = await connected({application_name: 'node peers', options: '-c search_path=pg_catalog -c statement_timeout=150'});
  say('settings', [(await settings.query('SHOW application_name')).rows, (await settings.query('SHOW search_path')).rows]);
  say('statement timeout', await refused(settings.query('SELECT pg_sleep(30)')));
  await settings.end();
}

const client = await connected();
await queries(client);
await errors(client);
await waiting(client);
await cursors(client);
await copies(client);
await others(client);
await client.end();
say('end', true);
