/**
 * The viewer page: finds out which streams there are and shows one. Not the player. Invariant: the
 * only global is `window.fanlight`, for the console and for tests.
 *
 * Settings come from the address (`#whep=…&token=…&label=…&fallback=…`, which wins) or from
 * `config.json` beside the page:
 * `{ "title": …, "streams": [{ "name", "whep_url", "token", "label"?, "fallback_whep_urls"? }] }`.
 */

import './player/fanlight-player.js';

const main = document.getElementById('main');
const nav = document.getElementById('streams');

const player = document.createElement('fanlight-player');
window.fanlight = { player, streams: [] };

/** `streams/pixel-7` is called `pixel-7`. */
const labelOf = (stream) => stream.label || stream.name?.replace(/^streams\//, '') || 'Device';

function fromAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const whep = values.get('whep');
  return whep && { streams: [{
    name: values.get('stream') ?? '', label: values.get('label') ?? '', whep_url: whep,
    token: values.get('token') ?? '', fallback_whep_urls: values.getAll('fallback') }] };
}

async function fromServer() {
  const response = await fetch('config.json', { cache: 'no-store' });
  if (!response.ok) throw new Error(`config.json: HTTP ${response.status}`);
  return response.json();
}

function show(stream) {
  for (const tab of nav.children) {
    tab.setAttribute('aria-current', String(tab.dataset.name === stream.name));
  }
  player.setAttribute('label', labelOf(stream));
  player.setAttribute('token', stream.token ?? '');
  player.setAttribute('fallbacks', (stream.fallback_whep_urls ?? []).join(' '));
  player.setAttribute('whep', new URL(stream.whep_url, location.href).href);
  if (!player.isConnected) main.replaceChildren(player);
}

function tabs(streams) {
  nav.replaceChildren(...streams.map((stream) => {
    const tab = document.createElement(streams.length > 1 ? 'button' : 'span');
    tab.textContent = labelOf(stream);
    tab.dataset.name = stream.name;
    if (streams.length > 1) tab.addEventListener('click', () => show(stream));
    return tab;
  }));
}

function notice(title, text) {
  const box = document.createElement('div');
  box.className = 'notice';
  const [heading, words] = [document.createElement('h1'), document.createElement('p')];
  heading.textContent = title;
  words.textContent = text;
  box.append(heading, words);
  main.replaceChildren(box);
}

async function begin() {
  let settings;
  try {
    settings = fromAddress() ?? (await fromServer());
  } catch (error) {
    notice('No stream to show',
      `Give one in the address, as #whep=URL&token=TOKEN, or serve config.json beside this page (${error.message}).`);
    return;
  }
  const streams = (settings.streams ?? []).filter((s) => s.whep_url);
  window.fanlight.streams = streams;
  if (settings.title) {
    document.title = settings.title;
    document.getElementById('title').textContent = settings.title;
  }
  tabs(streams);
  if (streams.length) show(streams[0]);
  else notice('No device yet', 'The server knows of no stream. Reload once a device is connected.');
}

addEventListener('hashchange', () => location.reload());
begin();
