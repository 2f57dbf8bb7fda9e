/**
 * What the user does over the picture, as input messages. Not the connection: bytes go to a `send`
 * function. Invariant: whatever is pressed here is released again: when it is let go, when focus or
 * picture are lost, when the player goes.
 */

import { chunkText, CLIPBOARD_MAX, encodeMessage, scrollValue } from './wire.js';
import { keyOf } from './keys.js';

export * from './wire.js';
export { keyOf, metaState } from './keys.js';

/** Pointers at once: Android's own limit is 10 to 16. */
const POINTERS_MAX = 10;
/** Pixels of wheel movement that make one notch, and lines and pages of the other two modes. */
const NOTCH = [100, 3, 1];
/** A pointer that rests this long repeats its place on the reliable channel. */
const SETTLE_MS = 60;

/**
 * Where a picture of `videoW` x `videoH` lies in a box of `boxW` x `boxH` under
 * `object-fit: contain`. Undefined while any of them is zero.
 */
export function letterbox(boxW, boxH, videoW, videoH) {
  if (!(boxW > 0 && boxH > 0 && videoW > 0 && videoH > 0)) return undefined;
  const scale = Math.min(boxW / videoW, boxH / videoH);
  const [w, h] = [videoW * scale, videoH * scale];
  return { x: (boxW - w) / 2, y: (boxH - h) / 2, w, h, scale };
}

/**
 * The picture's pixel under a point. `box` is the element's content box in the same coordinates as
 * the point. The pixel is clamped to the picture; `inside` tells whether that was necessary.
 */
export function mapPoint(pointX, pointY, box, videoW, videoH) {
  const area = letterbox(box.width, box.height, videoW, videoH);
  if (!area) return undefined;
  const x = (pointX - box.left - area.x) / area.scale;
  const y = (pointY - box.top - area.y) / area.scale;
  const clamp = (value, size) => Math.max(0, Math.min(size - 1, Math.floor(value)));
  return {
    x: clamp(x, videoW), y: clamp(y, videoH), w: videoW, h: videoH,
    inside: x >= 0 && y >= 0 && x < videoW && y < videoH,
  };
}

/**
 * Turns events of a video element and of a text sink into messages.
 *
 * Options: `video` the element; `sink` a textarea that takes the keyboard; `send(bytes, droppable)`;
 * `enabled()` whether input may be sent; `onCopy()` when the user asked for the device's clipboard;
 * `onTooLong()` when a text to paste is over the limit.
 */
export class InputController {
  #video;
  #sink;
  #send;
  #enabled;
  #onCopy;
  #onTooLong;
  #seq = 0;
  #lease = 0;
  #session = { w: 0, h: 0 };
  #pointers = new Map(); // DOM pointer id -> { id, point, moved, pressure }
  #keys = new Map(); // KeyboardEvent.code -> { keycode, meta, repeat }
  #wheel = undefined; // { dx, dy, point } not sent yet
  #frame = 0;
  #settle = 0;
  #abort = new AbortController();

  constructor({ video, sink, send, enabled = () => true, onCopy = () => {}, onTooLong = () => {} }) {
    this.#video = video;
    this.#sink = sink;
    this.#send = send;
    this.#enabled = enabled;
    this.#onCopy = onCopy;
    this.#onTooLong = onTooLong;
    this.#listen();
  }

  /** Takes what the router told: picture size and lease epoch. */
  session(message) {
    const turned = this.#session.w !== message.w || this.#session.h !== message.h;
    this.#session = { w: message.w, h: message.h };
    this.#lease = message.lease_epoch;
    if (turned) this.releaseAll();
  }

