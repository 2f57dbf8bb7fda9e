/**
 * A WHEP client for Fanlight's routers (draft-ietf-wish-whep) that comes back by itself, and goes
 * where its stream goes. Not a user interface, and not one connection (connection.js). Invariant: at
 * most one connection and one timer at a time, and beside them one connection that is to take the
 * first one's place while the stream moves.
 *
 *     const client = new WhepClient('https://router/whep/x', { token, fallbacks: [url] });
 *     client.addEventListener('stream', (e) => { video.srcObject = e.detail; });
 *     client.connect();
 *
 * Events (CustomEvent, see `detail`):
 *   statechange  { state, previous, attempt, retryInMs, error }
 *   stream       the MediaStream, once per connection
 *   message      a Uint8Array from the `input` channel
 *   channels     { open }: whether input can be sent
 *   error        a WhepError; `error.retryable` tells whether the client goes on by itself
 *   moving       { url, by }: the router sends its viewers elsewhere; `by` is `channel` or `event`
 *   nextstream   { stream, shown }, cancelable: the new connection's stream. Who cancels it shows it
 *                beside the old one and calls `shown()` at its first picture; otherwise `stream`
 *                follows when a picture was decoded
 *   moved        { url, by, ms }: the new connection has taken the old one's place
 */

import { Connection, ended, hasPicture, timedOut, withoutTicket } from './connection.js';
import { decodeMessage } from './wire.js';

export { eventsLink, Heartbeat, problemOf, retryAfter, WhepError } from './connection.js';

const BACKOFF = { baseMs: 300, capMs: 8000 };
/** With other addresses to ask: a stream that lost its router is on another one within a second. */
const BACKOFF_FALLBACKS = { baseMs: 200, capMs: 8000 };
/** ICE and DTLS must be through by then. */
const CONNECT_TIMEOUT_MS = 10_000;
/** With other addresses to ask, none is waited for longer than this. */
const POST_TIMEOUT_MS = 2_000;
/** "disconnected" often heals; the router's own limit is longer. */
const DISCONNECT_GRACE_MS = 2_500;
/** A connection that held this long starts the back-off over. */
const STABLE_MS = 2_000;
/** Viewers that are sent elsewhere together do not all arrive in the same moment. */
const MOVE_SPREAD_MS = 150;
/** How often a moving client without an element looks for its first picture. */
const PICTURE_LOOK_MS = 50;
/** Messages of a new connection that wait until it takes over. */
const WAITING_MAX = 16;
const RECONNECT = 0x84; // kind of the message, WIRE.md 5.3

/**
 * Milliseconds to wait before try number `attempt` (from 0): doubling up to a cap, the half of it at
 * random, never less than the server asked for.
 */
export function backoffDelay(attempt, { baseMs, capMs } = BACKOFF, random = Math.random, retryAfterMs = 0) {
  const ceiling = Math.min(capMs, baseMs * 2 ** Math.min(attempt, 16));
  return Math.round(Math.max(retryAfterMs, ceiling / 2 + (random() * ceiling) / 2));
}

/**
 * The addresses of one round, each once. A first join goes where it was invited to; whoever lost a
 * connection asks the others first, because its router is the one that is known to be in trouble.
 */
export function roundOf(url, fallbacks, lost) {
  return [...new Set(lost ? [...fallbacks, url] : [url, ...fallbacks])];
}

export class WhepClient extends EventTarget {
  #url;
  #fallbacks;
  #options;
  #state = 'idle';
  #attempt = 0;
  #now; // Connection
  #round = []; // addresses not tried yet in this round
  #move; // { url, by, attempt, since, next, stream, waiting, timer }
  #timer = 0;
  #wasConnected = false;
  #connectedAt = Infinity;
  #patience;

  /**
   * `url`: the stream's WHEP endpoint. Options: `token` (a string, or a function that gives one or a
   * promise of one), `fallbacks` (other endpoints of the stream, or of a redirect to it),
   * `iceServers`, `backoff` ({ baseMs, capMs }), `reconnect` (default true), `events` (also listen
   * to server-sent events; costs a connection, and the data channel says the same).
   */
  constructor(url, options = {}) {
    super();
    const absolute = (address) => new URL(address, globalThis.location?.href).href;
    this.#url = absolute(url);
    this.#fallbacks = (options.fallbacks ?? []).map(absolute);
    this.#options = options;
  }

  /** `idle`, `connecting`, `connected`, `reconnecting`, `failed` or `closed`. */
  get state() {
    return this.#state;
  }

  /** The current RTCPeerConnection, for statistics. */
  get peerConnection() {
    return this.#now?.peerConnection;
  }

