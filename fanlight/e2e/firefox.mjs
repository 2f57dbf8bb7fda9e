// Starts a real Firefox, headless, and drives it by Marionette, the protocol under geckodriver:
// JSON messages with their length in front, over TCP. Not a test itself, and as much of the
// protocol as the tests need. Invariant: `stop` ends the browser and removes its profile.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { fileAppears, inPage, tempDir } from './lib.mjs';

const BIN = process.env.FIREFOX ?? 'firefox-esr';

/** Why there is no Firefox to test with; false when there is one. */
export function firefoxMissing() {
  const found = spawnSync(BIN, ['--version'], { stdio: 'ignore' });
  return found.error || found.status !== 0 ? `${BIN} is not installed (apt-get install firefox-esr)` : false;
}

// Nothing that looks outside this machine, nothing that waits for a person.
const PREFS = {
  'marionette.port': 0, // chosen by Firefox, which writes it into its profile
  'remote.prefs.recommended': true,
  'app.update.enabled': false,
  'datareporting.policy.dataSubmissionEnabled': false,
  'media.gmp-manager.updateEnabled': false,
  'media.autoplay.default': 0,
  // The router is on this machine. Without a permission to record, only the address of the default
  // route is used.
  'media.peerconnection.ice.loopback': true,
  'permissions.default.microphone': 1,
  'network.captive-portal-service.enabled': false,
  'network.connectivity-service.enabled': false,
  // Pictures are read from a canvas, which must not be blurred.
  'privacy.resistFingerprinting': false,
  'privacy.fingerprintingProtection': false,
};

/** Starts Firefox. `open(url)` loads a page, `evaluate(f, ...args)` runs `f` in it. */
export async function startFirefox() {
  const profile = tempDir();
  const prefs = Object.entries(PREFS).map(([k, v]) => `user_pref(${JSON.stringify(k)}, ${JSON.stringify(v)});\n`);
  writeFileSync(join(profile, 'user.js'), prefs.join(''));
  const child = spawn(BIN, ['--headless', '--marionette', '--no-remote', '--profile', profile], { stdio: 'ignore' });
  let socket;
  const stop = async () => {
    socket?.destroy();
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    }
    rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  };
  try {
    const port = join(profile, 'MarionetteActivePort');
    await fileAppears(port, child, 60_000);
    socket = connect(Number(readFileSync(port, 'utf8')), '127.0.0.1');
    const send = await conversation(socket);
    const { capabilities } = await send('WebDriver:NewSession', { capabilities: {} });
    await send('WebDriver:SetTimeouts', { script: 300_000, pageLoad: 60_000 });
    return {
      version: capabilities.browserVersion,
      stop,
      open: async (url) => {
        await send('WebDriver:Navigate', { url });
        await send('WebDriver:ExecuteScript', { script: `(${inPage})()`, args: [] });
      },
      evaluate: async (f, ...args) => {
        const script = `const done = arguments[arguments.length - 1];
          (async (...args) => (${f})(...args))(...Array.prototype.slice.call(arguments, 0, -1))
            .then((value) => done({ value }), (error) => done({ error: String(error?.stack ?? error) }));`;
        const { value } = await send('WebDriver:ExecuteAsyncScript', { script, args });
        if (value.error) throw new Error(value.error);
        return value.value;
      },
    };
  } catch (e) {
    await stop();
    throw e;
  }
}

// Resolves, when Firefox has greeted, to a function that sends a command and gives its result.
function conversation(socket) {
  const waiting = new Map();
  let buffer = Buffer.alloc(0), last = 0;
  const send = (name, params) => new Promise((ok, bad) => {
    const text = JSON.stringify([0, ++last, name, params]);
    waiting.set(last, { ok, bad });
    socket.write(`${Buffer.byteLength(text)}:${text}`);
  });
  return new Promise((greeted, bad) => {
    const lost = (error) => {
      const why = error instanceof Error ? error : new Error('Firefox ended the conversation');
      bad(why);
      for (const w of waiting.values()) w.bad(why);
      waiting.clear();
    };
    socket.on('error', lost);
    socket.on('close', lost);
    socket.on('data', (chunk) => {
      buffer = Buffer.concat([buffer, chunk]);
      for (;;) {
        const colon = buffer.indexOf(':');
        const end = colon + 1 + Number(buffer.subarray(0, Math.max(colon, 0)));
        if (colon < 0 || buffer.length < end) return;
        const message = JSON.parse(buffer.subarray(colon + 1, end));
        buffer = buffer.subarray(end);
        if (!Array.isArray(message)) {
          greeted(send);
          continue;
        }
        const [, id, error, result] = message;
        const w = waiting.get(id);
        waiting.delete(id);
        if (error) w?.bad(new Error(`${error.error}: ${error.message}`));
        else w?.ok(result);
      }
    });
  });
}
