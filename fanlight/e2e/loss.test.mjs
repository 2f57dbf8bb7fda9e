// Loss on the path to the viewer, both ways, at a round trip of 40 ms: what clients that this
// project did not write make of it. Every picture shown is the one that was drawn, in order, and
// repairs do that, not new keyframes. E2E_LOSS_SECONDS: how long each path is watched.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { dirname, join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { assertUnharmed, figure, metrics, openPage, percentile, startBrowser, startDemo, startRelay } from './lib.mjs';

const SECONDS = Number(process.env.E2E_LOSS_SECONDS ?? 6);
const FPS = 30;
const RTT_MS = 40;

const run = promisify(execFile);
const python = process.env.E2E_PYTHON ?? 'python3';
const client = join(dirname(fileURLToPath(import.meta.url)), 'whep_client.py');

// What the router counted between two looks at its metrics.
const COUNTED = ['nacks', 'repairs_sent', 'nacks_unknown', 'nacks_denied', 'frames_thinned', 'frames_skipped',
  'pressure_stopped', 'pressure_silenced', 'viewers_lagged', 'keyframes_wanted', 'keyframes_from_cache', 'keyframe_requests'];
const difference = (before, after) => Object.fromEntries(COUNTED.map((n) => [n, `fanlight_router_${n}_total`])
  .map(([n, name]) => [n, (after[name] ?? 0) - (before[name] ?? 0)]));

// A router that gets no processor for half a second moves its viewers on and says so. That is the
// machine's doing and not the path's, and nothing else is excused.
const unsent = (router) => (router.viewers_lagged > 0 ? router.frames_skipped : 0);

// Loss in percent; the part of pictures that must come through; freezes a second, and the part of
// the time that they may take. A repair that is lost itself costs the browser a second try, later.
const PATHS = [
  { loss: 1, complete: 0.999, freezes: 0.1, frozen: 0.02 },
  { loss: 5, complete: 0.995, freezes: 0.4, frozen: 0.1 },
];

