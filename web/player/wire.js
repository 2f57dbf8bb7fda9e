/**
 * Input messages as bytes, by section 5 of wire/WIRE.md. Not the DOM and not the channels.
 * Invariant: the bytes are those of wire/vectors/input.json, which the Rust side is tested with too.
 *
 * A message is a plain object: `{ type, seq, lease_epoch, ... }` with the fields' names of WIRE.md
 * and words in place of enumeration numbers.
 */

const HEADER = 12;

/** Greatest text of one `text` message, in bytes of UTF-8. */
export const TEXT_MAX = 1024;

/** Greatest clipboard text either way, in bytes of UTF-8. */
export const CLIPBOARD_MAX = 64 * 1024;

/** Greatest address of a `reconnect`, in bytes. */
const URL_MAX = 4096;

const KIND = {
  touch: 0x01, key: 0x02, scroll: 0x03, text: 0x04, set_clipboard: 0x05, get_clipboard: 0x06,
  button: 0x07, release_all: 0x08, ping: 0x09,
  session: 0x81, clipboard: 0x82, denied: 0x83, reconnect: 0x84, pong: 0x8a,
};
const TOUCH_ACTION = { down: 0, up: 1, move: 2, cancel: 3 };
const KEY_ACTION = { down: 0, up: 1 };
const BUTTON_ACTION = { down: 0, up: 1, press: 2 };
const COPY_KEY = { none: 0, copy: 1, cut: 2 };
const BUTTON = {
  back_or_screen_on: 1, home: 2, recents: 3, power: 4, volume_up: 5, volume_down: 6,
  rotate_device: 7, expand_notifications: 8, collapse_panels: 9,
};
const ROLE = ['observer', 'controller'];
const DENY_REASON = [, 'not_controller', 'rate_limited', 'stale_size', 'malformed', 'device_offline'];

