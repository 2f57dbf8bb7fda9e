// Every part in a process of its own, as in a fleet. Killing any one of them and starting it again
// brings the picture back in the same page, without touching the others. The backend is a gRPC
// client made of grpc-js alone.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { call, eventually, service } from './backend.mjs';
import { BIN, figure, openPage, serve, startBrowser, startProcess, tempDir, waitReady } from './lib.mjs';

const repository = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

describe('parts in their own processes', { timeout: 240_000 }, () => {
  const parts = {};
  let dir, web, browser, page, streams, viewers;

  before(async () => {
    dir = tempDir();
    const pki = join(dir, 'pki');
    const run = (...args) => execFileSync(BIN, args, { stdio: 'pipe' });
    run('pki', 'init', '--dir', pki);
    for (const node of ['router-1', 'worker-1']) {
      run('pki', 'issue', '--dir', pki, '--node', node, '--out', join(dir, node));
    }
    await part('device', ['device-sim', '--adb-listen', '127.0.0.1:0', '--size', '360x640', '--input-log', join(dir, 'input.jsonl')]);
    await part('control', ['control', '--grpc-listen', '127.0.0.1:0', '--node-listen', '127.0.0.1:0',
      '--pki-dir', pki, '--token-key-file', join(dir, 'token.pem')]);
    const control = `https://${parts.control.ready.node_addr}`;
    await part('router', ['router', '--node', 'router-1', '--listen-http', '127.0.0.1:0', '--quic-listen', '127.0.0.1:0',
      '--pki-dir', join(dir, 'router-1'), '--control-endpoint', control]);
    await writeFile(join(dir, 'server'), 'fanlight-placeholder-scrcpy-server 3.3.4\n');
    await writeFile(join(dir, 'worker.toml'), `
      [[devices]]
      device = "phone"
      adb = "${parts.device.ready.adb_addr}"
      server_jar = "${join(dir, 'server')}"
      server_version = "3.3.4"
      allow_placeholder_server = true
    `);
    await part('worker', ['ingest', '--config', join(dir, 'worker.toml'), '--pki-dir', join(dir, 'worker-1'), '--control', control]);

    [streams, viewers] = ['stream', 'viewer'].map((name) => service(name, parts.control.ready.grpc_addr));
    const stream = await eventually(() => call(streams, 'CreateStream', { stream_id: 'phone', stream: { device: 'devices/phone' } }));
    assert.equal(stream.name, 'streams/phone');
    const viewer = await call(viewers, 'CreateViewer', {
      parent: 'streams/phone', viewer: { grants: { role: 'VIEWER_ROLE_CONTROLLER' } }, join_ttl: { seconds: 600 },
    });
    web = await serve(join(repository, 'web'));
    browser = await startBrowser();
    const hash = new URLSearchParams({ whep: viewer.whep_url, token: viewer.join_token });
    page = await openPage(browser, `http://127.0.0.1:${web.address().port}/#${hash}`);
  });

  after(async () => {
    await browser?.close();
    web?.close();
    for (const name of ['worker', 'router', 'control', 'device']) await parts[name]?.stop();
    if (dir) rmSync(dir, { recursive: true, force: true });
  });

  for (const [name, args] of [
    ['device', (r) => ['device-sim', '--adb-listen', r.adb_addr, '--size', '360x640', '--input-log', join(dir, 'input.jsonl')]],
    ['worker', () => ['ingest', '--config', join(dir, 'worker.toml'), '--pki-dir', join(dir, 'worker-1'), '--control', `https://${parts.control.ready.node_addr}`]],
    ['router', (r) => ['router', '--node', 'router-1', '--listen-http', r.whep_addr, '--quic-listen', r.quic_addr,
      '--pki-dir', join(dir, 'router-1'), '--control-endpoint', `https://${parts.control.ready.node_addr}`]],
  ]) {
    test(`the ${name} killed and restarted: the picture comes back in the same page`, async () => {
      const others = Object.entries(parts).filter(([n]) => n !== name).map(([n, p]) => [n, p.child.pid]);
      await restart(name, args(parts[name].ready));
      const up = Date.now();
      // A picture drawn after the restart, current, and moving.
      await page.waitForFunction((since) => {
        const s = probe.strip(probe.video());
        return s && s.capture_ms > since % 2 ** 40 && probe.ageMs(s) < 500;
      }, up, { timeout: 20_000, polling: 50 });
      figure(`${name}_restart_to_picture_ms`, Date.now() - up);
      const seen = await current(page, 2_000);
      assert.ok(seen.frames >= 20, JSON.stringify(seen));
      for (const [n, pid] of others) {
        assert.equal(parts[n].child.pid, pid);
        assert.equal(parts[n].child.exitCode, null, `${n} must not notice:\n${parts[n].log().slice(-2000)}`);
      }
    });
  }

  // Last, because the memory store begins empty: streams would have to be created again.
  test('the control API killed: the picture never stops', async () => {
    const watched = current(page, 5_000);
    await parts.control.stop('SIGKILL');
    const seen = await watched;
    figure('control_killed_longest_gap_ms', seen.gap_ms);
    assert.ok(seen.gap_ms < 1_000, JSON.stringify(seen));
  });

  async function part(name, args) {
    const ready = join(dir, `${name}-${Date.now()}.json`);
    const proc = startProcess([...args, '--ready-json', ready]);
    parts[name] = proc;
    proc.ready = await waitReady(proc, ready);
  }

  async function restart(name, args) {
    await parts[name].stop('SIGKILL');
    await part(name, args);
  }
});

// Watches the picture for `ms`: how many frames, the longest time without one.
function current(page, ms) {
  return page.evaluate(async (ms) => {
    const v = probe.video();
    const start = performance.now();
    let last = start, gap = 0, frames = 0;
    await new Promise((ok) => {
      const timer = setTimeout(ok, ms);
      const step = () => {
        const t = performance.now();
        gap = Math.max(gap, t - last);
        last = t;
        frames++;
        if (t - start < ms) v.requestVideoFrameCallback(step); else { clearTimeout(timer); ok(); }
      };
      v.requestVideoFrameCallback(step);
    });
    gap = Math.max(gap, performance.now() - last);
    return { frames, gap_ms: Math.round(gap) };
  }, ms);
}
