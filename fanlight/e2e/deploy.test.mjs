// deploy/container/compose.yaml without containers: the same commands in the same order, as processes
// on ports of their own, carry a device's stream to a viewer's door. What a container engine adds
// (image, volumes, host network) is not tested here.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { delimiter, dirname, join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import yaml from 'yaml';
import { call, eventually, service } from './backend.mjs';
import { BIN, startProcess, tempDir } from './lib.mjs';

const file = resolve(dirname(fileURLToPath(import.meta.url)), '../../deploy/container/compose.yaml');

describe('the topology of compose.yaml', { timeout: 120_000 }, () => {
  const compose = yaml.parse(readFileSync(file, 'utf8'), { merge: true });
  const processes = {};
  const ports = new Map();
  let dir, text;

  before(async () => {
    dir = tempDir();
    // Every address of the file, with a port that is free here.
    const all = JSON.stringify([compose.services, compose.configs]);
    for (const [, port] of all.matchAll(/127\.0\.0\.1:(\d+)/g)) {
      if (!ports.has(port)) ports.set(port, await freePort(ports));
    }
    text = (value) => value
      .replace(/127\.0\.0\.1:(\d+)/g, (_, port) => `127.0.0.1:${ports.get(port)}`)
      .replaceAll('/etc/fanlight/', `${dir}/`);
    mkdirSync(join(dir, 'bin'));
    symlinkSync(BIN, join(dir, 'bin/fanlight'));
    // Compose writes a dollar as two.
    const [script] = compose.services.pki.command;
    execFileSync('/bin/sh', ['-ec', script.replaceAll('$$', '$')], {
      cwd: dir, stdio: 'pipe', env: { ...process.env, PATH: join(dir, 'bin') + delimiter + process.env.PATH } });
    for (const { source, target } of compose.services.worker.configs) {
      writeFileSync(text(target), text(compose.configs[source].content));
    }
    for (const name of order(compose.services).filter((n) => n !== 'pki')) {
      processes[name] = startProcess(compose.services[name].command.map(text), {}, dir);
    }
  });

  after(async () => {
    for (const running of Object.values(processes)) await running.stop('SIGKILL');
    if (dir) rmSync(dir, { recursive: true, force: true });
  });

  const address = (name, flag) => {
    const { command } = compose.services[name];
    return text(command[command.indexOf(flag) + 1]);
  };

  test('a stream of the simulated device is placed and a viewer is sent to a router', async () => {
    const [streams, viewers] = ['stream', 'viewer'].map((name) => service(name, address('control', '--grpc-listen')));
    await eventually(() => call(streams, 'CreateStream', { stream_id: 'phone', stream: { device: 'devices/phone' } }));
    const viewer = await eventually(() => call(viewers, 'CreateViewer', { parent: 'streams/phone', viewer: {} }));
    const doors = ['router-1', 'router-2'].map((name) => address(name, '--listen-http'));
    assert.ok(doors.includes(new URL(viewer.whep_url).host), `${viewer.whep_url} is none of ${doors}`);
    const live = await eventually(async () => {
      const stream = await call(streams, 'GetStream', { name: 'streams/phone' });
      assert.equal(stream.state, 'STREAM_STATE_LIVE');
      return stream;
    });
    assert.ok(live.name);
    // Its door: the offer is missing, but the stream is there and the token is good.
    const answer = await fetch(viewer.whep_url, {
      method: 'POST', headers: { authorization: `Bearer ${viewer.join_token}`, 'content-type': 'application/sdp' }, body: 'v=0\r\n' });
    assert.equal(answer.status, 400, await answer.text());
  });

  test('every process is ready and exports metrics where the scrape configuration looks', async () => {
    const worker = text(compose.configs.worker.content).match(/admin_listen = "(.*)"/)[1];
    const listeners = ['control', 'router-1', 'router-2'].map((name) => address(name, '--admin-listen'));
    for (const listener of [...listeners, worker]) {
      const ready = await fetch(`http://${listener}/readyz`);
      assert.equal(ready.status, 200, `${listener}: ${await ready.text()}`);
      assert.match(await (await fetch(`http://${listener}/metrics`)).text(), /^fanlight_build_info/m);
    }
  });

  test('each ends with exit code 0 when it is told to', async () => {
    for (const [name, running] of Object.entries(processes)) {
      assert.equal(await running.stop(), 0, `${name}\n${running.log().slice(-2000)}`);
    }
  });
});

/** Names of services such that each comes after those it depends on. */
function order(services) {
  const sorted = [];
  const visit = (name) => {
    const needed = services[name].depends_on ?? [];
    (Array.isArray(needed) ? needed : Object.keys(needed)).forEach(visit);
    if (!sorted.includes(name)) sorted.push(name);
  };
  Object.keys(services).forEach(visit);
  return sorted;
}

/** A port that is free for TCP and UDP, outside of those that the system gives away by itself. */
async function freePort(taken) {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    if ([...taken.values()].includes(port)) continue;
    const [tcp, udp] = [createServer(), createSocket('udp4')];
    try {
      tcp.listen(port, '127.0.0.1');
      await once(tcp, 'listening');
      udp.bind(port, '127.0.0.1');
      await once(udp, 'listening');
      return port;
    } catch {
      // Somebody has it: another one.
    } finally {
      tcp.close();
      udp.close();
    }
  }
}
