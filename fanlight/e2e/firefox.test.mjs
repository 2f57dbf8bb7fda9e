// A real Firefox. Whether its WebRTC has H.264 depends on a plugin (OpenH264) that it downloads by
// itself some time after its first start, which a fresh profile on a closed machine never does. So
// both are tests: without H.264 the refusal says what was offered and what is needed; with it the
// stream plays, through loss as well. MOZ_GMP_PATH=<folder of the plugin> gives Firefox one; the
// folder's parent must be called gmp-gmpopenh264.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { assertUnharmed, figure, startDemo, startRelay } from './lib.mjs';
import { firefoxMissing, startFirefox } from './firefox.mjs';

const SECONDS = Number(process.env.E2E_LOSS_SECONDS ?? 6);
const missing = firefoxMissing();

describe('Firefox', { timeout: 120_000 + 3 * SECONDS * 1000, skip: missing }, () => {
  let demo, firefox, h264;

  before(async () => {
    demo = await startDemo(['--size', '360x640', '--fps', '30']);
    firefox = await startFirefox();
    await firefox.open(demo.ready.page_url);
    const formats = await firefox.evaluate(async () => {
      const peer = new RTCPeerConnection();
      peer.addTransceiver('video', { direction: 'recvonly' });
      const { sdp } = await peer.createOffer();
      peer.close();
      const lines = sdp.split('\r\n');
      return lines.filter((l) => /^a=rtpmap:\d+ H264/.test(l)).map((l) => {
        const [, pt] = /^a=rtpmap:(\d+)/.exec(l);
        return lines.find((f) => f.startsWith(`a=fmtp:${pt} `));
      });
    });
    h264 = formats.length > 0;
    figure('firefox', { version: firefox.version, h264: formats });
  });
  after(async () => {
    await firefox?.stop();
    const code = await demo?.stop();
    assert.equal(code, 0, `demo must end cleanly:\n${demo?.log().slice(-3000)}`);
  });

  test('without H.264 is told what it offered and what is needed', async (t) => {
    if (h264) return t.skip('this Firefox has H.264 in WebRTC');
    const answer = await firefox.evaluate(async (whep, token) => {
      const peer = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
      peer.addTransceiver('video', { direction: 'recvonly' });
      peer.createDataChannel('input');
      await peer.setLocalDescription(await peer.createOffer());
      const response = await fetch(whep, {
        method: 'POST', body: peer.localDescription.sdp,
        headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` },
      });
      peer.close();
      return { status: response.status, type: response.headers.get('content-type'), body: await response.json() };
    }, demo.ready.whep_url, demo.ready.join_token);
    figure('firefox_refusal', answer);
    assert.equal(answer.status, 406);
    assert.match(answer.type, /^application\/problem\+json/);
    assert.equal(answer.body.reason, 'NO_COMMON_CODEC');
    assert.ok(answer.body.offered.includes('VP8'), answer.body.offered);
    assert.match(answer.body.needed, /^H264 packetization-mode=1/);
  });

  test('without H.264 the player says so and does not try again', async (t) => {
    if (h264) return t.skip('this Firefox has H.264 in WebRTC');
    const [error, state] = await firefox.evaluate(async (whep, token) => {
      const el = document.createElement('fanlight-player');
      el.setAttribute('whep', whep);
      el.setAttribute('token', token);
      const failed = new Promise((ok) => el.addEventListener('error', (e) => ok(e.detail), { once: true }));
      document.body.append(el);
      const { status, reason, retryable, needed } = await failed;
      return [{ status, reason, retryable, needed }, el.state];
    }, demo.ready.whep_url, demo.ready.join_token);
    assert.deepEqual(error, { status: 406, reason: 'NO_COMMON_CODEC', retryable: false, needed: 'H264 packetization-mode=1' });
    assert.equal(state, 'failed');
  });

  for (const [loss, complete] of [[1, 0.999], [5, 0.995]]) {
    test(`with H.264 shows every picture as it was drawn through ${loss} % loss`, async (t) => {
      if (!h264) return t.skip('this Firefox has no H.264 in WebRTC: its OpenH264 plugin is not there');
      const relay = await startRelay(demo.ready.whep_url, { loss, rttMs: 40 });
      try {
        const wheps = [demo.ready.whep_url, relay.via(demo.ready.whep_url)];
        const [clean, lossy] = await firefox.evaluate(play, wheps, demo.ready.join_token, SECONDS * 1000);
        assertUnharmed(`firefox_loss_${loss}_percent`, clean, lossy, { complete, relay: await relay.lost() });
        // Firefox does not say how many repairs it got; that the pictures are complete does.
        assert.ok(lossy.stats.packetsLost > 0 && lossy.stats.nackCount > 0, 'there was loss, and Firefox asked');
        assert.equal(lossy.stats.pliCount, 0, 'keyframes that Firefox asked for');
      } finally {
        await relay.stop();
      }
    });
  }
});

// Runs in the page: a player for each address in place of those that are there, watched for `ms`.
async function play(wheps, token, ms) {
  document.querySelectorAll('fanlight-player').forEach((old) => old.remove());
  const players = wheps.map((whep) => {
    const el = document.createElement('fanlight-player');
    el.setAttribute('whep', whep);
    el.setAttribute('token', token);
    el.setAttribute('autoplay', '');
    el.style.cssText = 'display:inline-block;width:180px;height:320px';
    document.body.append(el);
    return el;
  });
  await Promise.all(players.map((el) => probe.frameWhere(el.video, (v) => probe.strip(v), 15_000)));
  return Promise.all(players.map((el) => probe.watch(el.video, ms)));
}