  /** Sends one message; seq and lease epoch are filled in. Gives whether it was sent. */
  message(message, droppable = false) {
    if (!this.#enabled()) return false;
    this.#seq = (this.#seq + 1) >>> 0;
    return this.#send(
      encodeMessage({ ...message, seq: this.#seq, lease_epoch: this.#lease }), droppable) !== false;
  }

  /** A button of the device: action `down`, `up` or `press`. */
  button(button, action = 'press') {
    return this.message({ type: 'button', button, action });
  }

  /** Types a text of any length. */
  text(value) {
    for (const text of chunkText(value)) this.message({ type: 'text', text });
  }

  /**
   * Sets the device's clipboard, and pastes it if wanted. Gives whether it was sent, and undefined
   * when it is too long.
   */
  setClipboard(text, paste = false) {
    if (new TextEncoder().encode(text).length > CLIPBOARD_MAX) return undefined;
    return this.message({ type: 'set_clipboard', text, paste });
  }

  /** Asks for the device's clipboard, pressing `copy` or `cut` first if wanted. */
  getClipboard(copyKey = 'none') {
    return this.message({ type: 'get_clipboard', copy_key: copyKey });
  }

  /** Lets go of everything that is held. */
  releaseAll() {
    const held = this.#pointers.size + this.#keys.size;
    this.#pointers.clear();
    this.#keys.clear();
    this.#wheel = undefined;
    if (held) this.message({ type: 'release_all' });
  }

  /** Lets go of everything and stops listening. */
  close() {
    this.releaseAll();
    this.#abort.abort();
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#settle);
  }

  #listen() {
    const { signal } = this.#abort;
    const on = (target, name, handler, options) =>
      target.addEventListener(name, handler.bind(this), { signal, ...options });
    const video = this.#video;
    on(video, 'pointerdown', this.#pointerDown);
    on(video, 'pointermove', this.#pointerMove);
    on(video, 'pointerup', (e) => this.#pointerEnd(e, 'up'));
    on(video, 'pointercancel', (e) => this.#pointerEnd(e, 'cancel'));
    on(video, 'wheel', this.#wheelTurn, { passive: false });
    on(video, 'contextmenu', (e) => e.preventDefault());
    on(video, 'auxclick', (e) => e.preventDefault());
    // A picture of another size: what is held was aimed at something that is gone.
    on(video, 'resize', this.releaseAll);
    on(this.#sink, 'keydown', this.#keyDown);
    on(this.#sink, 'keyup', this.#keyUp);
    on(this.#sink, 'blur', this.releaseAll);
    on(document, 'visibilitychange', () => document.hidden && this.releaseAll());
    on(this.#sink, 'beforeinput', this.#beforeInput);
    on(this.#sink, 'compositionend', (e) => this.#composed(e.data));
    on(this.#sink, 'input', (e) => e.isComposing || this.#resetSink());
    on(this.#sink, 'paste', this.#paste);
    this.#resetSink();
  }

  /** The picture's size: of what is shown, or of what was announced while nothing is shown. */
  #size() {
    const { videoWidth, videoHeight } = this.#video;
    return videoWidth && videoHeight ? [videoWidth, videoHeight] : [this.#session.w, this.#session.h];
  }

  #point(event) {
    const [w, h] = this.#size();
    return mapPoint(event.clientX, event.clientY, this.#video.getBoundingClientRect(), w, h);
  }

  #touch(action, pointer, droppable) {
    const { x, y, w, h } = pointer.point;
    const pressure = action === 'up' || action === 'cancel' ? 0 : pointer.pressure;
    this.message(
      { type: 'touch', action, pointer_id: pointer.id, pressure, x, y, w, h, buttons: 0 }, droppable);
  }

  #pointerDown(event) {
    const mouse = event.pointerType === 'mouse';
    // A mouse brings a keyboard along; a finger must not raise the on-screen one.
    if (mouse) this.#sink.focus({ preventScroll: true });
    event.preventDefault();
    if (mouse && event.button !== 0) {
      const button = { 1: 'home', 2: 'back_or_screen_on' }[event.button];
      if (button) this.button(button);
      return;
    }
    const point = this.#point(event);
    const used = new Set([...this.#pointers.values()].map((p) => p.id));
    if (!point?.inside || used.size >= POINTERS_MAX || this.#pointers.has(event.pointerId)) return;
    let id = 0;
    while (used.has(id)) id += 1;
    const pointer = { id, point, moved: false, pressure: pressureOf(event) };
    this.#pointers.set(event.pointerId, pointer);
    try {
      this.#video.setPointerCapture(event.pointerId);
    } catch {
      // The pointer is gone already (or was made by a script): its end still comes, or a blur does.
    }
    this.#touch('down', pointer, false);
  }

  #pointerMove(event) {
    const pointer = this.#pointers.get(event.pointerId);
    const point = pointer && this.#point(event);
    if (!point || (point.x === pointer.point.x && point.y === pointer.point.y)) return;
    Object.assign(pointer, { point, moved: true, pressure: pressureOf(event) });
    this.#schedule();
  }

  #pointerEnd(event, action) {
    const pointer = this.#pointers.get(event.pointerId);
    if (!pointer) return;
    this.#pointers.delete(event.pointerId);
    if (action === 'up') pointer.point = this.#point(event) ?? pointer.point;
    this.#touch(action, pointer, false);
  }

  #wheelTurn(event) {
    const point = this.#point(event);
    if (!point?.inside) return;
    event.preventDefault();
    const notch = NOTCH[event.deltaMode] ?? NOTCH[0];
    const { dx = 0, dy = 0 } = this.#wheel ?? {};
    this.#wheel = { dx: dx + event.deltaX / notch, dy: dy - event.deltaY / notch, point };
    this.#schedule();
  }

  /** Moves and wheel turns go out once per animation frame, the newest place of each pointer. */
  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#flush();
    });
  }

  #flush() {
    for (const pointer of this.#pointers.values()) {
      if (!pointer.moved) continue;
      pointer.moved = false;
      pointer.unsettled = true;
      this.#touch('move', pointer, true);
    }
    if (this.#wheel) {
      const { dx, dy, point: { x, y, w, h } } = this.#wheel;
      this.#wheel = undefined;
      this.message({ type: 'scroll', x, y, w, h, dx: scrollValue(dx), dy: scrollValue(dy) });
    }
    clearTimeout(this.#settle);
    this.#settle = setTimeout(() => this.#repeatPlaces(), SETTLE_MS);
  }

  /** The last move of a gesture has no later one to make up for its loss. */
  #repeatPlaces() {
    for (const pointer of this.#pointers.values()) {
      if (pointer.unsettled) this.#touch('move', pointer, false);
      pointer.unsettled = false;
    }
  }

  #keyDown(event) {
    if (this.#clipboardShortcut(event)) return;
    const key = keyOf(event);
    if (!key) return;
    event.preventDefault();
    if (key.text !== undefined) {
      this.text(key.text);
      return;
    }
    const held = this.#keys.get(event.code);
    const repeat = held ? held.repeat + 1 : 0;
    const { keycode, meta } = held ?? key;
    this.#keys.set(event.code, { keycode, meta, repeat });
    this.message({ type: 'key', action: 'down', keycode, meta, repeat });
  }

  #keyUp(event) {
    const held = this.#keys.get(event.code);
    if (!held) return;
    event.preventDefault();
    this.#keys.delete(event.code);
    this.message({ type: 'key', action: 'up', keycode: held.keycode, meta: held.meta, repeat: 0 });
  }

  /** Copy, cut and paste cross between the two clipboards. */
  #clipboardShortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return false;
    const name = event.key.toLowerCase();
    if (name === 'v') return true; // the paste event follows
    if (name !== 'c' && name !== 'x') return false;
    event.preventDefault();
    if (!event.repeat) {
      this.getClipboard(name === 'c' ? 'copy' : 'cut');
      this.#onCopy();
    }
    return true;
  }

  #paste(event) {
    event.preventDefault();
    const text = event.clipboardData?.getData('text/plain');
    if (text && this.setClipboard(text, true) === undefined) this.#onTooLong();
  }

  /** Text that does not come as keys: on-screen keyboards, dictation, emoji pickers. */
  #beforeInput(event) {
    if (event.isComposing) return;
    const keycode = { deleteContentBackward: 67, deleteContentForward: 112, insertLineBreak: 66,
      insertParagraph: 66 }[event.inputType];
    if (keycode) this.#pressKey(keycode);
    else if (event.inputType === 'insertFromPaste') return;
    else if (event.data) this.text(event.data);
    if (event.cancelable) event.preventDefault();
  }

  #composed(data) {
    if (data) this.text(data);
    this.#resetSink();
  }

  #pressKey(keycode) {
    this.message({ type: 'key', action: 'down', keycode, meta: 0, repeat: 0 });
    this.message({ type: 'key', action: 'up', keycode, meta: 0, repeat: 0 });
  }

  /** One character stays in the sink, so that on-screen keyboards have something to delete. */
  #resetSink() {
    this.#sink.value = '\u00a0';
    this.#sink.setSelectionRange?.(1, 1);
  }
}

function pressureOf(event) {
  return event.pressure > 0 && event.pointerType !== 'mouse'
    ? Math.max(1, Math.round(event.pressure * 65535))
    : 65535;
}
