/**
 * The WHEP client's waiting times and its reading of refusals, and the arithmetic of the statistics.
 * Runs in node without a browser; the connection itself is tested in a real one.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatBitrate, summarise } from '../player/overlay.js';
import { withoutTicket } from '../player/connection.js';
import { backoffDelay, eventsLink, Heartbeat, problemOf, retryAfter, roundOf } from '../player/whep.js';

const BACKOFF = { baseMs: 300, capMs: 8000 };

test('waiting times double up to the cap, half of each at random', () => {
  const least = [0, 1, 2, 3, 4, 5, 6, 100].map((n) => backoffDelay(n, BACKOFF, () => 0));
  const most = [0, 1, 2, 3, 4, 5, 6, 100].map((n) => backoffDelay(n, BACKOFF, () => 1));
  assert.deepEqual(least, [150, 300, 600, 1200, 2400, 4000, 4000, 4000]);
  assert.deepEqual(most, [300, 600, 1200, 2400, 4800, 8000, 8000, 8000]);
  for (let i = 0; i < 200; i += 1) {
    const delay = backoffDelay(i % 10);
    assert.ok(delay >= 150 && delay <= 8000, String(delay));
  }
});

test('the server may ask for more time, never for less', () => {
  assert.equal(backoffDelay(0, BACKOFF, () => 0, 3000), 3000);
  assert.equal(backoffDelay(6, BACKOFF, () => 1, 3000), 8000);
});

test('Retry-After is seconds or a date, and bounded', () => {
  const now = Date.parse('2026-01-01T00:00:00Z');
  assert.equal(retryAfter('1'), 1000);
  assert.equal(retryAfter('Thu, 01 Jan 2026 00:00:05 GMT', now), 5000);
  assert.equal(retryAfter('Wed, 31 Dec 2025 00:00:00 GMT', now), 0);
  assert.equal(retryAfter('99999999'), 60_000);
  for (const nothing of [null, '', 'soon', '-1']) assert.equal(retryAfter(nothing, now), 0);
});

test('a router that sends media is not asked for signs of life', () => {
  const heart = new Heartbeat();
  for (let packets = 1; packets < 50; packets += 1) assert.equal(heart.look(packets), 'fine');
});

/** What comes of `count` looks that see no media; each question goes out. */
function silence(heart, count, packets = 7) {
  return Array.from({ length: count }, () => {
    const next = heart.look(packets);
    if (next === 'ask') heart.asked();
    return next;
  });
}

test('a static screen is kept as long as pongs come', () => {
  const heart = new Heartbeat();
  heart.look(7);
  for (let i = 0; i < 50; i += 1) {
    assert.deepEqual(silence(heart, 4), ['ask', 'ask', 'ask', 'ask']);
    heart.heard(30);
  }
});

test('a router that answers nothing is dead after four questions', () => {
  const heart = new Heartbeat();
  heart.heard(30);
  assert.deepEqual(silence(heart, 6), ['fine', 'ask', 'ask', 'ask', 'ask', 'dead']);
});

test('before the first pong, and on a slow path, there is more patience', () => {
  const fresh = new Heartbeat();
  assert.deepEqual(silence(fresh, 20), ['fine', ...Array(18).fill('ask'), 'dead']);
  for (const [roundTripMs, asks] of [[0, 4], [100, 4], [600, 9], [60_000, 18]]) {
    const heart = new Heartbeat();
    heart.look(7);
    heart.heard(roundTripMs);
    assert.deepEqual(silence(heart, asks + 1), [...Array(asks).fill('ask'), 'dead'], String(roundTripMs));
  }
});

test('a question that did not go out is not counted', () => {
  const heart = new Heartbeat();
  heart.heard(30);
  heart.look(7);
  for (let i = 0; i < 50; i += 1) assert.equal(heart.look(7), 'ask');
});

test('what is known of the path outlives its connection', () => {
  const first = new Heartbeat();
  first.heard(600);
  const second = new Heartbeat(first.patience);
  assert.deepEqual(silence(second, 11), ['fine', ...Array(9).fill('ask'), 'dead']);
});

test('a first join goes where it was invited to, a lost one asks the others first', () => {
  assert.deepEqual(roundOf('a', ['b', 'c'], false), ['a', 'b', 'c']);
  assert.deepEqual(roundOf('a', ['b', 'c'], true), ['b', 'c', 'a']);
  assert.deepEqual(roundOf('a', ['a', 'b', 'b'], true), ['a', 'b']);
  assert.deepEqual(roundOf('a', [], true), ['a']);
});

test('the link to the events is found among others, and only if it offers reconnect', () => {
  const relation = 'rel="urn:ietf:params:whep:ext:core:server-sent-events"';
  const base = 'https://r/whep/x';
  const link = `</other>; rel="ice-server", </whep/x/s/events>; ${relation}; events="layers, reconnect"`;
  assert.equal(eventsLink(link, base), 'https://r/whep/x/s/events');
  assert.equal(eventsLink(`</e>; ${relation}; events="layers"`, base), undefined);
  for (const nothing of [null, '', '</e>', 'nonsense; events="reconnect"']) {
    assert.equal(eventsLink(nothing, base), undefined);
  }
});

