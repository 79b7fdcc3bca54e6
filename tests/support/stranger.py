"""Somebody else on the machine: gives up its rights, tries every door of a cluster, and prints as JSON what it got.

`python -m tests.support.stranger USER SECRET SECONDS WAY@ADDRESS...`: the number of the user to become (-1: stay who
one is), a file that this user may not read, how long to wait for each answer, and which of WAYS to try at which
ip:port. All is imported before the rights are gone, because they may not suffice to read this checkout.
"""

import asyncio
import http.client
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cryptography.hazmat.primitives.serialization  # noqa: F401
from distributed import Client, Security  # noqa: F401 - Client imports all that a client may need
from distributed.core import connect
from distributed.protocol.pickle import dumps

PAGES = ("/", "/status", "/info/main/workers.html", "/info/main/logs.html", "/json/identity.json", "/json/counts.json")
PAGES += ("/metrics", "/health", "/individual-progress", "/api/v1/get_workers", "/statics/css/base.css")
WAYS = ("plain", "self-made certificate", "no certificate", "pages")


def steal(path):
    """What a stranger would have a cluster do."""
    return Path(path).read_text()


def ways():
    """How to connect: in the clear, and by TLS, with a certificate of one's own and with none."""
    self_made = Security.temporary().get_connection_args("client")
    nameless = {"ssl_context": ssl.create_default_context(), "require_encryption": True}
    for each in (self_made, nameless):
        each["ssl_context"].check_hostname = False
        each["ssl_context"].verify_mode = ssl.CERT_NONE
    return dict(zip(WAYS, (("tcp", {}), ("tls", self_made), ("tls", nameless)), strict=False))


async def enter(way, address, secret, seconds):
    """Say hello, ask who that is, then have it read the secret; how far that went, or None where nobody opened."""
    scheme, arguments = way
    try:
        comm = await asyncio.wait_for(connect(f"{scheme}://{address}", **arguments), seconds)
    except (OSError, ValueError):  # ValueError: it speaks before it is asked, so no TLS
        return None
    try:
        kind = (await asked(comm, seconds, op="identity"))["type"]
        call = {"function": dumps(steal), "args": dumps((secret,)), "kwargs": dumps({}), "wait": True}
        return f"{kind}: {await asked(comm, seconds, op='run_function' if kind == 'Scheduler' else 'run', **call)}"
    except Exception as error:
        return f"went in, then {error!r}"
    finally:
        comm.abort()


async def asked(comm, seconds, **message):
    await comm.write(message)
    return await asyncio.wait_for(comm.read(), seconds)


def pages(address, seconds):
    """Every page that is served there: its name, its status, its beginning."""
    got = {}
    for path in PAGES:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=seconds) as answer:
                got[path] = f"{answer.status} {answer.read(200)!r}"
        except urllib.error.HTTPError as error:
            if error.code != 404:
                got[path] = str(error.code)
        except (OSError, http.client.HTTPException):  # nothing that speaks HTTP
            break
    return got


async def main(user, secret, seconds, tries):
    known = ways()
    if user >= 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    doors = [door.split("@") for door in tries if not door.startswith("pages@")]
    found = await asyncio.gather(*(enter(known[way], address, secret, seconds) for way, address in doors))
    got = {f"{way} {address}": text for (way, address), text in zip(doors, found, strict=True) if text}
    sites = [door.removeprefix("pages@") for door in tries if door.startswith("pages@")]
    with ThreadPoolExecutor(16) as threads:
        for address, shown in zip(sites, threads.map(pages, sites, [seconds] * len(sites)), strict=True):
            got |= {f"page {address}{path}": text for path, text in shown.items()}
    if user >= 0:
        assert not os.access(secret, os.R_OK)
    print(json.dumps(got))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
