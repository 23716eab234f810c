// One block of work by node-redlock. Speaks as src/block.rs says.
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import RedlockModule from 'redlock';

const Redlock = RedlockModule.default ?? RedlockModule;
const TTL = 20_000;

const string = { type: 'string' };
const { values } = parseArgs({
  options: {
    of: string, nodes: string, work: string, tasks: string, seconds: string, 'warm-up': string, threads: string,
  },
});
const tasks = Number(values.tasks);
const seconds = Number(values.seconds);
const pairs = values.work === 'pairs';
if (!pairs && values.work !== 'contended') throw new Error(`no such work: ${values.work}`);

const clients = values.nodes.split(',').map((node) => {
  const [host, port] = node.split(':');
  return new Redis({ host, port: Number(port) });
});
const redlock = new Redlock(clients, { retryCount: -1, retryDelay: 1, retryJitter: 1 });

const start = performance.now() + Number(values['warm-up']) * 1000;
const end = start + seconds * 1000;
const timed = tasks === 1 || !pairs;

async function work(key) {
  let count = 0, total = 0;
  const waits = [];
  for (let before = performance.now(); before < end;) {
    const lock = await redlock.acquire([key], TTL);
    const acquired = performance.now();
    await lock.release();
    const after = performance.now();
    total += 1;
    if (after >= start && after < end) count += 1;
    if (timed && before >= start) waits.push(((pairs ? after : acquired) - before) * 1000);
    before = after;
  }
  return { count, total, waits };
}

async function cpuTime() {
  await sleep(start - performance.now());
  const before = process.cpuUsage();
  await sleep(end - performance.now());
  const { user, system } = process.cpuUsage(before);
  return user + system;
}

const working = Array.from({ length: tasks }, (_, task) => work(pairs ? `node/${task}` : 'node/one'));
const [cpu, ...workers] = await Promise.all([cpuTime(), ...working]);
console.log(JSON.stringify({
  seconds,
  counts: workers.map(({ count }) => count),
  total: workers.reduce((sum, { total }) => sum + total, 0),
  waits_us: workers.flatMap(({ waits }) => waits),
  cpu_us: cpu,
}));
await Promise.all(clients.map((client) => client.quit()));
