/**
 * `<fanlight-player whep="…" token="…">`: a device's screen, its buttons, and what is to be said
 * about the connection. Not the connection (whep.js), the input (input.js) or the figures
 * (overlay.js). Invariant: what is shown follows from `state`, the last picture and the role alone.
 *
 * Attributes: `whep`, `token`, `fallbacks` (other WHEP addresses of the stream, by spaces), `label`
 * (the device's name for people), `controls="none"` (picture only), `manual` (connect only when told).
 * Events: `statechange` { state, previous }, `firstframe` { ms, width, height }, `stats` (figures),
 * `error` (a WhepError), `session` { w, h, rotation, role }, `moving` { url, by } and `moved`
 * { url, by, ms } (the stream goes to another router; the picture goes on), `recovered`
 * { ms, reason } (the picture is back after it was lost).
 * Methods: `connect()`, `disconnect()`, `getStats()`. Properties: `state`, `video`, `role`, `input`,
 * `token` (a string or a function).
 */

import { decodeMessage, InputController } from './input.js';
import { icons } from './icons.js';
import { formatBitrate, StatsOverlay, StatsSampler } from './overlay.js';
import { css } from './style.js';
import { WhepClient } from './whep.js';

const STATS_MS = 1000;
const TOAST_MS = 2600;

/** Buttons of the bar: [name, label, icon, wire button or undefined]. */
const NAV = [
  ['back', 'Back', 'back_or_screen_on'],
  ['home', 'Home', 'home'],
  ['recents', 'Recent apps', 'recents'],
];
const EXTRA = [
  ['power', 'Power', 'power'],
  ['volumeUp', 'Volume up', 'volume_up'],
  ['volumeDown', 'Volume down', 'volume_down'],
  ['rotate', 'Rotate device', 'rotate_device'],
];

/** What the pill says in each state. */
const TONES = {
  idle: ['', 'Not connected'],
  connecting: ['warn', 'Connecting'],
  waiting: ['warn', 'Waiting for the picture'],
  live: ['good', 'Live'],
  reconnecting: ['warn', 'Reconnecting'],
  failed: ['bad', 'Not available'],
  closed: ['', 'Disconnected'],
};

const DENIED = {
  not_controller: 'You are watching: somebody else is in control',
  rate_limited: 'Too much input at once: slow down',
  device_offline: 'The device is not answering',
};

const template = `
<div class="player" part="player">
  <div class="head">
    <div class="pill" role="status"><span class="dot"></span><span class="word"></span><span class="role"></span></div>
    <div class="brief" aria-hidden="true"></div>
  </div>
  <div class="device" part="device">
    <div class="screen">
      <video playsinline muted autoplay disablepictureinpicture disableremoteplayback></video>
      <textarea class="sink" rows="1" autocapitalize="off" autocomplete="off" autocorrect="off" spellcheck="false" enterkeyhint="enter"></textarea>
      <div class="veil"><div class="spinner"></div><p></p><button class="primary start" hidden>${icons.play}<span></span></button></div>
    </div>
  </div>
  <div class="card" role="alert" hidden>
    <span class="mark">${icons.warning}</span>
    <h2></h2><p></p><dl></dl>
    <div class="act"><button class="primary retry">${icons.retry}<span>Try again</span></button><span class="count"></span></div>
  </div>
  <div class="bar" role="toolbar" aria-label="Device buttons" aria-orientation="vertical"></div>
</div>
<div class="toast" role="status"></div>`;

let sheet;

/** The element. `customElements.define` is done below, under its own name. */
export class FanlightPlayer extends HTMLElement {
  static observedAttributes = ['whep', 'token', 'fallbacks', 'label'];

  #root = this.attachShadow({ mode: 'open' });
  #client;
  #input;
  #state = 'idle';
  #token;
  #session;
  #overlay = new StatsOverlay();
  #sampler = new StatsSampler();
  #figures = {};
  #inputRtt;
  #statsTimer = 0;
  #countTimer = 0;
  #toastTimer = 0;
  #joinedAt = 0;
  #picture = 'none'; // none, live, old
  #wantsCopy = false;
  #lossReason;
  /** What the connection has been through, for `getStats`. */
  #past = { moves: 0, losses: 0 };
  #changed = false;