/** Thrown for a message that cannot become bytes, or bytes that are no message. */
export class WireError extends Error {
  constructor(field, problem) {
    super(`${field}: ${problem}`);
    this.name = 'WireError';
    this.field = field;
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function word(table, field, value) {
  const number = table[value];
  if (number === undefined) throw new WireError(field, `cannot be ${value}`);
  return number;
}

function text(field, value, max) {
  const bytes = encoder.encode(value);
  if (bytes.length > max) throw new WireError(field, `${bytes.length} bytes, at most ${max}`);
  return bytes;
}

/** A message with its header and `length` bytes of body. */
function begin(message, length) {
  const bytes = new Uint8Array(HEADER + length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, word(KIND, 'type', message.type));
  view.setUint32(4, message.seq ?? 0);
  view.setUint32(8, message.lease_epoch ?? 0);
  return { bytes, view };
}

function position(view, at, { x, y, w, h }) {
  const inside = x >= 0 && y >= 0 && x < w && y < h && w <= 0xffff && h <= 0xffff;
  if (!inside) throw new WireError('position', `${x},${y} is outside a picture of ${w}x${h}`);
  [x, y, w, h].forEach((value, i) => view.setUint16(at + 2 * i, value));
}

const ENCODERS = {
  touch(m) {
    const { bytes, view } = begin(m, 16);
    view.setUint8(12, word(TOUCH_ACTION, 'touch action', m.action));
    view.setUint8(13, m.pointer_id);
    view.setUint16(14, m.pressure);
    position(view, 16, m);
    view.setUint32(24, m.buttons ?? 0);
    return bytes;
  },
  key(m) {
    const { bytes, view } = begin(m, 12);
    view.setUint8(12, word(KEY_ACTION, 'key action', m.action));
    view.setUint16(14, Math.min(m.repeat ?? 0, 0xffff));
    view.setUint32(16, m.keycode);
    view.setUint32(20, m.meta ?? 0);
    return bytes;
  },
  scroll(m) {
    const { bytes, view } = begin(m, 16);
    position(view, 12, m);
    view.setInt16(20, m.dx);
    view.setInt16(22, m.dy);
    view.setUint32(24, m.buttons ?? 0);
    return bytes;
  },
  text(m) {
    const body = text('text', m.text, TEXT_MAX);
    const { bytes, view } = begin(m, 2 + body.length);
    view.setUint16(12, body.length);
    bytes.set(body, 14);
    return bytes;
  },
  set_clipboard(m) {
    const body = text('clipboard', m.text, CLIPBOARD_MAX);
    const { bytes, view } = begin(m, 6 + body.length);
    view.setUint8(12, m.paste ? 1 : 0);
    view.setUint32(14, body.length);
    bytes.set(body, 18);
    return bytes;
  },
  get_clipboard(m) {
    const { bytes, view } = begin(m, 4);
    view.setUint8(12, word(COPY_KEY, 'copy key', m.copy_key));
    return bytes;
  },
  button(m) {
    const { bytes, view } = begin(m, 4);
    view.setUint8(12, word(BUTTON, 'button', m.button));
    view.setUint8(13, word(BUTTON_ACTION, 'button action', m.action));
    return bytes;
  },
  release_all: (m) => begin(m, 0).bytes,
  ping(m) {
    const { bytes, view } = begin(m, 4);
    view.setUint32(12, m.t_ms);
    return bytes;
  },
};

/** The bytes of a message from the viewer. Throws `WireError` for what a decoder would refuse. */
export function encodeMessage(message) {
  const encode = ENCODERS[message.type];
  if (!encode) throw new WireError('type', `cannot be ${message.type}`);
  return encode(message);
}

/** Bytes of the body's fixed part, by kind; a clipboard's text and an address come behind it. */
const FIXED = { session: 8, clipboard: 4, denied: 4, reconnect: 4, pong: 4 };
const NAME = Object.fromEntries(Object.entries(KIND).map(([name, kind]) => [kind, name]));

/** The message towards the viewer that `bytes` hold. Throws `WireError` for anything else. */
export function decodeMessage(bytes) {
  if (bytes.length < HEADER) throw new WireError('header', `cut short: ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const type = NAME[view.getUint8(0)];
  const fixed = FIXED[type];
  if (!fixed) throw new WireError('kind', `cannot be ${view.getUint8(0)}`);
  if (view.getUint8(1) || view.getUint16(2)) throw new WireError('header', 'reserved bits are set');
  if (bytes.length < HEADER + fixed) throw new WireError(type, `cut short: ${bytes.length} bytes`);
  const tail = { clipboard: () => view.getUint32(12), reconnect: () => view.getUint16(12) }[type]?.() ?? 0;
  if (tail > CLIPBOARD_MAX) throw new WireError('clipboard', `${tail} bytes, at most ${CLIPBOARD_MAX}`);
  if (bytes.length !== HEADER + fixed + tail) throw new WireError(type, `has ${bytes.length} bytes`);
  const message = { type, seq: view.getUint32(4), lease_epoch: view.getUint32(8) };
  return Object.assign(message, DECODERS[type](view, bytes));
}

const DECODERS = {
  session(view) {
    const [rotation, role] = [view.getUint8(16), ROLE[view.getUint8(17)]];
    if (rotation > 3) throw new WireError('rotation', `cannot be ${rotation}`);
    if (!role) throw new WireError('role', `cannot be ${view.getUint8(17)}`);
    return { w: view.getUint16(12), h: view.getUint16(14), rotation, role };
  },
  clipboard(_, bytes) {
    try {
      return { text: decoder.decode(bytes.subarray(16)) };
    } catch {
      throw new WireError('clipboard', 'is not UTF-8');
    }
  },
  denied(view) {
    const reason = DENY_REASON[view.getUint8(12)];
    if (!reason) throw new WireError('deny reason', `cannot be ${view.getUint8(12)}`);
    return { reason, of_kind: view.getUint8(13) };
  },
  reconnect(view, bytes) {
    if (view.getUint16(14)) throw new WireError('reconnect', 'reserved bits are set');
    if (bytes.length === 16 || bytes.length > 16 + URL_MAX) {
      throw new WireError('url', `has ${bytes.length - 16} bytes`);
    }
    try {
      return { url: decoder.decode(bytes.subarray(16)) };
    } catch {
      throw new WireError('url', 'is not UTF-8');
    }
  },
  pong: (view) => ({ t_ms: view.getUint32(12) }),
};

/** Cuts a text into pieces of at most `max` bytes of UTF-8, never inside a character. */
export function chunkText(value, max = TEXT_MAX) {
  const chunks = [];
  let chunk = '';
  let size = 0;
  for (const character of value) {
    const length = encoder.encode(character).length;
    if (size + length > max) {
      chunks.push(chunk);
      chunk = '';
      size = 0;
    }
    chunk += character;
    size += length;
  }
  if (chunk) chunks.push(chunk);
  return chunks;
}

/** The wire value of a number of wheel notches: ±16 notches are ±32,767. */
export function scrollValue(notches) {
  const share = Math.max(-1, Math.min(1, notches / 16));
  return Math.round(share * 32767) || 0;
}