  /** The session's URL, between answer and leave. */
  get sessionUrl() {
    return this.#now?.sessionUrl;
  }

  /** The endpoint that it is connected to, or goes back to. */
  get url() {
    return this.#url;
  }

  /** Joins. Also the way out of `failed` and `closed`, and a way to skip a waiting time. */
  connect() {
    this.#drop();
    this.#attempt = 0;
    this.#round = [];
    this.#open();
  }

  /** Leaves: closes the connection and deletes the session. */
  close() {
    this.#drop();
    this.#set('closed');
  }

  /**
   * Sends one input message. A droppable one goes to the unreliable channel, and is dropped rather
   * than queued. Gives whether it went out.
   */
  send(bytes, droppable = false) {
    return this.#now?.send(bytes, droppable) ?? false;
  }

  #open() {
    if (!this.#round.length) this.#round = roundOf(this.#url, this.#fallbacks, this.#wasConnected);
    const url = this.#round.shift();
    this.#set(this.#wasConnected ? 'reconnecting' : 'connecting');
    this.#wait(CONNECT_TIMEOUT_MS, () => this.#lost(timedOut(this.#now?.sessionUrl !== undefined)));
    const connection = this.#connection(url, (what, detail) => this.#hear(connection, what, detail));
    this.#now = connection;
    connection.open();
  }

