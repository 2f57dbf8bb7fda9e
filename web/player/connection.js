/**
 * One connection to one router: one POST, one answer, one heartbeat, one DELETE. Not the coming back
 * and not the moving (whep.js). Invariant: what is closed says nothing more, and it says `lost` at
 * most once.
 */

import { encodeMessage } from './wire.js';

/** How often a quiet connection is asked for a sign of life. */
const HEARTBEAT_MS = 200;
/** Questions of a heartbeat, at most: patience on slow paths, and before the first pong. */
const ASKS_MAX = 18;
const DELETE_PATIENCE_MS = 500; // then the connection is closed without an answer
/** Above this a move is not worth queueing: a newer one comes with the next frame. */
const MOVES_BUFFERED_MAX = 4096;
/** Relation of the link to a session's events. */
const EVENTS = 'urn:ietf:params:whep:ext:core:server-sent-events';

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

/** The address of a session's events in a `Link` header that offers `reconnect`; else undefined. */
export function eventsLink(header, base) {
  for (const part of (header ?? '').split(/,\s*(?=<)/)) {
    const [, target, parameters] = /^\s*<([^>]*)>(.*)$/.exec(part) ?? [];
    if (!target || !parameters.includes(`rel="${EVENTS}"`)) continue;
    const [, events = ''] = /events="([^"]*)"/.exec(parameters) ?? [];
    if (events.split(',').some((e) => e.trim() === 'reconnect')) return new URL(target, base).href;
  }
  return undefined;
}

/** A WHEP address without the ticket that was good for one move. */
export function withoutTicket(url) {
  const plain = new URL(url);
  plain.searchParams.delete('ticket');
  return plain.href;
}

/**
 * Tells a dead router from a quiet one: a static screen sends nothing, and ICE takes seconds to give
 * up. Looked at every `HEARTBEAT_MS`; a late timer (a page in the background) only makes it slower.
 */
export class Heartbeat {
  #packets;
  #asked = 0;
  /** Many, until it is known how long a pong takes. */
  #asksMax;

  constructor(patience = ASKS_MAX) {
    this.#asksMax = patience;
  }

  /** What is known of the path, for the next connection's. */
  get patience() {
    return this.#asksMax;
  }

