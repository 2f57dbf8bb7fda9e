/**
 * A WHEP client for Fanlight's routers (draft-ietf-wish-whep): one POST, one answer, one DELETE,
 * and coming back by itself. Not a user interface. Invariant: at most one peer connection, one timer
 * and one heartbeat at a time; whatever belongs to an older attempt is ignored.
 *
 *     const client = new WhepClient('https://router/whep/x', { token });
 *     client.addEventListener('stream', (e) => { video.srcObject = e.detail; });
 *     client.connect();
 *
 * Events (CustomEvent, see `detail`):
 *   statechange  { state, previous, attempt, retryInMs, error }
 *   stream       the MediaStream, once per connection
 *   message      a Uint8Array from the `input` channel
 *   channels     { open }: whether input can be sent
 *   error        a WhepError; `error.retryable` tells whether the client goes on by itself
 */

import { encodeMessage } from './wire.js';

/** Why the server, or the way to it, refused. */
export class WhepError extends Error {
  constructor({ status = 0, reason = '', title = '', detail = '', retryAfterMs = 0, retryable = false,
    offered, needed }) {
    super(detail || title || `HTTP ${status}`);
    Object.assign(this, {
      name: 'WhepError', status, reason, title, detail, retryAfterMs, retryable, offered, needed });
  }
}

/** Statuses after which the same request may succeed later. */
const RETRYABLE = new Set([408, 409, 425, 429, 500, 502, 503, 504]);

const DELETE_PATIENCE_MS = 500; // then the connection is closed without an answer
const BACKOFF = { baseMs: 300, capMs: 8000 };
/** ICE and DTLS must be through by then. */
const CONNECT_TIMEOUT_MS = 10_000;
/** "disconnected" often heals; the router's own limit is longer. */
const DISCONNECT_GRACE_MS = 2_500;
/** How often a quiet connection is asked for a sign of life. */
const HEARTBEAT_MS = 300;
/** A connection that held this long starts the back-off over. */
const STABLE_MS = 5_000;
/** Above this a move is not worth queueing: a newer one comes with the next frame. */
const MOVES_BUFFERED_MAX = 4096;

/**
 * Milliseconds to wait before try number `attempt` (from 0): doubling up to a cap, the half of it at
 * random, never less than the server asked for.
 */
export function backoffDelay(attempt, { baseMs, capMs } = BACKOFF, random = Math.random, retryAfterMs = 0) {
  const ceiling = Math.min(capMs, baseMs * 2 ** Math.min(attempt, 16));
  return Math.round(Math.max(retryAfterMs, ceiling / 2 + (random() * ceiling) / 2));
}

/** `Retry-After` in milliseconds: seconds or a date; 0 when absent or unreadable. */
export function retryAfter(value, now = Date.now()) {
  if (!value) return 0;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), 60_000) : 0;
}

/** The error in a response that is not 201: problem+json where there is one, else the status. */
export async function problemOf(response) {
  let problem = {};
  try {
    const body = await response.text();
    if (/json/.test(response.headers.get('content-type') ?? '')) problem = JSON.parse(body) ?? {};
    else problem = { detail: body.trim().slice(0, 300) };
  } catch {
    // Without a readable body the status has to do.
  }
  const word = (value) => (typeof value === 'string' ? value : '');
  return new WhepError({
    status: response.status,
    reason: word(problem.reason),
    title: word(problem.title) || response.statusText || `HTTP ${response.status}`,
    detail: word(problem.detail),
    offered: problem.offered,
    needed: problem.needed,
    retryAfterMs: retryAfter(response.headers.get('retry-after')),
    retryable: RETRYABLE.has(response.status),
  });
}

/**
 * Tells a dead router from a quiet one: a static screen sends nothing, and ICE takes seconds to give
 * up. Looked at every `HEARTBEAT_MS`; a late timer (a page in the background) only makes it slower.
 * One for all connections of a client: what is known of the path outlives them.
 */
export class Heartbeat {
  #packets;
  #asked = 0;
  /** Many, until it is known how long a pong takes. */
  #asksMax = 12;

  /** Something came from the router; a pong says how long it took. */
  heard(roundTripMs) {
    this.#asked = 0;
    // Three round trips, so that a slow path is not taken for a dead one. Four questions, because
    // each and its answer may be lost: one in ten at 5 % loss.
    if (roundTripMs !== undefined) {
      this.#asksMax = Math.min(12, Math.max(4, Math.ceil((3 * roundTripMs) / HEARTBEAT_MS)));
    }
  }

  /** With the packets of media received so far. Gives `fine`, `ask` (send a ping) or `dead`. */
  look(packets) {
    if (packets !== this.#packets) {
      this.#packets = packets;
      this.#asked = 0;
      return 'fine';
    }
    return this.#asked >= this.#asksMax ? 'dead' : 'ask';
  }

  /** A ping went out. */
  asked() {
    this.#asked += 1;
  }
}

