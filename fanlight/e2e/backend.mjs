// The platform's backend of the end-to-end tests: calls the control API as grpc-js. Not a test.
// Invariant: no call waits longer than its deadline.

import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const repository = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

/** A gRPC client of one service of the control API: `stream`, `viewer` or `node`. */
export function service(name, addr) {
  const file = `fanlight/control/v1/${name}_service.proto`;
  const definition = loader.loadSync(file, { includeDirs: [join(repository, 'proto')], keepCase: true, enums: String, longs: String });
  const v1 = grpc.loadPackageDefinition(definition).fanlight.control.v1;
  const Service = v1[`${name[0].toUpperCase()}${name.slice(1)}Service`];
  return new Service(addr, grpc.credentials.createInsecure());
}

/** One call, as a promise. */
export function call(client, method, request) {
  return new Promise((ok, bad) => {
    client[method](request, { deadline: Date.now() + 5_000 }, (error, answer) => (error ? bad(error) : ok(answer)));
  });
}

/** Repeats a call that is too early: nodes link and devices are reached on their own time. */
export async function eventually(make) {
  const deadline = Date.now() + 15_000;
  for (;;) {
    try {
      return await make();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((ok) => setTimeout(ok, 100));
    }
  }
}
