// Shared helpers of the end-to-end tests: starts the real binary and a real Chromium, reads the
// machine-readable strip and touch dots from decoded pixels. Not a test itself.
// Invariant: everything it starts is stopped by the returned `stop`, also when a test fails.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, watch, mkdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join, normalize, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const here = dirname(fileURLToPath(import.meta.url));

/** Path of the binary under test. */
export const BIN = process.env.E2E_BIN ?? resolve(here, '../../target/debug/fanlight');
/** Where screenshots and figures are kept. */
export const ARTEFACTS = process.env.E2E_ARTEFACTS ?? resolve(here, '../../target/e2e');
mkdirSync(ARTEFACTS, { recursive: true });

/** A fresh folder that `stop` removes. */
export function tempDir() {
  return mkdtempSync(join(tmpdir(), 'fanlight-e2e-'));
}

/** Resolves when `path` exists and is not empty; rejects when `child` ends first or `ms` have passed. */
export function fileAppears(path, child, ms) {
  return new Promise((ok, bad) => {
    const done = (f, v) => { watcher.close(); clearTimeout(timer); child.off('exit', ended); f(v); };
    const look = () => { if (statSync(path, { throwIfNoEntry: false })?.size) done(ok); };
    const ended = (code, signal) => done(bad, new Error(`process ended first: ${code ?? signal}`));
    const watcher = watch(dirname(path), look);
    const timer = setTimeout(() => done(bad, new Error(`${path} did not appear in ${ms} ms`)), ms);
    child.on('exit', ended);
    look();
  });
}

/** Starts `fanlight <args>` and gives { child, stop, log }. */
export function startProcess(args, env = {}, cwd = undefined) {
  const child = spawn(BIN, args, {
    cwd,
    env: { ...process.env, RUST_BACKTRACE: '1', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines = [];
  const keep = (chunk) => {
    lines.push(chunk.toString());
    if (lines.length > 4000) lines.splice(0, 1000);
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  const stop = async (signal = 'SIGTERM') => {
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      child.kill(signal);
      await ended;
    }
    return child.exitCode;
  };
  return { child, stop, log: () => lines.join('') };
}

/** Starts `fanlight demo` and waits until it serves. `ready` is its ready file. */
export async function startDemo(args = []) {
  const dir = tempDir();
  const readyPath = join(dir, 'ready.json');
  const proc = startProcess(['demo', '--listen', '127.0.0.1:0', '--ready-json', readyPath, ...args]);
  try {
    await fileAppears(readyPath, proc.child, 30_000);
  } catch (e) {
    await proc.stop('SIGKILL');
    throw new Error(`${e.message}\n${proc.log().slice(-4000)}`);
  }
  const ready = JSON.parse(readFileSync(readyPath, 'utf8'));
  const stop = async () => {
    const code = await proc.stop();
    rmSync(dir, { recursive: true, force: true });
    return code;
  };
  return { ...proc, dir, ready, stop };
}

/** Waits for a ready file of any role. */
export async function waitReady(proc, readyPath, ms = 30_000) {
  try {
    await fileAppears(readyPath, proc.child, ms);
  } catch (e) {
    throw new Error(`${e.message}\n${proc.log().slice(-4000)}`);
  }
  return JSON.parse(readFileSync(readyPath, 'utf8'));
}

/**
 * A bad network in front of a router: `fanlight loadtest relay`. `loss` in percent, each way.
 * `via(url)` is the WHEP address that leads through it; `lost()` what it lost towards viewers and
 * from them so far.
 */
export async function startRelay(whepUrl, { loss = 0, rttMs = 40 } = {}) {
  const dir = tempDir();
  const readyPath = join(dir, 'ready.json');
  const proc = startProcess(['loadtest', 'relay', '--upstream', new URL(whepUrl).origin,
    '--loss-percent', String(loss), '--rtt-ms', String(rttMs), '--ready-json', readyPath]);
  const stop = async () => {
    const code = await proc.stop();
    rmSync(dir, { recursive: true, force: true });
    return code;
  };
  let ready;
  try {
    ready = await waitReady(proc, readyPath);
  } catch (e) {
    await stop();
    throw e;
  }
  const via = (url) => { const u = new URL(url); return ready.url + u.pathname + u.search; };
  const lost = async () => {
    const paths = await (await fetch(`${ready.url}/-/counts`)).json();
    const sum = (way, what) => paths.reduce((n, p) => n + p[way][what], 0);
    return { down: sum('down', 'lost'), down_of: sum('down', 'taken'), up: sum('up', 'lost'), up_of: sum('up', 'taken') };
  };
  return { ...proc, via, lost, stop };
}

/** Counters and gauges of a process: { name: sum over labels }. */
export async function metrics(url) {
  const sums = {};
  for (const line of (await (await fetch(url)).text()).split('\n')) {
    const m = /^([a-z0-9_]+)(?:\{[^}]*\})? ([0-9.e+-]+)$/.exec(line);
    if (m) sums[m[1]] = (sums[m[1]] ?? 0) + Number(m[2]);
  }
  return sums;
}

/** Starts Debian's Chromium, headless, with nothing that looks outside this machine. */
export async function startBrowser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync',
      '--allow-loopback-in-peer-connection', '--autoplay-policy=no-user-gesture-required',
      '--disable-renderer-backgrounding', '--disable-backgrounding-occluded-windows',
      '--disable-background-timer-throttling',
    ],
  });
}

