// The console's pages in a real Chromium. `cargo test --test live the_pages` starts the consoles and says where they are.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';

const { CHROMIUM, CONSOLE, GUARDED_CONSOLE, TOKEN } = process.env;
const MARKUP = "<script>document.title = 'taken'</script>";
const LIMIT = 60_000;
let browser;

before(async () => {
  assert.ok(CHROMIUM && CONSOLE && GUARDED_CONSOLE && TOKEN, 'started by `cargo test --test live the_pages`');
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-dev-shm-usage',
      '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(() => browser?.close());

/** A fresh tab; what the page complains of fails the test. */
async function open(url, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error' && !message.text().includes('status of')) complaints.push(message.text());
  });
  await page.goto(url);
  return { page, close: async () => { assert.deepEqual(complaints, []); await context.close(); } };
}

const row = (page, text) => page.locator('tbody tr', { hasText: text });

test('every page fits at 375 and 1440 pixels, in light and dark', async () => {
  for (const [width, colorScheme] of [[375, 'dark'], [375, 'light'], [1440, 'light'], [1440, 'dark']]) {
    const { page, close } = await open(`${CONSOLE}/`, { viewport: { width, height: 800 }, colorScheme });
    for (const [hash, text] of [
      ['#/', 'retry-1'],
      ['#/dlq/orders', 'order # not found'],
      ['#/dlq/orders/letters?class=permanent', 'order 1 not found'],
      ['#/dlq/orders/letter/1:0', 'history of event-1'],
      ['#/dlq/orders/order?class=permanent', 'Class: permanent'],
      ['#/dlq/orders/jobs', 'Nobody has redriven'],
    ]) {
      await page.goto(`${CONSOLE}/${hash}`);
      await page.getByText(text).first().waitFor();
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(over, 0, `${hash} at ${width} px is too wide by ${over}`);
    }
    await close();
  }
});

test('a group is opened and one letter read by keyboard alone, its markup as text', async () => {
  const { page, close } = await open(`${CONSOLE}/#/dlq/orders`);
  const press = async (reaches) => {
    for (let i = 0; i < 60; i += 1) {
      await page.keyboard.press('Tab');
      const text = await page.evaluate(() => document.activeElement?.textContent ?? '');
      if (text.includes(reaches)) {
        await page.keyboard.press('Enter');
        return;
      }
    }
    assert.fail(`no way to ${reaches} by Tab`);
  };
  await row(page, 'order # not found').waitFor();
  await press('order # not found');
  await row(page, 'event-1').first().waitFor();
  await press('event-1');
  await page.getByRole('heading', { name: 'Attempts' }).waitFor();
  assert.match(await page.locator('.timeline').innerText(), /main\s+permanent\s+history of event-\d+/);
  const value = await page.locator('pre.value').innerText();
  assert.ok(value.includes('"uniqueId": "event-1') && JSON.parse(value).itemId.startsWith(MARKUP), value);
  assert.ok((await page.locator('.headers').innerText()).includes(MARKUP));
  assert.match(await page.title(), /^Letter \d+:\d+ · orders/);
  assert.equal(await page.locator('main script, main img').count(), 0);
  await page.getByText("Not shown, as the message's declaration does not have them: field 900.").waitFor();
  const focus = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.textContent);
  await press('Correct its value');
  assert.equal(await focus(), 'corrected');
  await page.keyboard.press('Escape');
  assert.match(await focus(), /^Correct its value/);
  assert.equal(await page.locator('#corrected').count(), 0);
  await page.keyboard.press('Enter');
  await page.locator('#corrected').fill('{}');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('#corrected').inputValue(), '{}', 'nothing that was typed is thrown away');
  await page.getByLabel('Drop field 900').waitFor();
  await close();
});