  #connection(url, say) {
    return new Connection(url, {
      auth: () => this.#auth(),
      iceServers: this.#options.iceServers,
      events: this.#options.events,
      patience: this.#now?.patience ?? this.#patience,
      postTimeoutMs: this.#fallbacks.length ? POST_TIMEOUT_MS : 0,
    }, say);
  }

  /** Something of the present connection. */
  #hear(connection, what, detail) {
    if (this.#now !== connection) return;
    if (what === 'connected') {
      clearTimeout(this.#timer);
      this.#settled(connection);
      this.#set('connected');
    } else if (what === 'disconnected') {
      this.#wait(DISCONNECT_GRACE_MS, () => this.#lost(ended()));
    } else if (what === 'lost') {
      this.#lost(detail);
    } else if (what === 'reconnect') {
      this.#moveTo(detail, 'event');
    } else if (what === 'message' && detail[0] === RECONNECT) {
      this.#told(detail);
    } else {
      this.#emit(what, detail);
    }
  }

  #settled(connection) {
    this.#connectedAt = performance.now();
    this.#wasConnected = true;
    this.#round = [];
    // Without other addresses, the one it was invited to is: never all the routers it has been on,
    // because each that is gone may cost a timeout.
    if (connection.url !== this.#url && !this.#fallbacks.length) this.#fallbacks = [this.#url];
    this.#url = connection.url;
  }

  async #auth() {
    const { token } = this.#options;
    const value = typeof token === 'function' ? await token() : token;
    return value ? { Authorization: `Bearer ${value}` } : {};
  }

  // ---- coming back ----

  /** Ends the attempt or connection, and begins the next one after a while if that may help. */
  #lost(error) {
    if (this.#takeOver()) return;
    const to = this.#move?.url;
    this.#drop();
    // Only a connection that held counts: one that ends at once must not be retried at once.
    if (performance.now() - this.#connectedAt > STABLE_MS) this.#attempt = 0;
    const held = this.#connectedAt !== Infinity;
    this.#connectedAt = Infinity;
    // A stream that was there and is not known any more: its router has just been started again, or
    // it is on another one.
    const comesBack = (this.#wasConnected || this.#fallbacks.length) && error.status === 404;
    const again = (this.#options.reconnect ?? true) && (error.retryable || comesBack);
    error.retryable = Boolean(again);
    this.#emit('error', error);
    if (!again) {
      this.#set('failed', { error });
      return;
    }
    // The other addresses of the round at once; a pause between rounds, and after a loss, so that
    // those who lost the same router do not come as one.
    const pause = held || !this.#round.length;
    if (held) this.#round = to ? [to, ...roundOf(this.#url, this.#fallbacks, true)] : [];
    const backoff = this.#fallbacks.length ? BACKOFF_FALLBACKS : BACKOFF;
    const delay = pause ? backoffDelay(
      this.#attempt, { ...backoff, ...this.#options.backoff }, Math.random, error.retryAfterMs) : 0;
    if (pause) this.#attempt += 1;
    this.#set('reconnecting', { error, retryInMs: delay });
    this.#wait(delay, () => this.#open());
  }

  /** Forgets the current connection, the one that was to follow, and everything they hold. */
  #drop() {
    clearTimeout(this.#timer);
    this.#stay();
    const was = this.#now;
    if (!was) return;
    this.#patience = was.patience;
    this.#leave(was);
    this.#now = undefined;
  }

  #leave(connection) {
    // First, so that what is pressed is let go while it can be said.
    if (connection.isOpen) this.#emit('channels', { open: false });
    connection.close();
  }

  // ---- going where the stream goes ----

  #told(bytes) {
    try {
      this.#moveTo(decodeMessage(bytes).url, 'channel');
    } catch (error) {
      console.warn('fanlight: message from the router not understood:', error.message);
    }
  }

  /** The stream is live at `url`: a second connection is made, and takes over when it shows it. */
  #moveTo(url, by) {
    if (!/^https?:\/\//.test(url) || !(this.#options.reconnect ?? true)) return;
    if (this.#move && withoutTicket(this.#move.url) === withoutTicket(url)) return;
    this.#stay();
    this.#move = { url, by, attempt: 0, since: performance.now(), waiting: [] };
    this.#emit('moving', { url: withoutTicket(url), by });
    this.#later(Math.random() * MOVE_SPREAD_MS);
  }

  /** Gives a move up. */
  #stay() {
    clearTimeout(this.#move?.timer);
    this.#move?.next?.close();
    this.#move = undefined;
  }

  #later(ms) {
    const move = this.#move;
    clearTimeout(move.timer);
    move.timer = setTimeout(() => this.#move === move && this.#follow(move), ms);
  }

  #follow(move) {
    Object.assign(move, { waiting: [], stream: undefined });
    const again = (error) => {
      if (this.#move !== move) return;
      move.next.close();
      move.next = undefined;
      // The old connection goes on; what cannot be had is not asked for for ever.
      if (!error.retryable && error.status !== 404) return this.#stay();
      this.#later(backoffDelay(move.attempt, BACKOFF_FALLBACKS, Math.random, error.retryAfterMs));
      move.attempt += 1;
    };
    const next = this.#connection(move.url, (what, detail) => {
      if (this.#now === next) this.#hear(next, what, detail);
      else if (this.#move !== move || move.next !== next) next.close();
      else if (what === 'lost') again(detail);
      else if (what === 'stream') this.#arrived(move, detail);
      else if (what === 'message' && move.waiting.length < WAITING_MAX) move.waiting.push(detail);
    });
    move.next = next;
    clearTimeout(move.timer);
    move.timer = setTimeout(() => again(timedOut(true)), CONNECT_TIMEOUT_MS);
    next.open();
  }

  /** The new connection has a stream: whoever shows it says when; else a decoded picture does. */
  #arrived(move, stream) {
    const { next } = move;
    move.stream = stream;
    let done = false;
    const shown = (handled) => {
      if (done || this.#move !== move || move.next !== next) return;
      done = true;
      this.#swap(move, handled);
    };
    const offered = new CustomEvent('nextstream', {
      cancelable: true, detail: { stream, shown: () => shown(true) } });
    if (!this.dispatchEvent(offered)) return;
    const look = async () => {
      if (this.#move !== move || move.next !== next) return;
      if (await hasPicture(next.peerConnection)) shown(false);
      else setTimeout(look, PICTURE_LOOK_MS);
    };
    look();
  }

  /** The new connection takes the old one's place. Whatever is pressed is let go on the old one. */
  #swap(move, handled) {
    clearTimeout(move.timer);
    clearTimeout(this.#timer);
    const old = this.#now;
    const { next, stream, waiting } = move;
    if (old?.isOpen) this.#emit('channels', { open: false });
    this.#move = undefined;
    this.#now = next;
    this.#settled(next);
    this.#attempt = 0;
    if (!handled) this.#emit('stream', stream);
    if (next.isOpen) this.#emit('channels', { open: true });
    for (const message of waiting) this.#hear(next, 'message', message);
    this.#set('connected');
    const ms = Math.round(performance.now() - move.since);
    this.#emit('moved', { url: next.url, by: move.by, ms });
    if (old) old.close();
  }

  /** The old connection was lost during a move: the new one is all there is. */
  #takeOver() {
    const move = this.#move;
    if (!move?.stream) return false;
    this.#swap(move, false);
    return true;
  }

  // ----

  #wait(ms, then) {
    clearTimeout(this.#timer);
    const connection = this.#now;
    this.#timer = setTimeout(() => (this.#now === connection || !connection) && then(), ms);
  }

  #set(state, more = {}) {
    const previous = this.#state;
    this.#state = state;
    if (state !== previous || more.error) {
      this.#emit('statechange', { state, previous, attempt: this.#attempt, ...more });
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
