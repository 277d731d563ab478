// Google's client for Node.js while a query waits for a human: BQ_SQL by BQ_WAY, and a JSON line that says how it ended.
import { createRequire } from 'node:module';

const require = createRequire(`${process.env.BQ_NODE}/`);
const { BigQuery } = require('@google-cloud/bigquery');
const { OAuth2Client } = require('google-auth-library');
const authClient = new OAuth2Client();
authClient.setCredentials({ access_token: process.env.BQ_TOKEN });
const client = new BigQuery({ projectId: process.env.GOOGLE_CLOUD_PROJECT, authClient, apiEndpoint: process.env.BQ_URL });
const ways = {
  async query() {
    return (await client.query(process.env.BQ_SQL))[0];
  },
  async job() {
    const [job] = await client.createQueryJob({ query: process.env.BQ_SQL });
    return (await job.getQueryResults())[0];
  },
  async promise() {
    const [job] = await client.createQueryJob({ query: process.env.BQ_SQL });
    await job.promise();
    return (await job.getQueryResults())[0];
  },
};
try {
  console.log(JSON.stringify({ rows: await ways[process.env.BQ_WAY]() }));
} catch (error) {
  console.log(JSON.stringify({ code: error.code, reason: error.errors?.[0]?.reason, message: String(error.message) }));
}
