// A headless Chromium that opens one page, does what the job on standard input says, and prints what it saw as JSON:
// what the terminal of the player shows after each step, every request that the page made, every word of its console.
// tests/recorder/test_export_browser_peers.py writes the jobs: {url, chromium, look, width, steps: [[what, argument]]}.

import {readFileSync} from 'node:fs';
import {chromium} from 'playwright-core';

const job = JSON.parse(readFileSync(0, 'utf8'));
const browser = await chromium.launch({
  executablePath: job.chromium, args: ['--no-sandbox', '--disable-dev-shm-usage'], chromiumSandbox: false,
});
const context = await browser.newContext({
  colorScheme: job.look ?? 'light', viewport: {width: job.width ?? 1400, height: 860}, offline: true,
});
const page = await context.newPage();
const requests = [], said = [], dialogs = [];
page.on('request', request => requests.push(request.url().slice(0, 200)));
page.on('console', message => said.push(`${message.type()}: ${message.text()}`));
page.on('pageerror', error => said.push(`error: ${error}`));
page.on('dialog', dialog => { dialogs.push(dialog.message()); dialog.dismiss(); });

// The player draws text as lines of spans, some boxes on a canvas: what a person reads is in the lines.
const screen = () => page.evaluate(() =>
  [...document.querySelectorAll('.ap-term .ap-line')].map(line => line.textContent.trimEnd()).join('\n').trimEnd());
const visibleItems = () => page.locator('#commands li:not([hidden])').allTextContents();
const settle = async (text, there) => { await page.waitForFunction(
  ([text, there]) => there === [...document.querySelectorAll('.ap-term .ap-line')].some(line => line.textContent.includes(text)),
  [text, there], {timeout: 30000}); };

const does = {
  click: selector => page.click(selector),
  press: key => page.keyboard.press(key),
  type: text => page.keyboard.type(text),
  shows: text => settle(text, true),
  hides: text => settle(text, false),
  screenshot: async path => { await page.screenshot({path}); },
  screen: async () => screen(),
  items: async () => visibleItems(),
  count: selector => page.locator(selector).count(),
  evaluate: code => page.evaluate(code),
};

const seen = [];
try {
  await page.goto(job.url, {waitUntil: 'load'});
  await page.waitForSelector('.ap-term', {timeout: 30000});
  for (const [what, argument] of job.steps) seen.push(await does[what](argument) ?? null);
} catch (error) {
  seen.push(`FAILED: ${error.message}`);
  said.push(`screen: ${await screen().catch(() => '')}`);
} finally {
  await browser.close();
}
console.log(JSON.stringify({seen, requests, said, dialogs}));