// Runs inside the page, Chromium's or Firefox's. Reads the strip that the simulated device draws at the top of its
// screen: 48 x 2 square blocks, 96 bits, see device-sim's documentation.
export function inPage() {
  const W = 48;
  // The player keeps its connections to itself; statistics are asked of them here. A connection is
  // `gone` when the player has closed it, which it does after its goodbye to the router.
  const peers = [];
  const Native = RTCPeerConnection;
  window.RTCPeerConnection = class extends Native {
    constructor(...args) {
      super(...args);
      this.gone = new Promise((ok) => { this.isGone = ok; });
      peers.push(this);
    }
    close() {
      super.close();
      this.isGone();
    }
  };
  const peerOf = (v) => {
    const [track] = v.srcObject.getVideoTracks();
    return peers.find((p) => p.getReceivers().some((r) => r.track === track));
  };
  // The statistics of the video that `v` shows: the inbound stream's.
  const inbound = async (v) => {
    for (const s of (await peerOf(v).getStats()).values()) {
      if (s.type === 'inbound-rtp' && s.kind === 'video') return { ...s };
    }
    return null;
  };
  const canvas = document.createElement('canvas');
  const ctx = canvas.getContext('2d', { willReadFrequently: true });
  const crc8 = (bytes) => {
    let c = 0;
    for (const b of bytes) {
      c ^= b;
      for (let i = 0; i < 8; i++) c = c & 0x80 ? ((c << 1) ^ 0x07) & 0xff : (c << 1) & 0xff;
    }
    return c;
  };
  const strip = (video) => {
    const w = video.videoWidth;
    if (!w) return null;
    const h = Math.ceil(w / W * 2);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    ctx.drawImage(video, 0, 0, w, h, 0, 0, w, h);
    return read(ctx.getImageData(0, 0, w, h).data, w);
  };
  const read = (px, w) => {
    const side = w / W;
    const bytes = new Uint8Array(12);
    for (let i = 0; i < 96; i++) {
      const x = Math.floor(((i % W) + 0.5) * side);
      const y = Math.floor((Math.floor(i / W) + 0.5) * side);
      const o = (y * w + x) * 4;
      const luma = 0.299 * px[o] + 0.587 * px[o + 1] + 0.114 * px[o + 2];
      if (luma > 128) bytes[i >> 3] |= 0x80 >> (i & 7);
    }
    if (bytes[0] !== 0xa5 || bytes[11] !== 0x5a) return null;
    if (crc8(bytes.slice(0, 10)) !== bytes[10]) return null;
    const frame = (bytes[1] << 16) | (bytes[2] << 8) | bytes[3];
    let capture = 0;
    for (let i = 4; i < 9; i++) capture = capture * 256 + bytes[i];
    return { frame, capture_ms: capture, touches: bytes[9] };
  };
  const ageMs = (s) => (performance.timeOrigin + performance.now()) % 2 ** 40 - s.capture_ms;
  const video = (i = 0) => document.querySelectorAll('fanlight-player')[i]?.video ?? null;
  // Resolves at the next presented frame for which `test(video, metadata)` is true.
  const frameWhere = (v, test, ms) => new Promise((ok, bad) => {
    const timer = setTimeout(() => bad(new Error(`no such frame in ${ms} ms`)), ms);
    const step = (_now, meta) => {
      const r = test(v, meta);
      if (r) { clearTimeout(timer); ok(r); } else v.requestVideoFrameCallback(step);
    };
    v.requestVideoFrameCallback(step);
  });
  // Centre of mass of the pixels close to `rgb`, in video pixels; null when there are too few.
  const dotCanvas = document.createElement('canvas');
  const dctx = dotCanvas.getContext('2d', { willReadFrequently: true });
  const dot = (v, rgb) => {
    const w = v.videoWidth, h = v.videoHeight;
    dotCanvas.width = w; dotCanvas.height = h;
    dctx.drawImage(v, 0, 0, w, h);
    const px = dctx.getImageData(0, 0, w, h).data;
    let n = 0, sx = 0, sy = 0;
    for (let y = 0; y < h; y += 2) for (let x = 0; x < w; x += 2) {
      const o = (y * w + x) * 4;
      if (Math.abs(px[o] - rgb[0]) < 45 && Math.abs(px[o + 1] - rgb[1]) < 45 && Math.abs(px[o + 2] - rgb[2]) < 45) {
        n++; sx += x; sy += y;
      }
    }
    return n > 40 ? { x: sx / n, y: sy / n, n, w, h } : null;
  };
  // The strip and a hash of the whole picture (every fourth pixel of every fourth line), both of
  // the same frame: it is drawn once.
  const whole = document.createElement('canvas');
  const wctx = whole.getContext('2d', { willReadFrequently: true });
  const seen = (v) => {
    const w = v.videoWidth, h = v.videoHeight;
    if (whole.width !== w || whole.height !== h) { whole.width = w; whole.height = h; }
    wctx.drawImage(v, 0, 0, w, h);
    const { data } = wctx.getImageData(0, 0, w, h);
    const s = read(data, w);
    if (!s) return null;
    const px = new Uint32Array(data.buffer);
    let hash = 0x811c9dc5;
    for (let y = 0; y < h; y += 4) for (let x = 0; x < w; x += 4) hash = Math.imul(hash ^ px[y * w + x], 0x01000193);
    return { ...s, hash: hash >>> 0 };
  };
  // The inbound stream's statistics, not older than this call: the browser answers from a copy for a while.
  const inboundNow = async (v) => {
    const asked = performance.timeOrigin + performance.now();
    for (;;) {
      const s = await inbound(v);
      if (!s || s.timestamp >= asked) return s;
    }
  };
  // Watches a video for `ms`: what is shown, in which order, how old. The statistics begin before
  // the first picture seen and end after the last one: an answer that comes late must not leave out
  // pictures that are looked for.
  const watch = async (v, ms) => {
    const r = { shown: 0, unreadable: 0, backwards: [], first: null, last: null, gap_ms: 0, ages: [], pictures: {} };
    const before = (await inboundNow(v)) ?? {};
    const start = performance.now();
    let at = start;
    await new Promise((ok) => {
      // A video that shows nothing more must not hold up the test.
      const timer = setTimeout(ok, ms + 1_000);
      const step = () => {
        const now = performance.now();
        r.gap_ms = Math.max(r.gap_ms, now - at);
        at = now;
        const s = seen(v);
        r.shown++;
        if (!s) r.unreadable++;
        else {
          if (r.last !== null && s.frame < r.last) r.backwards.push([r.last, s.frame]);
          r.first ??= s.frame;
          r.last = s.frame;
          r.ages.push(ageMs(s));
          r.pictures[s.frame] = s.hash;
        }
        if (now - start < ms) v.requestVideoFrameCallback(step);
        else { clearTimeout(timer); ok(); }
      };
      v.requestVideoFrameCallback(step);
    });
    const end = performance.now();
    r.gap_ms = Math.round(Math.max(r.gap_ms, end - at));
    r.seconds = (end - start) / 1000;
    const after = await inboundNow(v);
    const counts = ['packetsReceived', 'packetsLost', 'retransmittedPacketsReceived', 'nackCount', 'pliCount', 'firCount',
      'framesDecoded', 'framesDropped', 'freezeCount', 'totalFreezesDuration'];
    r.stats = Object.fromEntries(counts.map((c) => [c, after[c] === undefined ? null : after[c] - (before[c] ?? 0)]));
    return r;
  };
  // Whether the page has been laid out for the picture's present shape: the player hears of a new
  // shape a moment after `videoWidth` tells it, and until then a place on the page is another place
  // of the picture.
  const fits = (v) => {
    const r = v.getBoundingClientRect();
    return Math.abs(r.width / r.height - v.videoWidth / v.videoHeight) < 0.02;
  };
  window.probe = { strip, ageMs, video, fits, frameWhere, dot, peerOf, watch };
}

