// A WHEP client that this project did not write (aiortc) joins, decodes, leaves; two hundred
// joins and leaves give back everything they took.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { figure, startDemo } from './lib.mjs';

const run = promisify(execFile);
const python = process.env.E2E_PYTHON ?? 'python3';
const client = join(dirname(fileURLToPath(import.meta.url)), 'whep_client.py');

describe('aiortc', { timeout: 400_000 }, () => {
  let demo;
  before(async () => { demo = await startDemo(['--size', '360x640', '--fps', '30']); });
  after(async () => { await demo?.stop(); });

  const viewer = async (mode, count) => {
    const { stdout } = await run(python, [client, mode, demo.ready.whep_url, demo.ready.join_token, String(count)]);
    return JSON.parse(stdout);
  };

  test('joins, decodes 120 frames, leaves', async () => {
    const r = await viewer('decode', 120);
    figure('aiortc', r);
    assert.deepEqual([r.frames, r.width, r.height], [120, 360, 640]);
  });

  test('200 joins and leaves give back memory, tasks, sockets and map entries', async () => {
    await viewer('churn', 20); // warm: allocator, caches and pools reach their working size
    const before = await quiet();
    figure('churn', await viewer('churn', 200));
    const after = await quiet();
    figure('state_before_and_after_200_joins', { before, after });
    assert.equal(after.sockets, before.sockets, 'sockets');
    // One that had nothing to do for ten seconds may have ended meanwhile.
    assert.ok(after.threads <= before.threads, `threads: ${before.threads}, then ${after.threads}`);
    for (const [name, value] of Object.entries(before.gauges)) assert.equal(after.gauges[name], value, name);
    assert.ok(after.rss_kib - before.rss_kib < 6 * 1024, `grew by ${after.rss_kib - before.rss_kib} KiB`);
  });

  // State without any viewer. Metrics are published once a second, so the last one to leave is
  // still counted for a moment.
  async function quiet() {
    const deadline = Date.now() + 20_000;
    for (;;) {
      const now = await state();
      const viewers = Object.entries(now.gauges).filter(([k]) => k.startsWith('fanlight_router_shard_viewers'));
      assert.ok(viewers.length > 0, 'the gauge of viewers is exported');
      if (viewers.every(([, v]) => v === 0)) return now;
      assert.ok(Date.now() < deadline, `viewers that left are still counted: ${JSON.stringify(viewers)}`);
      await new Promise((ok) => setTimeout(ok, 200));
    }
  }

  async function state() {
    const pid = demo.child.pid;
    const text = await (await fetch(demo.ready.metrics_url)).text();
    const gauges = {};
    for (const line of text.split('\n')) {
      const m = /^(fanlight_[a-z0-9_]*(?:sessions|viewers|tasks|addresses|timers|ufrags|map_entries)(?:_active|_current|_live)?)(\{[^}]*\})? ([0-9.e+]+)$/.exec(line);
      if (m && !m[1].endsWith('_total')) gauges[m[1] + (m[2] ?? '')] = Number(m[3]);
    }
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const field = (n) => Number(new RegExp(`^${n}:\\s+(\\d+)`, 'm').exec(status)[1]);
    return { rss_kib: field('VmRSS'), threads: field('Threads'), sockets: readdirSync(`/proc/${pid}/fd`).length, gauges };
  }
});
