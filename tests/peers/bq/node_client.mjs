// Google's client for Node.js: a few calls, and a JSON line on stdout for each that says what came of it.
import { createRequire } from 'node:module';

const require = createRequire(`${process.env.BQ_NODE}/`);
const { BigQuery } = require('@google-cloud/bigquery');
const options = { projectId: process.env.GOOGLE_CLOUD_PROJECT };
if (process.env.BQ_DOOR === 'universe') {
  options.universeDomain = process.env.GOOGLE_CLOUD_UNIVERSE_DOMAIN; // the variable alone is not looked at
} else {
  const { OAuth2Client } = require('google-auth-library');
  options.authClient = new OAuth2Client();
  options.authClient.setCredentials({ access_token: process.env.BQ_TOKEN });
  options.apiEndpoint = process.env.BQ_URL;
}
const client = new BigQuery(options);
const dataset = `n${process.pid}_${Date.now()}`;

const scenarios = {
  async create() {
    await client.createDataset(dataset);
    const [table] = await client.dataset(dataset).createTable('people', { schema: 'id:integer,email:string' });
    await table.insert([{ id: 1, email: 'a@example.org' }, { id: 2, email: 'b@example.org' }]);
    return table.id;
  },
  async query() {
    const [rows] = await client.query(`SELECT id, email FROM ${dataset}.people ORDER BY id`);
    return rows;
  },
  async job() {
    const [job] = await client.createQueryJob({ query: 'SELECT TIMESTAMP "2026-01-02 03:04:05+00" AS ts' });
    await job.promise();
    const [rows] = await job.getQueryResults();
    return rows[0].ts.value;
  },
  async rows() {
    const [rows] = await client.dataset(dataset).table('people').getRows();
    return rows.length;
  },
  async failing() {
    try {
      await client.query(`SELECT nope FROM ${dataset}.people`);
    } catch (error) {
      return { code: error.code, reason: error.errors[0].reason };
    }
    throw new Error('it was not refused');
  },
};

for (const [name, run] of Object.entries(scenarios)) {
  try {
    console.log(JSON.stringify({ name, result: await run() }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error.stack || error) }));
  }
}
