"""One block of work by one library in Python: pottery, redis-py. Speaks as src/block.rs says. Both with asyncio."""

import argparse
import asyncio
import json
import time

from pottery import AIORedlock
from redis.asyncio import Redis
from redis.asyncio.lock import Lock

TTL = 20.0


def arguments():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--of", choices=["pottery", "redis-py"], required=True)
    parser.add_argument("--nodes", type=lambda nodes: nodes.split(","), required=True)
    parser.add_argument("--work", choices=["pairs", "contended"], required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--threads", type=int, help="there is one")
    return parser.parse_args()


def lock_maker(order):
    """A lock of this key, by one client of the servers."""
    clients = [Redis.from_url(f"redis://{node}") for node in order.nodes]
    if order.of == "pottery":
        return lambda key: AIORedlock(key=key, masters=set(clients), auto_release_time=TTL)
    # It knows one server, and waits 100 ms between attempts unless it is told otherwise.
    return lambda key: Lock(clients[0], key, timeout=TTL, sleep=0.001)


async def work(lock, order, start, end):
    count, total, waits = 0, 0, []
    before = time.perf_counter()
    while before < end:
        await lock.acquire()
        acquired = time.perf_counter()
        await lock.release()
        after = time.perf_counter()
        total += 1
        if start <= after < end:
            count += 1
        if before >= start and (order.tasks == 1 or order.work == "contended"):
            waits.append(((after if order.work == "pairs" else acquired) - before) * 1e6)
        before = after
    return count, total, waits


async def cpu_time(start, end):
    await asyncio.sleep(start - time.perf_counter())
    before = time.process_time()
    await asyncio.sleep(end - time.perf_counter())
    return (time.process_time() - before) * 1e6


async def main():
    order = arguments()
    make = lock_maker(order)
    start = time.perf_counter() + order.warm_up
    end = start + order.seconds
    names = [f"py/{task}" if order.work == "pairs" else "py/one" for task in range(order.tasks)]
    *workers, cpu_us = await asyncio.gather(
        *(work(make(name), order, start, end) for name in names), cpu_time(start, end)
    )
    print(
        json.dumps(
            {
                "seconds": order.seconds,
                "counts": [count for count, _, _ in workers],
                "total": sum(total for _, total, _ in workers),
                "waits_us": [wait for _, _, waits in workers for wait in waits],
                "cpu_us": cpu_us,
            }
        )
    )


asyncio.run(main())
