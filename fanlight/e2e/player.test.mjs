// The player in a real Chromium against a WHEP server inside the page: which messages each gesture
// makes, under letterboxing and after rotation, what refusals look like, coming back. Not the whole
// path: that is live.test.mjs. Invariant: no device and no router, so it fails only by the player.

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, extname, join } from 'node:path';
import { after, before, beforeEach, afterEach, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ARTEFACTS, startBrowser } from './lib.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const web = join(here, '../../web');
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };
const KIND = { 1: 'touch', 2: 'key', 3: 'scroll', 4: 'text', 5: 'set_clipboard', 6: 'get_clipboard', 7: 'button', 8: 'release_all' };

/** What arrived on the channels, readable. */
function read({ channel, bytes }) {
  const b = Buffer.from(bytes);
  const type = KIND[b[0]];
  const touch = () => ({ action: ['down', 'up', 'move', 'cancel'][b[12]], id: b[13], x: b.readUInt16BE(16), y: b.readUInt16BE(18), w: b.readUInt16BE(20), h: b.readUInt16BE(22) });
  const more = {
    touch, key: () => ({ action: ['down', 'up'][b[12]], keycode: b.readUInt32BE(16), meta: b.readUInt32BE(20) }),
    scroll: () => ({ dx: b.readInt16BE(20), dy: b.readInt16BE(22) }), text: () => ({ text: b.toString('utf8', 14) }),
    set_clipboard: () => ({ paste: b[12], text: b.toString('utf8', 18) }), get_clipboard: () => ({ copy: b[12] }),
    button: () => ({ button: b[12], action: ['down', 'up', 'press'][b[13]] }), release_all: () => ({}),
  }[type];
  return { channel, type, seq: b.readUInt32BE(4), lease: b.readUInt32BE(8), ...more() };
}

