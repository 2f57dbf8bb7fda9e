/**
 * Bytes of input.js against the vectors that the Rust side is tested with, and the arithmetic of
 * pointing. Runs in node without a DOM.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  chunkText, CLIPBOARD_MAX, decodeMessage, encodeMessage, keyOf, letterbox, mapPoint, scrollValue,
  TEXT_MAX, WireError,
} from '../player/input.js';

const vectors = JSON.parse(readFileSync(new URL('../../wire/vectors/input.json', import.meta.url)));
const bytesOf = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'));
const towardsViewer = (vector) => Number.parseInt(vector.hex.slice(0, 2), 16) >= 0x80;

test('every message of the shared vectors has its bytes', () => {
  const mine = vectors.filter((v) => v.message && !towardsViewer(v));
  assert.ok(mine.length >= 25, `only ${mine.length} vectors`);
  for (const { name, hex, message } of mine) {
    assert.equal(Buffer.from(encodeMessage(message)).toString('hex'), hex, name);
  }
});

test('every message towards the viewer is understood', () => {
  const theirs = vectors.filter((v) => v.message && towardsViewer(v));
  assert.ok(theirs.length >= 10, `only ${theirs.length} vectors`);
  for (const { name, hex, message } of theirs) {
    assert.deepEqual(decodeMessage(bytesOf(hex)), message, name);
    // A view into a greater buffer, as a data channel may give it.
    const padded = bytesOf(`ffff${hex}ffff`).subarray(2, 2 + hex.length / 2);
    assert.deepEqual(decodeMessage(padded), message, name);
  }
});

test('what the vectors refuse towards the viewer is refused here too', () => {
  const refused = vectors.filter((v) => v.error && v.direction === 'device');
  assert.ok(refused.length >= 3);
  for (const { name, hex } of refused) {
    assert.throws(() => decodeMessage(bytesOf(hex)), WireError, name);
  }
});

test('every cut of a message towards the viewer is refused', () => {
  for (const { name, hex } of vectors.filter((v) => v.message && towardsViewer(v))) {
    const bytes = bytesOf(hex);
    for (let end = 0; end < bytes.length; end += 1) {
      assert.throws(() => decodeMessage(bytes.subarray(0, end)), WireError, `${name} cut at ${end}`);
    }
    assert.throws(() => decodeMessage(bytesOf(`${hex}00`)), WireError, `${name} and a byte`);
  }
});

test('what a decoder would refuse is not encoded', () => {
  const touch = { type: 'touch', action: 'down', pointer_id: 0, pressure: 1, x: 0, y: 0, w: 10, h: 10 };
  for (const bad of [
    { ...touch, x: 10 }, { ...touch, y: -1 }, { ...touch, w: 0, h: 0 }, { ...touch, w: 70000 },
    { ...touch, x: NaN }, { ...touch, action: 'press' }, { type: 'nothing' },
    { type: 'text', text: 'x'.repeat(TEXT_MAX + 1) }, { type: 'button', button: 'bell', action: 'press' },
    { type: 'set_clipboard', text: 'x'.repeat(CLIPBOARD_MAX + 1) }, { type: 'get_clipboard' },
  ]) {
    assert.throws(() => encodeMessage(bad), WireError, JSON.stringify(bad).slice(0, 80));
  }
});

test('a picture lies in the middle of its box, whichever way it is letterboxed', () => {
  assert.deepEqual(letterbox(720, 1280, 720, 1280), { x: 0, y: 0, w: 720, h: 1280, scale: 1 });
  assert.deepEqual(letterbox(1000, 640, 720, 1280), { x: 320, y: 0, w: 360, h: 640, scale: 0.5 });
  assert.deepEqual(letterbox(360, 1000, 720, 1280), { x: 0, y: 180, w: 360, h: 640, scale: 0.5 });
  for (const zero of [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]) {
    assert.equal(letterbox(...zero), undefined);
  }
});

test('points map to pixels of the picture, not of the box', () => {
  const box = { left: 100, top: 50, width: 1000, height: 640 };
  const at = (x, y) => mapPoint(x, y, box, 720, 1280);
  assert.deepEqual(at(100 + 500, 50 + 320), { x: 360, y: 640, w: 720, h: 1280, inside: true });
  assert.deepEqual(at(100 + 320, 50), { x: 0, y: 0, w: 720, h: 1280, inside: true });
  assert.deepEqual(at(100 + 679.9, 50 + 639.9), { x: 719, y: 1279, w: 720, h: 1280, inside: true });
  const bar = at(150, 100);
  assert.equal(bar.inside, false, 'the black bar is not the picture');
  assert.deepEqual([bar.x, bar.y], [0, 100], 'and is clamped to its edge');
  assert.equal(at(100 + 680, 60).inside, false, 'the right edge is outside');
  assert.equal(mapPoint(1, 1, box, 0, 0), undefined);
});

test('after a rotation the same point means another pixel', () => {
  const box = { left: 0, top: 0, width: 360, height: 640 };
  assert.deepEqual(mapPoint(180, 320, box, 1280, 720), { x: 640, y: 360, w: 1280, h: 720, inside: true });
  assert.equal(mapPoint(180, 100, box, 1280, 720).inside, false);
  assert.equal(mapPoint(180, 100, box, 720, 1280).inside, true);
});

test('long texts are cut between characters', () => {
  const text = 'ab🙂ü'.repeat(400);
  const chunks = chunkText(text);
  assert.equal(chunks.join(''), text);
  assert.ok(chunks.length > 1);
  for (const chunk of chunks) assert.ok(Buffer.byteLength(chunk) <= TEXT_MAX);
  assert.deepEqual(chunkText('🙂🙂', 5), ['🙂', '🙂']);
  assert.deepEqual(chunkText(''), []);
});

test('wheel notches are clamped', () => {
  assert.equal(scrollValue(1), 2048);
  assert.equal(scrollValue(-1), -2048);
  assert.equal(scrollValue(-99), -32767);
  assert.equal(scrollValue(0), 0);
  assert.equal(scrollValue(NaN), 0);
});

const key = (name, more = {}) => ({
  key: name, code: '', shiftKey: false, ctrlKey: false, altKey: false, metaKey: false,
  isComposing: false, getModifierState: (m) => (more.locks ?? []).includes(m), ...more,
});

test('keys become Android key codes, characters without a key become text', () => {
  assert.deepEqual(keyOf(key('a')), { keycode: 29, meta: 0 });
  assert.deepEqual(keyOf(key('Z', { shiftKey: true })), { keycode: 54, meta: 0x41 });
  assert.deepEqual(keyOf(key('A', { locks: ['CapsLock'] })), { keycode: 29, meta: 0x41 });
  assert.deepEqual(keyOf(key('7')), { keycode: 14, meta: 0 });
  assert.deepEqual(keyOf(key(' ')), { keycode: 62, meta: 0 });
  assert.deepEqual(keyOf(key('Enter', { code: 'Enter' })), { keycode: 66, meta: 0 });
  assert.deepEqual(keyOf(key('Escape', { code: 'Escape' })), { keycode: 4, meta: 0 });
  assert.deepEqual(keyOf(key('a', { ctrlKey: true })), { keycode: 29, meta: 0x3000 });
  assert.deepEqual(keyOf(key('ü')), { text: 'ü' });
  assert.deepEqual(keyOf(key('!', { shiftKey: true })), { text: '!' });
  assert.deepEqual(keyOf(key('@', { ctrlKey: true, altKey: true, locks: ['AltGraph'] })), { text: '@' });
});

test('what belongs to the browser or to an input method is left alone', () => {
  for (const name of ['Tab', 'F5', 'F12', 'Process', 'Dead', 'Unidentified', 'MediaPlayPause']) {
    assert.equal(keyOf(key(name, { code: name })), undefined, name);
  }
  assert.equal(keyOf(key('a', { isComposing: true })), undefined);
  assert.equal(keyOf(key('+', { ctrlKey: true })), undefined, 'zooming');
});
