// Runs in the page before its own scripts: a WHEP server made of a local peer connection whose video
// is a canvas, in place of `fetch` for `/whep/`. For tests of the player without a device. It answers
// pings unless `fakeRouter.mute` is set.
// Invariant: what arrives on the data channels is kept as it came, in `fakeRouter.received`.
{
  const realFetch = globalThis.fetch;
  const fake = { answer: 'live', role: 1, requests: [], received: [], mute: false, pings: 0, server: null, canvas: null };
  globalThis.fakeRouter = fake;

  globalThis.fetch = async (url, init = {}) => {
    const target = String(url?.url ?? url);
    if (!target.includes('/whep/')) return realFetch(url, init);
    fake.requests.push({ method: init.method, target, authorization: init.headers?.Authorization });
    if (init.method === 'DELETE') return new Response('', { status: 200 });
    if (typeof fake.answer === 'object') {
      const { status, headers = {}, ...problem } = fake.answer;
      return new Response(JSON.stringify(problem), {
        status, headers: { 'content-type': 'application/problem+json', ...headers } });
    }
    return new Response(await answer(init.body), {
      status: 201, headers: { 'content-type': 'application/sdp', location: '/whep/x/s1' } });
  };

  function draw() {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [360, 640];
    const context = canvas.getContext('2d');
    let turn = 0;
    setInterval(() => {
      context.fillStyle = `hsl(${(turn += 2)} 50% 40%)`;
      context.fillRect(0, 0, canvas.width, canvas.height);
    }, 33);
    return canvas;
  }

  async function answer(offer) {
    const pc = new RTCPeerConnection();
    fake.server = pc;
    fake.canvas = draw();
    const stream = fake.canvas.captureStream(30);
    pc.ondatachannel = ({ channel }) => {
      channel.binaryType = 'arraybuffer';
      channel.onmessage = ({ data }) => {
        const bytes = new Uint8Array(data);
        if (bytes[0] === 0x09) fake.pings += 1;
        if (bytes[0] === 0x09 && !fake.mute) channel.send(Uint8Array.from([0x8a, ...bytes.slice(1)]));
        if (bytes[0] !== 0x09) fake.received.push({ channel: channel.label, bytes: [...bytes] });
      };
      if (channel.label !== 'input') return;
      fake.say = (bytes) => channel.send(Uint8Array.from(bytes));
      channel.onopen = () => fake.say(
        [0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0x68, 2, 0x80, 0, fake.role, 0, 0]);
    };
    await pc.setRemoteDescription({ type: 'offer', sdp: offer });
    const sender = pc.addTrack(stream.getVideoTracks()[0], stream);
    await pc.setLocalDescription(await pc.createAnswer());
    // The picture keeps its size: the player's arithmetic is what is tested.
    const parameters = sender.getParameters();
    parameters.degradationPreference = 'maintain-resolution';
    await sender.setParameters(parameters);
    while (pc.iceGatheringState !== 'complete') {
      await new Promise((ok) => pc.addEventListener('icegatheringstatechange', ok, { once: true }));
    }
    return pc.localDescription.sdp;
  }
}
