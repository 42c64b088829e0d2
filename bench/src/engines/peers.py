"""One peer: SERVER URL own|one CLIENTS SECONDS. Prints a list of nanoseconds: how long each acquire and release took, or,
for one lock that all want, how long from each release until the next client held it."""

import json
import multiprocessing
import sys
import time


def redis_lock(url, name):
    import redis

    client = redis.Redis.from_url(url)
    lock = client.lock("python:" + name, timeout=30)
    return lock.acquire, lock.release


def zookeeper_lock(url, name):
    from kazoo.client import KazooClient

    client = KazooClient(hosts=url.split("//")[1].split("/")[0])
    client.start()
    lock = client.Lock("/kazoo/" + name)
    return lock.acquire, lock.release


def work(server, url, name, seconds, released, ready, results):
    acquire, release = {"redis": redis_lock, "zookeeper": zookeeper_lock}[server](url, name)
    acquire()
    release()
    ready.wait()
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic_ns()
        acquire()
        if released is not None:
            # Whoever holds the lock is alone here; the release follows at once.
            now = time.monotonic_ns()
            if released.value:
                took.append(now - released.value)
            released.value = time.monotonic_ns()
        release()
        if released is None:
            took.append(time.monotonic_ns() - began)
    results.put(took)


def main():
    server, url, which, clients, seconds = sys.argv[1:]
    clients = int(clients)
    released = multiprocessing.Value("q", 0) if which == "one" else None
    ready, results = multiprocessing.Barrier(clients), multiprocessing.Queue()
    names = ["one" if which == "one" else "own-%d" % index for index in range(clients)]
    context = [
        multiprocessing.Process(target=work, args=(server, url, name, float(seconds), released, ready, results))
        for name in names
    ]
    for process in context:
        process.start()
    took = [nanoseconds for _ in context for nanoseconds in results.get()]
    for process in context:
        process.join()
    json.dump(took, sys.stdout)


main()