describe('loss on the way to the viewer', { timeout: 120_000 + 5 * SECONDS * 1000 }, () => {
  let demo, browser, page, relay;

  before(async () => {
    demo = await startDemo(['--size', '720x1280', '--fps', String(FPS)]);
    browser = await startBrowser();
    // The picture as it is without loss, which the others are compared with.
    page = await openPage(browser, demo.ready.page_url);
  });
  after(async () => {
    await browser?.close();
    await relay?.stop();
    const code = await demo?.stop();
    assert.equal(code, 0, `demo must end cleanly:\n${demo?.log().slice(-3000)}`);
  });

  // A test that failed may have left its player behind.
  afterEach(() => page.evaluate(() => document.querySelectorAll('fanlight-player').forEach((el, i) => i && el.remove())));

  // One relay at a time; its seed is fixed, so that the same datagrams of a path are lost each time.
  const through = async (loss) => {
    await relay?.stop();
    relay = await startRelay(demo.ready.whep_url, { loss, rttMs: RTT_MS });
    return relay.via(demo.ready.whep_url);
  };

  // What was counted since, once the router's threads have told of what is looked for; they do so
  // once a second.
  const counted = async (before, lookedFor) => {
    for (const until = performance.now() + 3_000; ;) {
      const router = difference(before, await metrics(demo.ready.metrics_url));
      if (lookedFor(router) || performance.now() > until) return router;
    }
  };

  for (const { loss, complete, freezes, frozen } of PATHS) {
    test(`Chromium shows every picture as it was drawn through ${loss} % loss`, async () => {
      const before = await metrics(demo.ready.metrics_url);
      await addPlayer(await through(loss));
      const [clean, lossy] = await page.evaluate(
        (ms) => Promise.all([0, 1].map((i) => probe.watch(probe.video(i), ms))), SECONDS * 1000,
      );
      const { stats, seconds } = lossy;
      const router = await counted(before, (r) => r.nacks > 0 && r.repairs_sent > 0);
      const errors = await removePlayer();
      assertUnharmed(`loss_${loss}_percent`, clean, lossy, {
        complete, unsent: unsent(router), relay: await relay.lost(), router,
      });
      assert.deepEqual(errors, [], 'the connection held');
      // That it was lost and repaired.
      assert.ok(stats.packetsLost > 0 && stats.nackCount > 0, 'there was loss, and the browser asked');
      assert.ok(stats.retransmittedPacketsReceived > 0, 'repairs arrived');
      assert.ok(router.nacks > 0 && router.repairs_sent > 0, 'the router knows');
      // That nothing else was needed.
      assert.equal(stats.pliCount, 0, 'keyframes that the browser asked for');
      assert.ok(router.keyframe_requests === 0 || router.viewers_lagged > 0, 'keyframes that the device was asked for');
      assert.equal(router.frames_thinned, 0, 'the path is wide enough for all pictures');
      // The other viewer's freezes are the machine's.
      const [count, time] = ['freezeCount', 'totalFreezesDuration'].map((n) => stats[n] - clean.stats[n]);
      assert.ok(count <= 1 + freezes * seconds, `${count} freezes more than without loss`);
      assert.ok(time <= 0.3 + frozen * seconds, `frozen for ${time} s more than without loss`);
    });
  }

  test('late joiners through 5 % loss show the newest picture at once, not the past', async () => {
    const whep = await through(5);
    const joins = [];
    for (let i = 0; i < 5; i++) {
      joins.push(await page.evaluate(lateJoin, whep));
      await removePlayer();
    }
    figure('late_joiner_with_loss', joins);
    const median = (what) => percentile(joins.map((j) => j[what]), 50);
    // Keyframes are two seconds apart. A joiner who were shown the past would see all the pictures
    // that it is behind by at first.
    const sum = (what) => joins.reduce((n, j) => n + j[what], 0);
    assert.ok(sum('old_pictures') <= sum('first_behind') / 3, JSON.stringify(joins));
    assert.ok(median('current_ms') - median('first_ms') <= 200, JSON.stringify(joins));
  });

  for (const { loss } of PATHS) {
    test(`aiortc decodes every picture through ${loss} % loss`, async () => {
      const before = await metrics(demo.ready.metrics_url);
      const whep = await through(loss);
      const { stdout } = await run(python, [client, 'strips', whep, demo.ready.join_token, String(FPS * Math.ceil(SECONDS / 2))]);
      const r = JSON.parse(stdout);
      const router = difference(before, await metrics(demo.ready.metrics_url));
      figure(`aiortc_loss_${loss}_percent`, { ...r, relay: await relay.lost(), router });
      assert.deepEqual([r.unreadable, r.not_increasing], [0, 0]);
      assert.ok(r.frames >= 0.995 * r.drawn - unsent(router) - 3, `${r.frames} of ${r.drawn} pictures`);
      assert.ok((await relay.lost()).down > 0, 'there was loss');
    });
  }

  // A second player on the page; resolves when its picture can be read.
  async function addPlayer(whep) {
    await page.evaluate(async (whep) => {
      const el = document.createElement('fanlight-player');
      el.setAttribute('whep', whep);
      el.setAttribute('token', document.querySelector('fanlight-player').getAttribute('token'));
      el.setAttribute('autoplay', '');
      el.style.cssText = 'position:fixed;right:0;bottom:0;width:180px;height:320px';
      el.errors = [];
      el.addEventListener('error', (e) => el.errors.push(e.detail.message));
      document.body.append(el);
      await probe.frameWhere(el.video, (v) => probe.strip(v), 15_000);
    }, whep);
  }

  // Takes it away, and waits until it has said goodbye to the router, for which the relay must be
  // there; gives the errors that it told of.
  function removePlayer() {
    return page.evaluate(async () => {
      const el = document.querySelectorAll('fanlight-player')[1];
      const { gone } = probe.peerOf(el.video);
      el.remove();
      await gone;
      return el.errors ?? [];
    });
  }
});

// Runs in the page: a second player, until it shows what the first one shows. Times are since its
// offer was posted.
async function lateJoin(whep) {
  const player = document.querySelector('fanlight-player');
  const el = document.createElement('fanlight-player');
  el.setAttribute('whep', whep);
  el.setAttribute('token', player.getAttribute('token'));
  el.setAttribute('autoplay', '');
  el.style.cssText = 'position:fixed;right:0;bottom:0;width:180px;height:320px';
  performance.clearResourceTimings();
  document.body.append(el);
  const behind = [];
  let first;
  const current = await probe.frameWhere(el.video, (v) => {
    const [mine, newest] = [probe.strip(v), probe.strip(player.video)];
    if (!mine || !newest) return null;
    first ??= performance.now();
    // The other one has no round trip of 40 ms.
    if (newest.frame - mine.frame <= 4) return performance.now();
    behind.push(newest.frame - mine.frame);
    return null;
  }, 15_000);
  const post = performance.getEntriesByType('resource').filter((e) => e.name.includes('/whep/')).at(-1);
  return {
    first_ms: Math.round(first - post.startTime), current_ms: Math.round(current - post.startTime),
    old_pictures: behind.length, first_behind: behind[0] ?? 0,
  };
}
