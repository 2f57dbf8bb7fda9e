// A device's live screen in a real Chromium: frame rate, second and late viewers, taps, rotation,
// latency read from the pixels. The device is simulated; everything after its ADB port is the product.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ARTEFACTS, figure, openPage, percentile, startBrowser, startDemo } from './lib.mjs';

const RED = [230, 0, 40];

describe('live 720x1280 at 30 fps', { timeout: 240_000 }, () => {
  let demo, browser, page;

  before(async () => {
    demo = await startDemo(['--size', '720x1280', '--fps', '30']);
    browser = await startBrowser();
    page = await openPage(browser, demo.ready.page_url);
  });
  after(async () => {
    await browser?.close();
    const code = await demo?.stop();
    assert.equal(code, 0, `demo must end cleanly:\n${demo?.log().slice(-3000)}`);
  });

  test('shows at least 28 of 30 frames a second for 20 s', async () => {
    const r = await page.evaluate(async () => {
      const v = probe.video();
      const latencies = [];
      let bad = 0, first = null, last = null;
      const until = performance.now() + 20_000;
      const q0 = v.getVideoPlaybackQuality();
      await new Promise((ok) => {
        const step = (_now, meta) => {
          first ??= { t: performance.now(), n: meta.presentedFrames };
          last = { t: performance.now(), n: meta.presentedFrames };
          const s = probe.strip(v);
          if (s) latencies.push(probe.ageMs(s)); else bad++;
          if (performance.now() < until) v.requestVideoFrameCallback(step); else ok();
        };
        v.requestVideoFrameCallback(step);
      });
      const q1 = v.getVideoPlaybackQuality();
      return {
        fps: (last.n - first.n) / ((last.t - first.t) / 1000), seconds: (last.t - first.t) / 1000,
        size: [v.videoWidth, v.videoHeight], latencies, bad,
        dropped: q1.droppedVideoFrames - q0.droppedVideoFrames,
      };
    });
    figure('live_fps', r.fps.toFixed(2));
    figure('live_dropped_frames', r.dropped);
    figure('capture_to_presented_ms', {
      p50: Math.round(percentile(r.latencies, 50)), p95: Math.round(percentile(r.latencies, 95)), n: r.latencies.length,
    });
    assert.deepEqual(r.size, [720, 1280]);
    assert.ok(r.seconds > 19, `${r.seconds} s`);
    assert.ok(r.fps >= 28, `${r.fps} fps presented`);
    assert.ok(r.bad <= r.latencies.length * 0.02, `${r.bad} frames had no readable strip`);
  });

  test('a second viewer sees the same picture and a late joiner its first frame within 300 ms', async () => {
    const times = [];
    for (let i = 0; i < 5; i++) {
      const t = await page.evaluate(async () => {
        const first = document.querySelector('fanlight-player');
        const el = document.createElement('fanlight-player');
        el.setAttribute('whep', first.getAttribute('whep'));
        el.setAttribute('token', first.getAttribute('token'));
        el.setAttribute('autoplay', '');
        el.style.cssText = 'position:fixed;right:0;bottom:0;width:180px;height:320px';
        performance.clearResourceTimings();
        document.body.append(el);
        const shown = await probe.frameWhere(el.video, (v) => {
          const s = probe.strip(v);
          return s && { at: performance.now(), age: probe.ageMs(s) };
        }, 10_000);
        const post = performance.getEntriesByType('resource').filter((e) => e.name.includes('/whep/')).at(-1);
        // The newest picture, not a replay of the past: one more frame must be current.
        const fresh = await probe.frameWhere(el.video, (v) => {
          const s = probe.strip(v);
          return s && probe.ageMs(s) < 400 && { at: performance.now() };
        }, 10_000);
        el.remove();
        return { first_ms: shown.at - post.startTime, fresh_ms: fresh.at - post.startTime };
      });
      times.push(t);
    }
    figure('late_joiner_first_frame_ms', times.map((t) => Math.round(t.first_ms)));
    figure('late_joiner_current_frame_ms', times.map((t) => Math.round(t.fresh_ms)));
    assert.ok(percentile(times.map((t) => t.first_ms), 50) <= 300, JSON.stringify(times));
  });

  test('a tap at five places lands on the device and its dot is seen by both viewers', async () => {
    const second = await openPage(browser, demo.ready.page_url);
    const log = demo.ready.streams[0].input_log;
    const latencies = [];
    for (const [fx, fy] of [[0.5, 0.5], [0.2, 0.3], [0.8, 0.3], [0.2, 0.8], [0.8, 0.7]]) {
      const before = readFileSync(log, 'utf8').split('\n').length;
      const at = await spot(page, fx, fy);
      const seen = [page, second].map((p) => p.evaluate((rgb) => probe.frameWhere(
        probe.video(), (v) => { const d = probe.dot(v, rgb); return d && { ...d, t: performance.timeOrigin + performance.now() }; }, 5_000,
      ), RED));
      const t0 = Date.now();
      await page.mouse.move(at.x, at.y);
      await page.mouse.down();
      const dots = await Promise.all(seen);
      await page.mouse.up();
      latencies.push(dots[0].t - t0);
      for (const d of dots) {
        assert.ok(Math.abs(d.x / d.w - fx) < 0.015 && Math.abs(d.y / d.h - fy) < 0.015, `dot ${JSON.stringify(d)} for ${fx},${fy}`);
      }
      const downs = readFileSync(log, 'utf8').trim().split('\n').slice(before - 1).map((l) => JSON.parse(l))
        .filter((r) => r.kind === 'touch' && r.action === 'down');
      assert.equal(downs.length, 1, 'one tap is one down');
      const [d] = downs;
      assert.ok(Math.abs(d.x / d.w - fx) < 0.01 && Math.abs(d.y / d.h - fy) < 0.01, `device saw ${JSON.stringify(d)}`);
      await page.waitForFunction((rgb) => !probe.dot(probe.video(), rgb), RED, { timeout: 5_000 });
    }
    figure('tap_to_dot_ms', { p50: Math.round(percentile(latencies, 50)), max: Math.round(Math.max(...latencies)) });
    await second.context().close();
  });

  test('rotation keeps taps right', async () => {
    await page.locator('fanlight-player').evaluate((el) => el.focus());
    await page.getByRole('button', { name: /rotate/i }).click();
    await page.waitForFunction(() => {
      const v = probe.video();
      return v.videoWidth === 1280 && v.videoHeight === 720 && probe.strip(v) && probe.fits(v);
    }, null, { timeout: 10_000 });
    const [fx, fy] = [0.3, 0.6];
    const at = await spot(page, fx, fy);
    const seen = page.evaluate((rgb) => probe.frameWhere(probe.video(), (v) => probe.dot(v, rgb), 5_000), RED);
    await page.mouse.move(at.x, at.y);
    await page.mouse.down();
    const d = await seen;
    await page.screenshot({ path: join(ARTEFACTS, 'rotated.png') });
    await page.mouse.up();
    assert.deepEqual([d.w, d.h], [1280, 720]);
    assert.ok(Math.abs(d.x / d.w - fx) < 0.015 && Math.abs(d.y / d.h - fy) < 0.015, JSON.stringify(d));
    await page.getByRole('button', { name: /rotate/i }).click();
    await page.waitForFunction(() => probe.video().videoWidth === 720 && probe.fits(probe.video()), null, { timeout: 10_000 });
    await page.screenshot({ path: join(ARTEFACTS, 'page.png') });
  });

  test('a finger on a phone reaches the device too', async () => {
    const phone = await openPage(browser, demo.ready.page_url, { viewport: { width: 390, height: 844 }, touch: true });
    const log = demo.ready.streams[0].input_log;
    const before = readFileSync(log, 'utf8').split('\n').length;
    const at = await spot(phone, 0.5, 0.4);
    const seen = phone.evaluate((rgb) => probe.frameWhere(probe.video(), (v) => probe.dot(v, rgb), 5_000), RED);
    await phone.touchscreen.tap(at.x, at.y);
    await seen;
    await phone.screenshot({ path: join(ARTEFACTS, 'phone.png') });
    const touches = readFileSync(log, 'utf8').trim().split('\n').slice(before - 1).map((l) => JSON.parse(l)).filter((r) => r.kind === 'touch');
    assert.equal(touches[0].action, 'down');
    assert.equal(touches.at(-1).action, 'up');
    await phone.context().close();
  });
});

// Where, in page pixels, the fraction (fx, fy) of the picture is: the video is letterboxed.
async function spot(page, fx, fy) {
  return page.evaluate(([fx, fy]) => {
    const v = probe.video();
    const r = v.getBoundingClientRect();
    const k = Math.min(r.width / v.videoWidth, r.height / v.videoHeight);
    const w = v.videoWidth * k, h = v.videoHeight * k;
    return { x: r.left + (r.width - w) / 2 + fx * w, y: r.top + (r.height - h) / 2 + fy * h };
  }, [fx, fy]);
}