describe('the player', () => {
  let server, browser, base, page;

  before(async () => {
    server = createServer((request, response) => {
      const path = new URL(request.url, 'http://x').pathname;
      const file = join(web, path === '/' ? 'index.html' : path);
      response.statusCode = existsSync(file) ? 200 : 404;
      response.setHeader('content-type', TYPES[extname(file)] ?? 'text/plain');
      response.end(existsSync(file) ? readFileSync(file) : '');
    });
    await new Promise((ok) => server.listen(0, '127.0.0.1', ok));
    base = `http://127.0.0.1:${server.address().port}/`;
    browser = await startBrowser();
  });
  after(async () => {
    await browser?.close();
    server?.close();
  });
  afterEach(() => page?.context().close());

  async function open({ touch = false, prepare, viewport = { width: 1280, height: 800 } } = {}) {
    const context = await browser.newContext({ viewport, hasTouch: touch, isMobile: touch });
    page = await context.newPage();
    await page.addInitScript({ path: join(here, 'fake-router.js') });
    if (prepare) await page.addInitScript(prepare);
    await page.goto(`${base}#whep=/whep/x&token=secret&label=Pixel`);
  }

  async function live() {
    await page.waitForFunction(() => {
      const { player } = window.fanlight ?? {};
      return player?.state === 'live' && player.role && player.video.videoWidth === fakeRouter.canvas.width;
    }, null, { timeout: 15_000 });
  }

  const box = () => page.evaluate(() => {
    const r = fanlight.player.video.getBoundingClientRect();
    return { x: r.x, y: r.y, w: r.width, h: r.height };
  });

  /** Waits until `count` messages came since the last call, and gives them. */
  async function messages(count) {
    await page.waitForFunction((n) => fakeRouter.received.length >= n, count, { timeout: 5_000 });
    return (await page.evaluate(() => fakeRouter.received.splice(0))).map(read);
  }

  /** Sends a marker through the same channel: what came before it is all there was. */
  async function everything() {
    await page.evaluate(() => fanlight.player.input.text('\u0007'));
    await page.waitForFunction(() => fakeRouter.received.some((m) => m.bytes[0] === 4 && m.bytes[14] === 7));
    return (await page.evaluate(() => fakeRouter.received.splice(0))).map(read).slice(0, -1);
  }

  describe('with a picture', () => {
    beforeEach(async () => {
      await open();
      await live();
    });

    test('a router that sends nothing but answers is kept, one that is silent is left and joined again', async () => {
      const still = () => fakeRouter.server.getSenders()[0].replaceTrack(null);
      await page.evaluate(still);
      const before = await page.evaluate(() => fakeRouter.pings);
      await page.waitForFunction((n) => fakeRouter.pings >= n + 8, before, { timeout: 15_000 });
      const { state, posts } = await page.evaluate(() => ({
        state: fanlight.player.state, posts: fakeRouter.requests.filter((r) => r.method === 'POST').length }));
      assert.deepEqual([state, posts], ['live', 1]);
      const reason = await page.evaluate(() => new Promise((ok) => {
        fanlight.player.addEventListener('error', (e) => ok(e.detail.reason), { once: true });
        fakeRouter.mute = true;
      }));
      assert.equal(reason, 'SILENT');
      await page.evaluate(() => { fakeRouter.mute = false; });
      await page.waitForFunction(() => fakeRouter.requests.filter((r) => r.method === 'POST').length === 2);
      await live();
    });

    test('a click at five places is a down and an up there, with the lease and the size', async () => {
      const b = await box();
      for (const [fx, fy] of [[0.5, 0.5], [0.02, 0.02], [0.98, 0.02], [0.02, 0.98], [0.98, 0.98]]) {
        await page.mouse.click(b.x + fx * b.w, b.y + fy * b.h);
        const [down, up] = await messages(2);
        for (const [message, action] of [[down, 'down'], [up, 'up']]) {
          assert.deepEqual([message.channel, message.type, message.action, message.lease], ['input', 'touch', action, 7]);
          assert.deepEqual([message.w, message.h], [360, 640]);
          assert.ok(Math.abs(message.x - fx * 360) <= 1.5 && Math.abs(message.y - fy * 640) <= 1.5, JSON.stringify(message));
        }
      }
    });

    test('a drag moves on the unreliable channel, rests on the reliable one and ends at the edge', async () => {
      const b = await box();
      await page.mouse.move(b.x + 50, b.y + 100);
      await page.mouse.down();
      await page.mouse.move(b.x + 150, b.y + 300, { steps: 10 });
      await page.waitForFunction(() => fakeRouter.received.some((m) => m.channel === 'input' && m.bytes[12] === 2));
      await page.mouse.move(b.x - 200, b.y + 300);
      await page.mouse.up();
      await page.waitForFunction(() => fakeRouter.received.some((m) => m.bytes[12] === 1));
      const all = await messages(1);
      const ordered = all.filter((m) => m.channel === 'input');
      assert.equal(ordered[0].action, 'down');
      assert.equal(ordered.at(-1).action, 'up');
      assert.equal(ordered.at(-1).x, 0, 'clamped to the picture');
      const moves = all.filter((m) => m.channel === 'input-moves');
      assert.ok(moves.length >= 3 && moves.every((m) => m.action === 'move'), JSON.stringify(moves));
      assert.equal(new Set(all.map((m) => m.seq)).size, all.length, 'one count over both channels');
    });

    test('a picture turned while a pointer is down lets go of it, and the next tap is right', async () => {
      let b = await box();
      await page.mouse.move(b.x + 50, b.y + 100);
      await page.mouse.down();
      await page.evaluate(() => Object.assign(fakeRouter.canvas, { width: 640, height: 360 }));
      await page.waitForFunction(() => fakeRouter.received.some((m) => m.bytes[0] === 8));
      await page.mouse.up();
      assert.deepEqual((await everything()).map((m) => m.type), ['touch', 'release_all']);
      await live();
      b = await box();
      await page.mouse.click(b.x + 0.25 * b.w, b.y + 0.75 * b.h);
      const [down] = await messages(2);
      assert.deepEqual([down.w, down.h], [640, 360]);
      assert.ok(Math.abs(down.x - 160) <= 1.5 && Math.abs(down.y - 270) <= 1.5, JSON.stringify(down));
    });

    test('in a box of another shape the bars are dead and the picture is right', async () => {
      await page.evaluate(() => { fanlight.player.shadowRoot.querySelector('.screen').style.aspectRatio = '1'; });
      const b = await box();
      const width = b.h * 360 / 640;
      const left = b.x + (b.w - width) / 2;
      await page.mouse.click(b.x + 10, b.y + b.h / 2);
      assert.deepEqual(await everything(), []);
      await page.mouse.click(left + 0.1 * width, b.y + 0.5 * b.h);
      const [down] = await messages(2);
      assert.ok(Math.abs(down.x - 36) <= 1.5 && Math.abs(down.y - 320) <= 1.5, JSON.stringify(down));
    });

    test('keys, text, wheel, mouse buttons and clipboard', async () => {
      const b = await box();
      await page.mouse.click(b.x + 100, b.y + 100);
      await messages(2);
      await page.keyboard.press('a');
      await page.keyboard.type('Zü');
      await page.keyboard.insertText('漢字');
      await page.keyboard.press('Backspace');
      assert.deepEqual((await everything()).map(({ type, keycode, meta, text }) => text ?? [type, keycode, meta]), [
        ['key', 29, 0], ['key', 29, 0], ['key', 54, 0x41], ['key', 54, 0x41], 'ü', '漢字', ['key', 67, 0], ['key', 67, 0]]);
      await page.mouse.wheel(0, 100);
      assert.deepEqual((await messages(1)).map((m) => [m.type, m.dx, m.dy]), [['scroll', 0, -2048]]);
      await page.mouse.click(b.x + 100, b.y + 100, { button: 'right' });
      assert.deepEqual((await everything()).map((m) => [m.button, m.action]), [[1, 'press']]);
      await page.keyboard.press('Control+c');
      assert.ok((await everything()).some((m) => m.type === 'get_clipboard' && m.copy === 1));
      await page.evaluate(() => {
        const clipboardData = new DataTransfer();
        clipboardData.setData('text/plain', 'from here');
        fanlight.player.shadowRoot.querySelector('.sink').dispatchEvent(new ClipboardEvent('paste', { clipboardData, cancelable: true }));
      });
      assert.deepEqual((await everything()).map((m) => [m.paste, m.text]), [[1, 'from here']]);
    });

    test('a key held when the keyboard goes elsewhere is released', async () => {
      await page.evaluate(() => fanlight.player.focus());
      await page.keyboard.down('ArrowLeft');
      await page.keyboard.press('Tab');
      assert.deepEqual((await messages(2)).map((m) => m.type), ['key', 'release_all']);
      assert.equal(await page.evaluate(() => fanlight.player.shadowRoot.activeElement.title), 'Back', 'Tab leaves the screen');
    });

    test('buttons follow the pointer, and answer to the keyboard', async () => {
      for (const name of ['Back', 'Home', 'Recent apps', 'Power', 'Volume up', 'Volume down']) {
        await page.getByRole('button', { name, exact: true }).click();
      }
      const held = (await messages(12)).map((m) => `${m.button} ${m.action}`);
      assert.deepEqual(held, [1, 2, 3, 4, 5, 6].flatMap((n) => [`${n} down`, `${n} up`]));
      await page.getByRole('button', { name: 'Rotate device' }).click();
      await page.getByRole('button', { name: 'Home' }).press('Enter');
      assert.deepEqual((await everything()).map((m) => `${m.button} ${m.action}`), ['7 press', '2 press']);
    });

    test('garbage from the router is told on the console and changes nothing', async () => {
      const told = page.waitForEvent('console', (m) => m.text().includes('not understood'));
      await page.evaluate(() => fakeRouter.say([0x81, 1, 2]));
      await told;
      assert.equal(await page.evaluate(() => fanlight.player.state), 'live');
    });

    test('it comes back by itself when the router goes, and leaves with a DELETE', async () => {
      await page.evaluate(() => {
        window.states = [];
        fanlight.player.addEventListener('statechange', (e) => states.push(e.detail.state));
        fakeRouter.server.close();
      });
      await page.waitForFunction(() => states.at(-1) === 'live', null, { timeout: 15_000 });
      assert.deepEqual(await page.evaluate(() => states), ['reconnecting', 'waiting', 'live']);
      await page.evaluate(() => fanlight.player.disconnect());
      const requests = await page.evaluate(() => fakeRouter.requests);
      assert.deepEqual(requests.map((r) => r.method), ['POST', 'DELETE', 'POST', 'DELETE']);
      assert.ok(requests.every((r) => r.authorization === 'Bearer secret'));
      assert.ok(requests.at(-1).target.endsWith('/whep/x/s1'));
      assert.equal(await page.evaluate(() => fanlight.player.state), 'closed');
    });

    test('sent elsewhere while a finger is down: it is lifted, the picture goes on, and the next tap goes there', async () => {
      const b = await box();
      await page.mouse.move(b.x + b.w / 2, b.y + b.h / 2);
      await page.mouse.down();
      assert.deepEqual((await messages(1)).map((m) => m.action), ['down']);
      const seen = await page.evaluate(async () => {
        const { player } = fanlight;
        const states = [];
        player.addEventListener('statechange', (e) => states.push(e.detail.state));
        const before = { server: fakeRouter.server, video: player.video };
        const moved = new Promise((ok) => player.addEventListener('moved', (e) => ok(e.detail), { once: true }));
        const url = new TextEncoder().encode(new URL('/whep/y?ticket=1.ab', location.href).href);
        fakeRouter.say([0x84, ...Array(11).fill(0), 0, url.length, 0, 0, ...url]);
        const detail = await moved;
        return { states, detail, other: before.server !== fakeRouter.server && before.video !== player.video,
          videos: player.shadowRoot.querySelectorAll('video').length, stats: player.getStats() };
      });
      assert.deepEqual([seen.states, seen.other, seen.videos], [[], true, 1]);
      assert.deepEqual([seen.detail.by, new URL(seen.detail.url).pathname, new URL(seen.detail.url).search], ['channel', '/whep/y', '']);
      assert.deepEqual([seen.stats.moves, seen.stats.losses, seen.stats.lastMoveMs], [1, 0, seen.detail.ms]);
      await live();
      assert.deepEqual((await messages(1)).map((m) => m.type), ['release_all']);
      await page.mouse.up();
      await page.mouse.click(b.x + b.w / 4, b.y + b.h / 4);
      const [down, up] = await messages(2);
      assert.deepEqual([down.action, down.x, up.action], ['down', 90, 'up']);
      const requests = await page.evaluate(() => fakeRouter.requests.map((r) => [r.method, new URL(r.target, location.href).pathname]));
      assert.deepEqual(requests, [['POST', '/whep/x'], ['POST', '/whep/y'], ['DELETE', '/whep/x/s1']]);
    });

    test('the statistics panel shows figures', async () => {
      await page.getByRole('button', { name: 'Statistics' }).click();
      await page.waitForFunction(() => fanlight.player.getStats().fps > 5, null, { timeout: 10_000 });
      const panel = page.getByRole('region', { name: 'Connection statistics' });
      assert.match(await panel.innerText(), /360 × 640/);
      await page.screenshot({ path: join(ARTEFACTS, 'player-stats.png') });
    });
  });

  test('two fingers are two pointers, and a tap raises no keyboard', async () => {
    await open({ touch: true, viewport: { width: 390, height: 844 } });
    await live();
    const b = await box();
    const cdp = await page.context().newCDPSession(page);
    const touch = (type, points) => cdp.send('Input.dispatchTouchEvent', {
      type, touchPoints: points.map(([id, fx, fy]) => ({ id, x: b.x + fx * b.w, y: b.y + fy * b.h })) });
    await touch('touchStart', [[0, 0.3, 0.5]]);
    await touch('touchStart', [[0, 0.3, 0.5], [1, 0.7, 0.5]]);
    await touch('touchMove', [[0, 0.2, 0.5], [1, 0.8, 0.5]]);
    await touch('touchEnd', [[0, 0.2, 0.5]]);
    await touch('touchEnd', []);
    await page.waitForFunction(() => fakeRouter.received.filter((m) => m.bytes[12] === 1).length === 2);
    const ends = (await messages(4)).filter((m) => m.action !== 'move').map((m) => `${m.action} ${m.id}`).sort();
    assert.deepEqual(ends, ['down 0', 'down 1', 'up 0', 'up 1']);
    assert.equal(await page.evaluate(() => fanlight.player.shadowRoot.activeElement), null);
  });

  test('an observer sends nothing and sees why', async () => {
    await open({ prepare: () => { fakeRouter.role = 0; } });
    await live();
    const b = await box();
    await page.mouse.click(b.x + 50, b.y + 50);
    await page.keyboard.press('a');
    await page.waitForFunction(() => fanlight.player.getStats().framesDecoded > 0);
    assert.deepEqual(await page.evaluate(() => fakeRouter.received), []);
    assert.ok(await page.getByRole('button', { name: 'Home' }).isDisabled());
    await page.getByText('View only').waitFor();
  });

  test('a refusal for good is shown in the server\'s words, with a way to try again', async () => {
    await open({ prepare: () => {
      fakeRouter.answer = { status: 406, title: 'No common codec', detail: 'The offer has VP8 only.',
        reason: 'NO_COMMON_CODEC', offered: ['VP8'], needed: ['H264 42e01f'] };
    } });
    const card = page.getByRole('alert');
    await card.getByText('No common codec').waitFor();
    const text = await card.innerText();
    for (const part of ['The offer has VP8 only.', 'NO_COMMON_CODEC', 'VP8', 'H264 42e01f']) {
      assert.ok(text.includes(part), text);
    }
    assert.equal(await page.evaluate(() => fanlight.player.state), 'failed');
    await page.screenshot({ path: join(ARTEFACTS, 'player-refused.png') });
    await page.evaluate(() => { fakeRouter.answer = 'live'; });
    await card.getByRole('button', { name: 'Try again' }).click();
    await live();
    assert.ok(await card.isHidden());
  });

  test('an offline device is waited for', async () => {
    await open({ prepare: () => {
      fakeRouter.answer = { status: 409, title: 'The device is offline', reason: 'DEVICE_OFFLINE', headers: { 'retry-after': '1' } };
    } });
    await page.getByRole('alert').getByText('The device is offline').waitFor();
    assert.equal(await page.evaluate(() => fanlight.player.state), 'reconnecting');
    await page.evaluate(() => { fakeRouter.answer = 'live'; });
    await live();
  });
});
