// A recorded 60 fps clip, replayed by the simulated device, in a real Chromium.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BIN, figure, openPage, startBrowser, startDemo, tempDir } from './lib.mjs';

describe('replayed 720x1280 at 60 fps', { timeout: 180_000 }, () => {
  let demo, browser, dir;

  before(async () => {
    dir = tempDir();
    const clip = join(dir, 'clip.h264');
    execFileSync(BIN, ['device-sim', '--record', clip, '--seconds', '6', '--fps', '60', '--size', '720x1280'], { stdio: 'pipe' });
    demo = await startDemo(['--video', clip, '--fps', '60', '--size', '720x1280']);
    browser = await startBrowser();
  });
  after(async () => {
    await browser?.close();
    await demo?.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  test('shows at least 55 of 60 frames a second for 20 s', async () => {
    const page = await openPage(browser, demo.ready.page_url);
    const r = await page.evaluate(async () => {
      const v = probe.video();
      let first = null, last = null;
      const until = performance.now() + 20_000;
      await new Promise((ok) => {
        const step = (_now, meta) => {
          first ??= { t: performance.now(), n: meta.presentedFrames };
          last = { t: performance.now(), n: meta.presentedFrames };
          if (performance.now() < until) v.requestVideoFrameCallback(step); else ok();
        };
        v.requestVideoFrameCallback(step);
      });
      return { fps: (last.n - first.n) / ((last.t - first.t) / 1000), seconds: (last.t - first.t) / 1000, size: [v.videoWidth, v.videoHeight] };
    });
    figure('replay_fps', r.fps.toFixed(2));
    assert.deepEqual(r.size, [720, 1280]);
    assert.ok(r.seconds > 19);
    assert.ok(r.fps >= 55, `${r.fps} fps presented`);
  });
});
