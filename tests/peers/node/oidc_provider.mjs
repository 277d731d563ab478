// A certified OpenID Provider (panva/node-oidc-provider) for tests. Reads one JSON line of settings from standard
// input: {port, keys: [private JWK], clients: [..]}; prints one JSON line when it serves: {issuer}. Ends when
// standard input does. Any user name and password log in; the user's groups are in the settings: {groups: {name: [..]}}.
import http from 'node:http';
import readline from 'node:readline';

import { Provider } from 'oidc-provider';

const lines = readline.createInterface({ input: process.stdin });
const settings = JSON.parse(await new Promise((resolve) => lines.once('line', resolve)));
lines.once('close', () => process.exit(0));
// Its warnings (no https, development logins) are true of tests and nothing else.
console.info = console.warn = () => {};

const server = http.createServer();
await new Promise((resolve) => server.listen(settings.port, '127.0.0.1', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  jwks: { keys: settings.keys },
  clients: settings.clients,
  cookies: { keys: ['for tests only'] },
  conformIdTokenClaims: false,
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519'] },
  claims: { openid: ['sub', 'email', 'email_verified', 'groups'] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, groups: settings.groups[id] ?? [] }),
  }),
  extraTokenClaims: (_, token) => settings.extra?.[token.clientId],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        scope: '',
        audience: 'gatecast',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
        jwt: { sign: { alg: resource.split('#alg=')[1] ?? new URL(resource).pathname.slice(1) } },
      }),
    },
  },
});
server.on('request', provider.callback());
process.stdout.write(`${JSON.stringify({ issuer })}\n`);