export class WhepClient extends EventTarget {
  #url;
  #options;
  #state = 'idle';
  #attempt = 0;
  #generation = 0; // of attempts; stale callbacks compare it
  #pc;
  #channels = {};
  #session; // URL to DELETE
  #timer = 0;
  #heart = new Heartbeat();
  #heartTimer = 0;
  #beating = false;
  #wasConnected = false;
  #connectedAt = Infinity;
  #abort;

  /**
   * `url`: the stream's WHEP endpoint. Options: `token` (a string, or a function that gives one or a
   * promise of one), `iceServers`, `backoff` ({ baseMs, capMs }), `reconnect` (default true).
   */
  constructor(url, options = {}) {
    super();
    this.#url = url;
    this.#options = options;
  }

  /** `idle`, `connecting`, `connected`, `reconnecting`, `failed` or `closed`. */
  get state() {
    return this.#state;
  }

  /** The current RTCPeerConnection, for statistics. */
  get peerConnection() {
    return this.#pc;
  }

  /** The session's URL, between answer and leave. */
  get sessionUrl() {
    return this.#session;
  }

  /** Joins. Also the way out of `failed` and `closed`, and a way to skip a waiting time. */
  connect() {
    this.#drop();
    this.#attempt = 0;
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
    const { input, moves } = this.#channels;
    const channel = droppable && moves?.readyState === 'open' ? moves : input;
    if (channel?.readyState !== 'open') return false;
    if (droppable && channel.bufferedAmount > MOVES_BUFFERED_MAX) return false;
    try {
      channel.send(bytes);
      return true;
    } catch {
      return false; // longer than the other side takes, or closing
    }
  }

