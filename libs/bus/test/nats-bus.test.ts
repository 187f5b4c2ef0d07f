// Owns the proof that the real bus keeps the contract, and what only a real server can show.
import { busContract } from './contract.ts';
import { startTestServer } from './server.ts';

busContract('nats bus', async () => {
  const server = await startTestServer();
  return {
    control: () => server.control(),
    host: async (name) => (await server.host(name)).bus,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
});