test('a dry run is shown, a double click redrives once, and the overview moves', async () => {
  const overview = await open(`${CONSOLE}/#/`);
  const dlq = overview.page.locator('[data-stage="dlq"]');
  await dlq.getByText('200').waitFor();

  const { page, close } = await open(`${CONSOLE}/#/dlq/orders`);
  await row(page, 'order # not found').getByRole('link').click();
  await page.getByRole('link', { name: 'Redrive these' }).click();
  await page.getByRole('button', { name: 'Dry run' }).click();
  const plan = page.locator('#plan');
  await plan.getByText('40 open letters would be redriven to the first retry stage; nothing has moved yet.').waitFor();
  assert.equal(await plan.locator('.sample li').count(), 5);
  assert.match(await dlq.innerText(), /200/, 'a dry run moves nothing');

  const asked = [];
  page.on('response', (response) => response.url().endsWith('/run') && asked.push(response.status()));
  const id = page.url().split('/').pop();
  // Twice at once past the page, and twice on its button.
  const beside = page.evaluate(async (path) => {
    const run = () => fetch(path, { method: 'POST', body: '{}', headers: { 'X-Ladder-Console': '1' } });
    return (await Promise.all([run(), run()])).map((response) => response.status);
  }, `/api/pipelines/orders/plans/${id}/run`);
  await plan.getByRole('button', { name: 'Redrive 40 letters' }).dblclick({ noWaitAfter: true }).catch(() => {});
  await beside;
  await plan.getByText('Done: 40 letters redriven.').waitFor();
  assert.ok(await plan.evaluate((node) => node.contains(document.activeElement)), 'the keyboard goes on from here');
  assert.equal(asked.filter((status) => status === 202).length, 1, `${asked}`);
  assert.ok(asked.every((status) => [202, 409].includes(status)), `${asked}`);

  await dlq.getByText('160').waitFor();
  assert.match(await dlq.innerText(), /redriven\s+40/);
  await page.getByRole('link', { name: 'Jobs' }).first().click();
  await row(page, '40 of 40').getByText('done').waitFor();
  await page.goto(`${CONSOLE}/#/dlq/orders`);
  await row(page, 'order # not found').getByText('40 redriven').waitFor();
  await close();
  await overview.close();
});

test('a group is discarded, with a reason', async () => {
  const { page, close } = await open(`${CONSOLE}/#/dlq/orders/order?class=poison&action=discard`);
  await page.getByRole('button', { name: 'Dry run' }).click();
  assert.equal(await page.locator('#plan').count(), 0, 'a reason is asked for');
  await page.getByLabel('Reason').fill('bytes of a test');
  await page.getByLabel('Your name').fill('ann');
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByRole('button', { name: 'Discard 40 letters' }).click();
  await page.getByText('Done: 40 letters discarded.').waitFor();
  assert.match(await page.locator('#plan').innerText(), /bytes of a test[^]*ann \(console of/);
  await close();
});

test('a stage is paused and goes on', async () => {
  const { page, close } = await open(`${CONSOLE}/#/`);
  const stage = page.locator('[data-stage="retry-1"]');
  await stage.getByRole('button', { name: 'Pause …' }).click();
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Pause …', 'the focus is where it was');
  assert.equal(await stage.locator('form').count(), 0);
  await page.keyboard.press('Enter');
  await stage.getByLabel('Pause retry-1 in every instance').fill('deploy');
  await stage.getByRole('button', { name: 'Pause', exact: true }).click();
  await stage.getByText(/paused by .*: deploy/).waitFor();
  await stage.getByRole('button', { name: 'Resume' }).click();
  await stage.getByText(/paused by/).waitFor({ state: 'detached' });
  await close();
});

test('with a token nothing is shown without it, and a wrong one is refused', async () => {
  const { page, close } = await open(`${GUARDED_CONSOLE}/#/dlq/orders`);
  const dialog = page.getByRole('dialog');
  await dialog.getByText('needs its token').waitFor();
  assert.equal(await page.getByText('not found').count(), 0);
  await dialog.getByLabel('Token').fill('not-the-token-0123456789');
  await dialog.getByRole('button').click();
  await dialog.getByText('this is not the console’s token'.replace('’', "'")).waitFor();
  await dialog.getByLabel('Token').fill(TOKEN);
  await dialog.getByRole('button').click();
  await row(page, 'order # not found').waitFor();
  await page.reload();
  await row(page, 'order # not found').waitFor();
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0, 'it stays in this tab');
  await close();
});

test('a console that has gone is told, and what does not exist is said', async () => {
  const { page, close } = await open(`${CONSOLE}/#/dlq/orders/letter/0:999999`);
  await page.getByText('no letter is at 0:999999').waitFor();
  await page.goto(`${CONSOLE}/#/nothing`);
  await page.getByText('There is no such page').waitFor();
  await page.route('**/api/**', (route) => route.abort());
  await page.goto(`${CONSOLE}/#/dlq/orders`);
  await page.getByText('the console does not answer').first().waitFor();
  await page.unroute('**/api/**');
  await row(page, 'order # not found').waitFor();
  await page.close();
  await close().catch(() => {}); // the aborted requests are complaints
});