/** Opens the demo's page with the probe installed and waits for a moving, readable picture. */
export async function openPage(browser, url, { viewport = { width: 1280, height: 900 }, touch = false } = {}) {
  const context = await browser.newContext({ viewport, hasTouch: touch, isMobile: touch });
  const page = await context.newPage();
  page.on('pageerror', (e) => console.error('page error:', e.message));
  page.on('console', (m) => { if (m.type() === 'error') console.error('page console:', m.text()); });
  await page.addInitScript(inPage);
  await page.goto(url);
  await page.waitForFunction(() => {
    const v = probe.video();
    return v && v.videoWidth > 0 && probe.strip(v);
  }, null, { timeout: 15_000 });
  return page;
}

/** Percentile of a list of numbers. */
export function percentile(values, p) {
  const s = [...values].sort((a, b) => a - b);
  return s.length ? s[Math.min(s.length - 1, Math.floor((p / 100) * s.length))] : NaN;
}

/**
 * What `probe.watch` saw of one viewer behind loss, against what it saw of one without: every
 * picture readable, in order, and to the pixel the same; `complete` of them decoded, but for
 * `unsent`. Prints it all.
 */
export function assertUnharmed(name, clean, lossy, { complete, unsent = 0, ...more }) {
  const compared = Object.keys(lossy.pictures).filter((n) => n in clean.pictures);
  const corrupt = compared.filter((n) => lossy.pictures[n] !== clean.pictures[n]);
  const drawn = lossy.last - lossy.first + 1;
  const { stats } = lossy;
  const age = (p) => Math.round(percentile(lossy.ages, p));
  figure(name, {
    seconds: Number(lossy.seconds.toFixed(1)), drawn, decoded: stats.framesDecoded, shown: lossy.shown,
    unreadable: lossy.unreadable, backwards: lossy.backwards.length, compared: compared.length, corrupt: corrupt.length,
    age_ms_p50: age(50), age_ms_p95: age(95), longest_gap_ms: lossy.gap_ms, stats,
    clean_freezes: clean.stats.freezeCount, ...more,
  });
  assert.equal(lossy.unreadable, 0, 'pictures without a readable strip');
  assert.deepEqual(lossy.backwards, [], 'pictures out of order');
  assert.deepEqual(corrupt, [], 'pictures that differ from those of the viewer without loss');
  // A busy page looks at few of them.
  assert.ok(compared.length >= drawn / 10, `${compared.length} of ${drawn} pictures were seen by both`);
  // The first pictures seen may have been decoded before the count began.
  assert.ok(stats.framesDecoded >= complete * drawn - unsent - 3, `${stats.framesDecoded} of ${drawn} pictures decoded`);
  assert.deepEqual([clean.unreadable, clean.stats.nackCount, clean.stats.pliCount], [0, 0, 0], 'the viewer without loss');
}

/** Keeps a figure for SPECIFICATION.md: prints it and appends it to the artefacts. */
export function figure(name, value) {
  console.log(`figure ${name} = ${typeof value === 'object' ? JSON.stringify(value) : value}`);
}

/** Serves the files below a folder, on a free port of loopback. */
export function serve(root) {
  const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };
  const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, 'http://x').pathname).replace(/\/$/, '/index.html');
    try {
      const body = await readFile(join(root, path));
      response.writeHead(200, { 'content-type': types[path.slice(path.lastIndexOf('.'))] ?? 'text/plain' }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((ok) => server.listen(0, '127.0.0.1', () => ok(server)));
}