  constructor() {
    super();
    this.#root.innerHTML = template;
    if (!sheet) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(css);
    }
    this.#root.adoptedStyleSheets = [sheet];
    this.#buildBar();
    this.#overlay.element.hidden = true;
    this.#root.append(this.#overlay.element);
    this.#$('.retry').addEventListener('click', () => this.connect());
    this.#$('.start').addEventListener('click', () => this.#start());
    this.#watchSize(this.video);
  }

  #watchSize(video) {
    video.addEventListener('resize', () => this.video === video && this.#aspect());
  }

  /** The video element: its pixels are the device's. */
  get video() {
    return this.#$('video:not(.next)');
  }

  /** `idle`, `connecting`, `waiting`, `live`, `reconnecting`, `failed` or `closed`. */
  get state() {
    return this.#state;
  }

  /** `controller`, `observer`, or undefined while not known. */
  get role() {
    return this.#session?.role;
  }

  /** The input controller, to type or press buttons from a script; undefined while not connected. */
  get input() {
    return this.#input;
  }

  /** The join token: a string, or a function that gives one (or a promise of one) per attempt. */
  get token() {
    return this.#token ?? (this.getAttribute('token') || undefined);
  }

  set token(value) {
    this.#token = value;
  }

  connectedCallback() {
    addEventListener('pagehide', this.#leave);
    addEventListener('pageshow', this.#comeBack);
    addEventListener('online', this.#online);
    document.addEventListener('fullscreenchange', this.#fullscreenChanged);
    this.#render();
    if (this.hasAttribute('whep') && !this.hasAttribute('manual')) this.connect();
  }

  disconnectedCallback() {
    removeEventListener('pagehide', this.#leave);
    removeEventListener('pageshow', this.#comeBack);
    removeEventListener('online', this.#online);
    document.removeEventListener('fullscreenchange', this.#fullscreenChanged);
    this.disconnect();
  }

  attributeChangedCallback(name, before, after) {
    if (name === 'label') this.#label();
    else if (before !== after && this.isConnected && !this.hasAttribute('manual')) {
      // Another device: the last picture is not this one's.
      if (name === 'whep') this.#picture = 'none';
      this.#connectSoon();
    }
  }

  /** Joins the stream named by `whep`, leaving the one before. */
  connect() {
    this.#end();
    const url = this.getAttribute('whep');
    if (!url) return;
    this.#joinedAt = performance.now();
    const fallbacks = (this.getAttribute('fallbacks') ?? '').split(/\s+/).filter(Boolean);
    const client = new WhepClient(url, { token: this.token, fallbacks });
    this.#client = client;
    const on = (name, handler) =>
      client.addEventListener(name, (e) => this.#client === client && handler.call(this, e.detail));
    on('statechange', this.#connection);
    on('stream', this.#stream);
    on('message', this.#message);
    on('channels', ({ open }) => (open ? this.#openInput() : this.#closeInput()));
    on('error', (error) => this.#emit('error', error));
    on('moving', (detail) => this.#emit('moving', detail));
    on('moved', this.#moved);
    client.addEventListener('nextstream', (e) => {
      if (this.#client !== client) return;
      e.preventDefault();
      this.#next(e.detail);
    });
    this.#statsTimer = setInterval(() => this.#tick(), STATS_MS);
    client.connect();
  }

  /** Several attributes set in a row are one change. */
  #connectSoon() {
    if (this.#changed) return;
    this.#changed = true;
    queueMicrotask(() => {
      this.#changed = false;
      if (this.isConnected) this.connect();
    });
  }

  /** Gives the device's screen the keyboard. */
  focus(options) {
    this.#$('.sink').focus({ preventScroll: true, ...options });
  }

  /** Leaves. */
  disconnect() {
    const was = this.#client;
    this.#end();
    if (was) this.#set('closed');
  }

  /**
   * The figures of the last second: see `summarise` in overlay.js; empty before the first. And what
   * was before: `moves`, `lastMoveMs`, `losses`, `lastLossReason`, `lastLossMs` (without a picture).
   */
  getStats() {
    return { ...this.#figures, ...this.#past, state: this.#state, inputRttMs: this.#inputRtt };
  }

  #end() {
    clearInterval(this.#statsTimer);
    clearInterval(this.#countTimer);
    const client = this.#client;
    this.#client = undefined;
    this.#$('video.next')?.remove();
    this.#closeInput();
    client?.close();
    this.#session = undefined;
    this.#figures = {};
    this.#inputRtt = undefined;
    if (this.#picture === 'live') this.#picture = 'old';
  }

  #leave = () => this.#client?.close();

  #comeBack = (event) => {
    if (event.persisted && this.#client) this.connect();
  };

  /** The network is back: no need to wait for the next try. */
  #online = () => {
    if (this.#state === 'reconnecting') this.#client?.connect();
  };

  #connection({ state, error, retryInMs }) {
    if (state === 'connected') {
      this.#set(this.#picture === 'live' ? 'live' : 'waiting');
    } else if (state === 'reconnecting') {
      if (this.#state !== 'reconnecting') {
        this.#joinedAt = performance.now();
        if (this.#picture === 'live') this.#lossReason = error?.reason || 'LOST';
      }
      if (this.#picture === 'live') this.#picture = 'old';
      this.#set('reconnecting', error);
      if (retryInMs !== undefined) this.#countDown(retryInMs);
    } else {
      this.#set(state, error);
    }
  }

  /** The picture of another router, beside the present one until it shows something. */
  #next({ stream, shown }) {
    this.#$('video.next')?.remove();
    const old = this.video;
    const next = old.cloneNode();
    next.classList.add('next');
    next.muted = true;
    next.srcObject = stream;
    old.after(next);
    const swap = () => {
      if (!next.isConnected) return;
      old.srcObject = null;
      old.remove();
      next.classList.remove('next');
      this.#watchSize(next);
      shown();
      this.#aspect();
    };
    if (next.requestVideoFrameCallback) next.requestVideoFrameCallback(swap);
    else next.addEventListener('loadeddata', swap, { once: true });
    // A browser that wants a gesture has had one, or shows nothing yet either.
    next.play().catch(() => {});
  }

  #moved(detail) {
    this.#past = { ...this.#past, moves: this.#past.moves + 1, lastMoveMs: detail.ms };
    this.#emit('moved', detail);
  }

  #stream(stream) {
    this.#$('video.next')?.remove();
    const { video } = this;
    const client = this.#client;
    video.srcObject = stream;
    const shown = () => {
      if (this.#client === client && video.srcObject === stream) this.#firstFrame();
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(shown);
    else video.addEventListener('loadeddata', shown, { once: true });
    this.#start();
  }

  async #start() {
    const start = this.#$('.start');
    try {
      await this.video.play();
      start.hidden = true;
    } catch (error) {
      // Another stream took its place, or the browser wants a gesture first.
      start.hidden = error.name !== 'NotAllowedError';
      this.#$('.start span').textContent = 'Show the screen';
    }
  }

  #firstFrame() {
    this.#picture = 'live';
    this.#aspect();
    this.#set('live');
    const { videoWidth: width, videoHeight: height } = this.video;
    const ms = performance.now() - this.#joinedAt;
    this.#emit('firstframe', { ms, width, height });
    if (this.#lossReason) {
      const reason = this.#lossReason;
      this.#lossReason = undefined;
      const losses = this.#past.losses + 1;
      this.#past = { ...this.#past, losses, lastLossReason: reason, lastLossMs: Math.round(ms) };
      this.#emit('recovered', { ms: Math.round(ms), reason });
    }
  }

  #openInput() {
    this.#closeInput();
    const client = this.#client;
    this.#input = new InputController({
      video: this.video,
      sink: this.#$('.sink'),
      send: (bytes, droppable) => client.send(bytes, droppable),
      enabled: () => this.role !== 'observer',
      onCopy: () => { this.#wantsCopy = true; },
      onTooLong: () => this.#toast('Too long to paste: at most 64 KiB'),
    });
    this.#render();
  }

  #closeInput() {
    this.#input?.close();
    this.#input = undefined;
  }

  #message(bytes) {
    let message;
    try {
      message = decodeMessage(bytes);
    } catch (error) {
      console.warn('fanlight: message from the router not understood:', error.message);
      return;
    }
    if (message.type === 'session') {
      this.#session = message;
      this.#input?.session(message);
      if (message.w && !this.video.videoWidth) this.#aspect(message.w / message.h);
      this.#render();
      this.#emit('session', message);
    } else if (message.type === 'clipboard') {
      this.#emit('clipboard', { text: message.text });
      if (this.#wantsCopy) this.#copied(message.text);
      this.#wantsCopy = false;
    } else if (message.type === 'denied') {
      if (DENIED[message.reason]) this.#toast(DENIED[message.reason]);
    } else if (message.type === 'pong') {
      this.#inputRtt = (Math.round(performance.now()) - message.t_ms) >>> 0;
    }
  }

  async #copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      this.#toast('Copied from the device');
    } catch {
      this.#toast('The browser did not allow copying');
    }
  }

  async #tick() {
    const client = this.#client;
    const figures = await this.#sampler.sample(client?.peerConnection).catch(() => undefined);
    if (!figures || this.#client !== client) return;
    this.#input?.message({ type: 'ping', t_ms: Math.round(performance.now()) >>> 0 });
    this.#figures = { ...figures, inputRttMs: this.#inputRtt };
    this.#overlay.update(this.#figures);
    this.#brief();
    this.#emit('stats', this.#figures);
  }

  #set(state, error) {
    const previous = this.#state;
    this.#state = state;
    if (state !== 'reconnecting') clearInterval(this.#countTimer);
    this.#card(error);
    this.#render();
    if (state !== previous) this.#emit('statechange', { state, previous, error });
  }

  #render() {
    const player = this.#$('.player');
    const control = Boolean(this.#input) && this.role !== 'observer';
    let [tone, word] = TONES[this.#state];
    if (this.#state === 'reconnecting' && this.#picture === 'none') word = 'Trying to connect';
    Object.assign(player.dataset, {
      state: this.#state, picture: this.#picture, tone, control: control ? 'yes' : 'no' });
    this.#$('.pill .word').textContent = word;
    this.#$('.pill .role').textContent =
      this.#state === 'live' && this.role === 'observer' ? 'View only' : '';
    const veil = { failed: '', closed: 'Disconnected', idle: 'Not connected' }[this.#state];
    this.#$('.veil p').textContent = veil ?? `${word}…`;
    this.#$('.spinner').hidden = this.#state === 'failed';
    for (const button of this.#root.querySelectorAll('[data-button], .keyboard')) {
      button.disabled = !control;
    }
    if (!['live', 'waiting'].includes(this.#state)) this.#$('.brief').textContent = '';
    this.#label();
  }

  #brief() {
    const { fps, bitrateBps, rttMs } = this.#figures;
    if (this.#state !== 'live' || bitrateBps === undefined) return;
    const parts = [`${Math.round(fps ?? 0)} fps`, formatBitrate(bitrateBps)];
    if (rttMs !== undefined) parts.push(`${rttMs < 10 ? rttMs.toFixed(1) : Math.round(rttMs)} ms`);
    this.#$('.brief').textContent = parts.join('  ·  ');
  }

  /** The server's words. Hidden while all is well, and in the first second of coming back. */
  #card(error) {
    const card = this.#$('.card');
    card.hidden = !error || this.#state === 'live' || this.#state === 'waiting';
    if (!error) return;
    card.querySelector('h2').textContent = error.title || 'Not available';
    card.querySelector('p').textContent = error.detail === error.title ? '' : error.detail;
    const list = (value) => (Array.isArray(value) ? value.join(', ') : value && String(value));
    const facts = [
      ['Reason', [error.reason, error.status || ''].filter(Boolean).join(' · ')],
      ['Offered', list(error.offered)],
      ['Needed', list(error.needed)],
    ].filter(([, value]) => value);
    card.querySelector('dl').replaceChildren(...facts.flatMap(([name, value]) => {
      const [dt, dd] = [document.createElement('dt'), document.createElement('dd')];
      dt.textContent = name;
      dd.textContent = value;
      return [dt, dd];
    }));
    card.querySelector('.count').textContent = '';
  }

  #countDown(ms) {
    clearInterval(this.#countTimer);
    const until = performance.now() + ms;
    const count = () => {
      const seconds = Math.max(0, Math.ceil((until - performance.now()) / 1000));
      this.#$('.card .count').textContent = seconds > 0 ? `Trying again in ${seconds} s` : 'Trying again…';
    };
    count();
    this.#countTimer = setInterval(count, 250);
  }

  #aspect(ratio) {
    const { videoWidth, videoHeight } = this.video;
    const value = ratio ?? (videoHeight ? videoWidth / videoHeight : undefined);
    if (value) this.#$('.player').style.setProperty('--ar', String(value));
  }

  #label() {
    const name = this.getAttribute('label') || 'device';
    this.video.setAttribute('aria-label', `Screen of ${name}`);
    this.#$('.sink').setAttribute('aria-label', `Keyboard of ${name}`);
  }

  #buildBar() {
    const bar = this.#$('.bar');
    const group = (className, ...children) => {
      const element = document.createElement('div');
      element.className = className;
      element.append(...children);
      return element;
    };
    const rule = () => document.createElement('hr');
    const device = ([icon, label, button]) => this.#deviceButton(icon, label, button);
    const keyboard = this.#barButton('keyboard', 'Keyboard', () => this.focus());
    keyboard.classList.add('keyboard');
    const stats = this.#barButton('stats', 'Statistics', () => this.#toggleStats());
    const fullscreen = this.#barButton('fullscreen', 'Full screen', () => this.#toggleFullscreen());
    stats.classList.add('stats-toggle');
    stats.setAttribute('aria-pressed', 'false');
    fullscreen.classList.add('fullscreen');
    fullscreen.hidden = !document.fullscreenEnabled;
    const more = this.#barButton('more', 'More', () => this.#toggleMore());
    more.classList.add('more');
    more.setAttribute('aria-expanded', 'false');
    bar.append(
      group('nav', ...NAV.map(device)), rule(), keyboard,
      group('extra', ...EXTRA.map(device), rule(), stats, fullscreen), more);
  }

  #barButton(icon, label, onClick) {
    const button = document.createElement('button');
    button.type = 'button';
    button.title = label;
    button.setAttribute('aria-label', label);
    button.innerHTML = icons[icon];
    if (onClick) button.addEventListener('click', onClick);
    return button;
  }

  /** Down and up follow the finger, so that a long press is one; the keyboard presses and lets go. */
  #deviceButton(icon, label, name) {
    const button = this.#barButton(icon, label);
    button.dataset.button = name;
    const holds = name !== 'rotate_device';
    let down = false;
    const act = (action) => this.#input?.button(name, action);
    const up = () => {
      if (down) act('up');
      down = false;
    };
    button.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || button.disabled || !holds) return;
      down = true;
      act('down');
      button.setPointerCapture?.(event.pointerId);
    });
    for (const end of ['pointerup', 'pointercancel', 'lostpointercapture', 'blur']) {
      button.addEventListener(end, up);
    }
    button.addEventListener('click', (event) => {
      if (!holds || event.detail === 0) act('press');
    });
    button.addEventListener('contextmenu', (event) => event.preventDefault());
    return button;
  }

  #toggleStats() {
    const { element } = this.#overlay;
    element.hidden = !element.hidden;
    this.#$('.stats-toggle').setAttribute('aria-pressed', String(!element.hidden));
  }

  #toggleMore() {
    const open = this.#$('.bar').classList.toggle('open');
    this.#$('.more').setAttribute('aria-expanded', String(open));
  }

  #toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.requestFullscreen().catch(() => this.#toast('Full screen is not allowed here'));
  }

  #fullscreenChanged = () => {
    const on = document.fullscreenElement === this;
    const button = this.#$('button.fullscreen');
    button.innerHTML = on ? icons.fullscreenExit : icons.fullscreen;
    button.setAttribute('aria-label', on ? 'Leave full screen' : 'Full screen');
    button.title = button.getAttribute('aria-label');
  };

  #toast(text) {
    const toast = this.#$('.toast');
    toast.textContent = text;
    toast.classList.add('shown');
    clearTimeout(this.#toastTimer);
    this.#toastTimer = setTimeout(() => toast.classList.remove('shown'), TOAST_MS);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }

  #$(selector) {
    return this.#root.querySelector(selector);
  }
}

customElements.define('fanlight-player', FanlightPlayer);
