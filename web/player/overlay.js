/**
 * Statistics of the connection: sampled from `getStats`, put into numbers a person can judge, shown
 * on a small panel. Not the connection itself. Invariant: rates are over the time between two
 * samples; a number that the browser does not give is undefined, and shown as a dash.
 */

/** Samples kept for the curves. */
const HISTORY = 60;

/**
 * The figures of one sample. `now` and `before` are maps (or RTCStatsReports) of two moments;
 * without `before` there are no rates.
 */
export function summarise(now, before) {
  const all = [...now.values()];
  const video = all.find((s) => s.type === 'inbound-rtp' && s.kind === 'video');
  const transport = all.find((s) => s.type === 'transport');
  const pair = now.get?.(transport?.selectedCandidatePairId) ??
    all.find((s) => s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded');
  const old = video && before?.get(video.id);
  const seconds = old ? (video.timestamp - old.timestamp) / 1000 : 0;
  const change = (name) => (old && seconds > 0 ? (video[name] ?? 0) - (old[name] ?? 0) : undefined);
  const rate = (name) => divide(change(name), seconds);
  const [lost, received] = [change('packetsLost'), change('packetsReceived')];
  return {
    fps: rate('framesDecoded') ?? video?.framesPerSecond,
    bitrateBps: scale(rate('bytesReceived'), 8),
    rttMs: scale(pair?.currentRoundTripTime, 1000),
    lossPercent: scale(divide(lost, lost + received), 100),
    jitterMs: scale(video?.jitter, 1000),
    jitterBufferMs: scale(divide(change('jitterBufferDelay'), change('jitterBufferEmittedCount')), 1000),
    decodeMs: scale(divide(change('totalDecodeTime'), change('framesDecoded')), 1000),
    framesDecoded: video?.framesDecoded,
    framesDropped: video?.framesDropped,
    freezes: video?.freezeCount,
    packetsLost: video?.packetsLost,
    nacks: video?.nackCount,
    plis: video?.pliCount,
    width: video?.frameWidth,
    height: video?.frameHeight,
    codec: now.get?.(video?.codecId)?.mimeType?.replace('video/', ''),
    path: [now.get?.(pair?.remoteCandidateId)?.protocol, now.get?.(pair?.remoteCandidateId)?.candidateType]
      .filter(Boolean).join(' ') || undefined,
  };
}

function divide(part, whole) {
  return part !== undefined && whole > 0 ? part / whole : undefined;
}

function scale(value, by) {
  return value === undefined ? undefined : value * by;
}

/** Takes samples of one peer connection after another. */
export class StatsSampler {
  #before;
  #pc;

  /** The figures since the last call; undefined without a connection. */
  async sample(pc) {
    if (!pc || pc.connectionState === 'closed') return undefined;
    if (pc !== this.#pc) this.#before = undefined;
    this.#pc = pc;
    const now = await pc.getStats();
    const figures = summarise(now, this.#before);
    this.#before = now;
    return figures;
  }
}

/** `2.41 Mbit/s`, `830 kbit/s`. */
export function formatBitrate(bps) {
  if (bps === undefined) return '–';
  if (bps >= 1e6) return `${(bps / 1e6).toFixed(2)} Mbit/s`;
  return `${Math.round(bps / 1e3)} kbit/s`;
}

function number(value, digits, unit = '') {
  return value === undefined || !Number.isFinite(value) ? '–' : `${value.toFixed(digits)}${unit}`;
}

const ROWS = [
  ['Resolution', (s) => (s.width ? `${s.width} × ${s.height}` : '–')],
  ['Round trip', (s) => number(s.rttMs, 1, ' ms')],
  ['Input round trip', (s) => number(s.inputRttMs, 1, ' ms')],
  ['Packet loss', (s) => number(s.lossPercent, 2, ' %')],
  ['Network jitter', (s) => number(s.jitterMs, 1, ' ms')],
  ['Jitter buffer', (s) => number(s.jitterBufferMs, 1, ' ms')],
  ['Decode', (s) => number(s.decodeMs, 1, ' ms')],
  ['Frames dropped', (s) => `${s.framesDropped ?? '–'} of ${s.framesDecoded ?? '–'}`],
  ['NACK · PLI · freezes', (s) => `${s.nacks ?? '–'} · ${s.plis ?? '–'} · ${s.freezes ?? '–'}`],
  ['Path', (s) => [s.codec, s.path].filter(Boolean).join(' · ') || '–'],
];

/** The panel. Put `element` somewhere and call `update` with each sample. */
export class StatsOverlay {
  #values;
  #curves;

  constructor() {
    this.element = document.createElement('section');
    this.element.className = 'stats';
    this.element.setAttribute('aria-label', 'Connection statistics');
    this.#curves = [
      new Curve('Frame rate', (s) => s.fps, (v) => number(v, 0, ' fps')),
      new Curve('Bitrate', (s) => s.bitrateBps, formatBitrate),
    ];
    const list = document.createElement('dl');
    this.#values = ROWS.map(([label, format]) => {
      const [term, value] = [document.createElement('dt'), document.createElement('dd')];
      term.textContent = label;
      value.textContent = '–';
      list.append(term, value);
      return { value, format };
    });
    const curves = document.createElement('div');
    curves.className = 'curves';
    curves.append(...this.#curves.map((c) => c.element));
    this.element.append(curves, list);
  }

  /** Shows one sample. */
  update(figures) {
    this.#curves.forEach((c) => c.push(figures));
    for (const { value, format } of this.#values) {
      const text = format(figures);
      if (value.textContent !== text) value.textContent = text;
    }
  }
}

/** A number with its last minute as a curve. */
class Curve {
  #pick;
  #format;
  #points = [];
  #number;
  #line;
  #area;

  constructor(label, pick, format) {
    this.#pick = pick;
    this.#format = format;
    this.element = document.createElement('figure');
    this.element.innerHTML = `<figcaption></figcaption><strong>–</strong>
      <svg viewBox="0 0 120 32" preserveAspectRatio="none" aria-hidden="true">
        <path class="area"/><path class="line"/></svg>`;
    this.element.querySelector('figcaption').textContent = label;
    this.#number = this.element.querySelector('strong');
    this.#line = this.element.querySelector('.line');
    this.#area = this.element.querySelector('.area');
  }

  push(figures) {
    const value = this.#pick(figures);
    this.#points.push(value ?? 0);
    if (this.#points.length > HISTORY) this.#points.shift();
    this.#number.textContent = this.#format(value);
    const top = Math.max(...this.#points, 1) * 1.1;
    const step = 120 / (HISTORY - 1);
    const from = 120 - (this.#points.length - 1) * step;
    const path = this.#points
      .map((p, i) => `${i ? 'L' : 'M'}${(from + i * step).toFixed(1)} ${(31 - (p / top) * 30).toFixed(1)}`)
      .join('');
    this.#line.setAttribute('d', path);
    this.#area.setAttribute('d', `${path}L120 32L${from.toFixed(1)} 32Z`);
  }
}