  /** Something came from the router; a pong says how long it took. */
  heard(roundTripMs) {
    this.#asked = 0;
    // Three round trips, so that a slow path is not taken for a dead one. Four questions, because
    // each and its answer may be lost: one in ten at 5 % loss.
    if (roundTripMs !== undefined) {
      this.#asksMax = Math.min(ASKS_MAX, Math.max(4, Math.ceil((3 * roundTripMs) / HEARTBEAT_MS)));
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

/**
 * A connection. Options: `auth()` a promise of headers, `iceServers`, `patience` of the heartbeat,
 * `events` (also listen to server-sent events), `postTimeoutMs`. What it says goes to `say(what,
 * detail)`: `connected`, `disconnected`, `stream` (a MediaStream), `channels` ({ open }), `message`
 * (a Uint8Array), `reconnect` (an address), `lost` (a WhepError).
 */
export class Connection {
  #options;
  #say;
  #pc;
  #channels = {};
  #heart;
  #heartTimer = 0;
  #beating = false;
  #abort = new AbortController();
  #closed = false;
  #session;
  #source;

  constructor(url, options, say) {
    this.url = url;
    this.#options = options;
    this.#heart = new Heartbeat(options.patience);
    this.#say = (what, detail) => this.#closed || say(what, detail);
  }

  /** The RTCPeerConnection, for statistics. */
  get peerConnection() {
    return this.#pc;
  }

  /** The session's URL, between answer and close. */
  get sessionUrl() {
    return this.#session;
  }

  /** Whether input can be sent. */
  get isOpen() {
    return this.#channels.input?.readyState === 'open';
  }

  /** What is known of the path. */
  get patience() {
    return this.#heart.patience;
  }

  /** Joins. Failures are said as `lost`. */
  async open() {
    try {
      const pc = this.#peer();
      await pc.setLocalDescription(await pc.createOffer());
      if (this.#closed) return;
      const { answer, session, events } = await this.#post(pc.localDescription.sdp);
      if (this.#closed) {
        this.#delete(session);
        return;
      }
      this.#session = session;
      await pc.setRemoteDescription({ type: 'answer', sdp: answer });
      if (this.#options.events && events) await this.#listen(events);
    } catch (error) {
      this.#lost(asWhepError(error));
    }
  }

  /** As `WhepClient.send`. */
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

  /** Ends it and its session. */
  close() {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#heartTimer);
    this.#abort.abort();
    this.#source?.close();
    // The session first: a connection that closes ends its session at the router, and a DELETE
    // that comes after it would find none.
    const pc = this.#pc;
    const patience = new Promise((ok) => setTimeout(ok, DELETE_PATIENCE_MS));
    if (this.#session) Promise.race([this.#delete(this.#session), patience]).then(() => pc?.close());
    else pc?.close();
    this.#session = undefined;
  }

  #lost(error) {
    this.#say('lost', error);
  }

  #peer() {
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
      if (this.#closed) return;
      this.#heart.heard();
      // Its answer tells how patient to be.
      this.#ping();
      this.#heartTimer = setInterval(() => this.#beat(), HEARTBEAT_MS);
      this.#say('channels', { open: true });
    };
    input.onclose = () => this.#lost(ended());
    for (const channel of [input, moves]) {
      channel.binaryType = 'arraybuffer';
      channel.onmessage = ({ data }) => {
        if (this.#closed || !(data instanceof ArrayBuffer)) return;
        const bytes = new Uint8Array(data);
        this.#heart.heard(roundTrip(bytes));
        this.#say('message', bytes);
      };
    }
    pc.ontrack = ({ track, streams }) => this.#say('stream', streams[0] ?? new MediaStream([track]));
    pc.onconnectionstatechange = () => {
      const state = pc.connectionState;
      if (state === 'connected' || state === 'disconnected') this.#say(state);
      else if (state === 'failed' || state === 'closed') this.#lost(ended());
    };
    return pc;
  }

  /** Asks a router that has been silent for a sign of life, and gives it up when there is none. */
  async #beat() {
    // A look that takes longer than the interval is one look.
    if (this.#beating) return;
    this.#beating = true;
    const packets = await packetsReceived(this.#pc);
    this.#beating = false;
    if (this.#closed) return;
    const next = this.#heart.look(packets);
    if (next === 'dead') this.#lost(silent());
    if (next === 'ask' && this.#ping()) this.#heart.asked();
  }

  #ping() {
    return this.send(encodeMessage({ type: 'ping', seq: 0, lease_epoch: 0, t_ms: clockMs() }), true);
  }

  async #post(offer) {
    const signals = [this.#abort.signal];
    if (this.#options.postTimeoutMs) signals.push(AbortSignal.timeout(this.#options.postTimeoutMs));
    const request = {
      method: 'POST',
      headers: {
        'Content-Type': 'application/sdp', Accept: 'application/sdp', ...(await this.#options.auth()) },
      body: offer,
      signal: AbortSignal.any?.(signals) ?? this.#abort.signal,
    };
    let response = await fetch(this.url, request);
    // Browsers take the token off when a redirect leads to another origin; that router needs it too.
    if (response.status === 401 && response.redirected) response = await fetch(response.url, request);
    if (response.status !== 201) throw await problemOf(response);
    // Where it was answered is where the stream is: there one comes back to.
    this.url = withoutTicket(response.url || new URL(this.url, globalThis.location?.href).href);
    const location = response.headers.get('location');
    return {
      answer: await response.text(),
      session: location ? new URL(location, this.url).href : undefined,
      events: eventsLink(response.headers.get('link'), this.url),
    };
  }

  /** Server-sent events. They are a convenience: without them there is the data channel. */
  async #listen(address) {
    try {
      const response = await fetch(address, {
        method: 'POST', body: JSON.stringify(['reconnect']), signal: this.#abort.signal,
        headers: { 'Content-Type': 'application/json', ...(await this.#options.auth()) } });
      if (response.status !== 201 || this.#closed) return;
      this.#source = new EventSource(new URL(response.headers.get('location'), address));
      this.#source.addEventListener('reconnect', ({ data }) => {
        const { url } = JSON.parse(data);
        if (url) this.#say('reconnect', String(url));
      });
    } catch (error) {
      console.warn('fanlight: no server-sent events:', error.message);
    }
  }

  /** Tells the router that the session is over; it would find out by itself, but later. */
  async #delete(session) {
    try {
      const headers = await this.#options.auth();
      await fetch(session, { method: 'DELETE', headers, keepalive: true });
    } catch {
      // The router is gone, or forgets the session when its media path times out.
    }
  }
}

/** Whether a connection has decoded a picture. */
export async function hasPicture(pc) {
  try {
    const reports = [...(await pc.getStats()).values()];
    return reports.some((r) => r.type === 'inbound-rtp' && r.framesDecoded > 0);
  } catch {
    return false; // closed meanwhile
  }
}

/** Offers H.264 and its repair only: a smaller offer, and the only codec the devices have. */
function preferH264(transceiver) {
  const { codecs = [] } = RTCRtpReceiver.getCapabilities?.('video') ?? {};
  const wanted = codecs.filter((c) => /\/(h264|rtx)$/i.test(c.mimeType));
  // Without H.264 the offer stays whole, and the server's refusal says what is missing.
  if (wanted.some((c) => /h264/i.test(c.mimeType))) transceiver.setCodecPreferences?.(wanted);
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

export function timedOut(answered) {
  return new WhepError({ title: 'No connection', reason: 'TIMEOUT', retryable: true,
    detail: answered
      ? 'The router answered, but no media path to it opened. Is its UDP port reachable?'
      : 'No answer from the router in time.' });
}

function silent() {
  return new WhepError({ title: 'Connection lost', detail: 'The router does not answer any more.',
    reason: 'SILENT', retryable: true });
}

export function ended() {
  return new WhepError({
    title: 'Connection lost', detail: 'The connection to the router ended.', reason: 'LOST',
    retryable: true });
}

function asWhepError(error) {
  if (error instanceof WhepError) return error;
  if (error?.name === 'TimeoutError') return timedOut(false);
  if (error instanceof TypeError && /fetch|network|load/i.test(error.message)) {
    return new WhepError({ title: 'Router not reachable', reason: 'UNREACHABLE', retryable: true,
      detail: 'No answer from the router. It may be starting, or the network may be down.' });
  }
  return new WhepError({ title: 'Could not connect', reason: error?.name ?? 'ERROR',
    detail: String(error?.message ?? error), retryable: false });
}