test('a ticket is good for one move and is not kept', () => {
  assert.equal(withoutTicket('https://r/whep/x?ticket=1.ab'), 'https://r/whep/x');
  assert.equal(withoutTicket('https://r/whep/x?a=b&ticket=1.ab'), 'https://r/whep/x?a=b');
});

function response(status, body, headers = {}) {
  return new Response(body, { status, headers });
}

test('a problem document is told in the server\'s words', async () => {
  const body = JSON.stringify({
    type: 'about:blank', title: 'No common codec', status: 406, detail: 'The offer has VP8 only.',
    reason: 'NO_COMMON_CODEC', offered: ['VP8'], needed: ['H264 42e01f'] });
  const error = await problemOf(response(406, body, { 'content-type': 'application/problem+json' }));
  assert.equal(error.reason, 'NO_COMMON_CODEC');
  assert.equal(error.title, 'No common codec');
  assert.equal(error.message, 'The offer has VP8 only.');
  assert.deepEqual([error.offered, error.needed], [['VP8'], ['H264 42e01f']]);
  assert.equal(error.retryable, false);
});

test('offline is tried again when the server says', async () => {
  const headers = { 'content-type': 'application/problem+json', 'retry-after': '1' };
  const error = await problemOf(response(409, '{"reason":"DEVICE_OFFLINE"}', headers));
  assert.deepEqual([error.retryable, error.retryAfterMs], [true, 1000]);
});

test('only what may pass by itself is tried again', async () => {
  for (const status of [400, 401, 403, 404, 406, 413, 415, 422]) {
    assert.equal((await problemOf(response(status, ''))).retryable, false, String(status));
  }
  for (const status of [409, 429, 500, 502, 503, 504]) {
    assert.equal((await problemOf(response(status, ''))).retryable, true, String(status));
  }
});

test('a refusal that is no problem document still says something', async () => {
  const headers = { 'content-type': 'application/problem+json' };
  for (const body of ['not json', 'null', '[]', '{"title":7}']) {
    const error = await problemOf(response(500, body, headers));
    assert.equal(error.status, 500);
    assert.ok(error.title, body);
  }
  const plain = await problemOf(response(502, '  bad gateway ', { 'content-type': 'text/plain' }));
  assert.equal(plain.detail, 'bad gateway');
});

const sample = (seconds, more) => new Map([
  ['V', { id: 'V', type: 'inbound-rtp', kind: 'video', timestamp: seconds * 1000, codecId: 'C', ...more }],
  ['C', { id: 'C', type: 'codec', mimeType: 'video/H264' }],
  ['T', { id: 'T', type: 'transport', selectedCandidatePairId: 'P' }],
  ['P', { id: 'P', type: 'candidate-pair', currentRoundTripTime: 0.004, remoteCandidateId: 'R' }],
  ['R', { id: 'R', type: 'remote-candidate', protocol: 'udp', candidateType: 'host' }],
]);

test('rates are over the time between two samples', () => {
  const before = sample(10, {
    framesDecoded: 100, bytesReceived: 1e6, packetsLost: 5, packetsReceived: 1000,
    jitterBufferDelay: 1, jitterBufferEmittedCount: 100, totalDecodeTime: 0.5 });
  const now = sample(12, {
    framesDecoded: 160, bytesReceived: 2e6, packetsLost: 15, packetsReceived: 1990,
    jitterBufferDelay: 1.3, jitterBufferEmittedCount: 160, totalDecodeTime: 0.8, framesDropped: 2,
    frameWidth: 720, frameHeight: 1280, jitter: 0.002 });
  const figures = summarise(now, before);
  assert.equal(figures.fps, 30);
  assert.equal(figures.bitrateBps, 4e6);
  assert.equal(figures.lossPercent, 1);
  assert.equal(figures.jitterBufferMs.toFixed(3), '5.000');
  assert.equal(figures.decodeMs.toFixed(3), '5.000');
  assert.equal(figures.rttMs, 4);
  assert.deepEqual([figures.codec, figures.path], ['H264', 'udp host']);
});

test('without a sample before, or without video, there are no rates and no errors', () => {
  assert.equal(summarise(sample(1, { bytesReceived: 5 })).bitrateBps, undefined);
  assert.equal(summarise(new Map()).fps, undefined);
  const still = summarise(sample(2, { framesDecoded: 9 }), sample(1, { framesDecoded: 9 }));
  assert.equal(still.fps, 0, 'a static screen has no frames');
  assert.equal(still.decodeMs, undefined);
});

test('bitrates are written for people', () => {
  assert.equal(formatBitrate(2_410_000), '2.41 Mbit/s');
  assert.equal(formatBitrate(830_400), '830 kbit/s');
  assert.equal(formatBitrate(undefined), '–');
});