  async #open() {
    const generation = this.#generation;
    const current = () => generation === this.#generation;
    this.#set(this.#wasConnected ? 'reconnecting' : 'connecting');
    this.#abort = new AbortController();
    this.#wait(CONNECT_TIMEOUT_MS, () => this.#lost(timedOut(this.#session !== undefined)));
    try {
      const pc = this.#peer(current);
      await pc.setLocalDescription(await pc.createOffer());
      if (!current()) return;
      const { answer, session } = await this.#post(pc.localDescription.sdp);
      if (!current()) {
        this.#delete(session);
        return;
      }
      this.#session = session;
      await pc.setRemoteDescription({ type: 'answer', sdp: answer });
    } catch (error) {
      if (current()) this.#lost(asWhepError(error));
    }
  }

  #peer(current) {
    const pc = new RTCPeerConnection({
      iceServers: this.#options.iceServers ?? [], bundlePolicy: 'max-bundle' });
    this.#pc = pc;
    const transceiver = pc.addTransceiver('video', { direction: 'recvonly' });
    preferH264(transceiver);
    // Show each picture when it is whole: smoothing costs more than it gives when one touches it.
    const { receiver } = transceiver;
    if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = 0;
    if ('playoutDelayHint' in receiver) receiver.playoutDelayHint = 0;
    this.#channels = {
      input: pc.createDataChannel('input', { ordered: true }),
      moves: pc.createDataChannel('input-moves', { ordered: false, maxRetransmits: 0 }),
    };
    const { input, moves } = this.#channels;
    input.onopen = () => {
      if (!current()) return;
      this.#heart.heard();
      this.#heartTimer = setInterval(() => this.#beat(pc), HEARTBEAT_MS);
      this.#emit('channels', { open: true });
    };
    input.onclose = () => current() && this.#lost(closed());
    for (const channel of [input, moves]) {
      channel.binaryType = 'arraybuffer';
      channel.onmessage = ({ data }) => {
        if (!current() || !(data instanceof ArrayBuffer)) return;
        const bytes = new Uint8Array(data);
        this.#heart.heard(roundTrip(bytes));
        this.#emit('message', bytes);
      };
    }
    pc.ontrack = ({ track, streams }) => {
      if (current()) this.#emit('stream', streams[0] ?? new MediaStream([track]));
    };
    pc.onconnectionstatechange = () => current() && this.#connection(pc.connectionState);
    return pc;
  }

  #connection(state) {
    if (state === 'connected') {
      clearTimeout(this.#timer);
      this.#connectedAt = performance.now();
      this.#wasConnected = true;
      this.#set('connected');
    } else if (state === 'disconnected') {
      this.#wait(DISCONNECT_GRACE_MS, () => this.#lost(closed()));
    } else if (state === 'failed' || state === 'closed') {
      this.#lost(closed());
    }
  }

  /** Asks a router that has been silent for a sign of life, and gives it up when there is none. */
  async #beat(pc) {
    // A look that takes longer than the interval is one look.
    if (this.#beating) return;
    const generation = this.#generation;
    this.#beating = true;
    const packets = await packetsReceived(pc);
    this.#beating = false;
    if (generation !== this.#generation) return;
    const next = this.#heart.look(packets);
    if (next === 'dead') this.#lost(silent());
    if (next === 'ask') {
      const ping = encodeMessage({ type: 'ping', seq: 0, lease_epoch: 0, t_ms: clockMs() });
      if (this.send(ping, true)) this.#heart.asked();
    }
  }

  async #post(offer) {
    const request = {
      method: 'POST',
      headers: { 'Content-Type': 'application/sdp', Accept: 'application/sdp', ...(await this.#auth()) },
      body: offer,
      signal: this.#abort.signal,
    };
    let response = await fetch(this.#url, request);
    // Browsers take the token off when a redirect leads to another origin; that router needs it too.
    if (response.status === 401 && response.redirected) response = await fetch(response.url, request);
    if (response.status !== 201) throw await problemOf(response);
    const location = response.headers.get('location');
    return {
      answer: await response.text(),
      session: location ? new URL(location, response.url || this.#url).href : undefined,
    };
  }

  async #auth() {
    const { token } = this.#options;
    const value = typeof token === 'function' ? await token() : token;
    return value ? { Authorization: `Bearer ${value}` } : {};
  }

  /** Ends the attempt or connection, and begins the next one after a while if that may help. */
  #lost(error) {
    this.#drop();
    // Only a connection that held counts: one that ends at once must not be retried at once.
    if (performance.now() - this.#connectedAt > STABLE_MS) this.#attempt = 0;
    this.#connectedAt = Infinity;
    // A stream that was there and is not known any more: its router has just been started again.
    const comesBack = this.#wasConnected && error.status === 404;
    const again = (this.#options.reconnect ?? true) && (error.retryable || comesBack);
    error.retryable = again;
    this.#emit('error', error);
    if (!again) {
      this.#set('failed', { error });
      return;
    }
    const delay = backoffDelay(
      this.#attempt, { ...BACKOFF, ...this.#options.backoff }, Math.random, error.retryAfterMs);
    this.#attempt += 1;
    this.#set('reconnecting', { error, retryInMs: delay });
    this.#wait(delay, () => this.#open());
  }

  /** Forgets the current attempt and everything it holds. */
  #drop() {
    this.#generation += 1;
    clearTimeout(this.#timer);
    clearInterval(this.#heartTimer);
    this.#abort?.abort();
    const open = this.#channels.input?.readyState === 'open';
    this.#channels = {};
    // The session first: a connection that closes ends its session at the router, and a DELETE
    // that comes after it would find none.
    const pc = this.#pc;
    const patience = new Promise((ok) => setTimeout(ok, DELETE_PATIENCE_MS));
    if (this.#session) Promise.race([this.#delete(this.#session), patience]).then(() => pc?.close());
    else pc?.close();
    this.#pc = undefined;
    this.#session = undefined;
    if (open) this.#emit('channels', { open: false });
  }

  /** Tells the router that the session is over; it would find out by itself, but later. */
  async #delete(session) {
    try {
      await fetch(session, { method: 'DELETE', headers: await this.#auth(), keepalive: true });
    } catch {
      // The router is gone, or forgets the session when its media path times out.
    }
  }

  #wait(ms, then) {
    clearTimeout(this.#timer);
    const generation = this.#generation;
    this.#timer = setTimeout(() => generation === this.#generation && then(), ms);
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

/** Offers H.264 and its repair only: a smaller offer, and the only codec the devices have. */
function preferH264(transceiver) {
  const { codecs = [] } = RTCRtpReceiver.getCapabilities?.('video') ?? {};
  const wanted = codecs.filter((c) => /\/(h264|rtx)$/i.test(c.mimeType));
  // Without H.264 the offer stays whole, and the server's refusal says what is missing.
  if (wanted.some((c) => /h264/i.test(c.mimeType))) transceiver.setCodecPreferences?.(wanted);
}

function timedOut(answered) {
  return new WhepError({ title: 'No connection', reason: 'TIMEOUT', retryable: true,
    detail: answered
      ? 'The router answered, but no media path to it opened. Is its UDP port reachable?'
      : 'No answer from the router in time.' });
}

/** A clock that comes back in pongs: 32 bits of milliseconds. */
function clockMs() {
  return Math.round(performance.now()) >>> 0;
}

/** What a pong (WIRE.md, 5.3) says of the round trip; undefined for any other message. */
function roundTrip(bytes) {
  if (bytes[0] !== 0x8a || bytes.length !== 16) return undefined;
  return (clockMs() - new DataView(bytes.buffer).getUint32(12)) >>> 0;
}

/** Packets of media so far; undefined while there is no media. */
async function packetsReceived(pc) {
  try {
    const reports = [...(await pc.getStats()).values()];
    return reports.find((r) => r.type === 'inbound-rtp')?.packetsReceived;
  } catch {
    return undefined; // closed meanwhile
  }
}

function silent() {
  return new WhepError({ title: 'Connection lost', detail: 'The router does not answer any more.',
    reason: 'SILENT', retryable: true });
}

function closed() {
  return new WhepError({
    title: 'Connection lost', detail: 'The connection to the router ended.', reason: 'LOST',
    retryable: true });
}

function asWhepError(error) {
  if (error instanceof WhepError) return error;
  if (error instanceof TypeError && /fetch|network|load/i.test(error.message)) {
    return new WhepError({ title: 'Router not reachable', reason: 'UNREACHABLE', retryable: true,
      detail: 'No answer from the router. It may be starting, or the network may be down.' });
  }
  return new WhepError({ title: 'Could not connect', reason: error?.name ?? 'ERROR',
    detail: String(error?.message ?? error), retryable: false });
}
