"""What is done to a run and when, all of it from the seed."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

LOCAL, FAR = "local", "far"
WORLDS = (LOCAL, FAR)

FAULTS = ("throttled", "cut off", "long", "short", "lost", "slow")
"""How an answer of the object store may go wrong, see store.py."""
WEATHERS: dict[str, dict[str, float]] = {
    "calm": {},
    "throttling": {"throttled": 0.25},
    "cutting": {"cut off": 0.08, "slow": 0.02},
    "lying": {"long": 0.05, "short": 0.05},
    "losing": {"lost": 0.04, "slow": 0.02},
    "all of it": {"throttled": 0.08, "cut off": 0.03, "long": 0.02, "short": 0.02, "lost": 0.02, "slow": 0.01},
}
"""The share of requests that each fault meets."""

_ENDS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, None)
_SABOTAGE = (("open", "die"), ("tile", "die"), ("tiles", "die"), ("row", "die"), ("tile", "eat"), ("tile", "hang"))


@dataclass(frozen=True)
class Moment:
    """Something to do, `at` seconds after a round began.

    `share` and `more`, 0 to 1, choose among what is there then.
    """

    at: float
    deed: str
    what: str = ""
    number: float = 0.0
    share: float = 0.0
    more: float = 0.0


def moments(seed: int, number: int, seconds: float) -> list[Moment]:
    """All of a round's moments in order."""
    rng = random.Random(f"{seed} {number}")
    made = [*_clients(rng, seconds), *_weathers(rng, seconds), *_workers(rng, seconds), *_slides(rng, seconds)]
    return sorted(made, key=lambda moment: moment.at)


def _clients(rng: random.Random, seconds: float) -> Iterator[Moment]:
    """Calls, one after the other; `number` is the signal that ends each, 0 for none."""
    at, turn = 0.0, 0
    while at < seconds - 8:
        life = min(rng.choice((12, 25, 45, 80, 120)) * rng.uniform(0.7, 1.2), seconds - at)
        world = WORLDS[turn % 2] if rng.random() < 0.8 else rng.choice(WORLDS)
        yield Moment(at, "call", world, share=rng.random(), more=rng.random())
        ended = rng.choice(_ENDS)
        yield Moment(at + life, "end call", number=ended or 0)
        at, turn = at + life + 0.5, turn + 1


def _weathers(rng: random.Random, seconds: float) -> Iterator[Moment]:
    at = 0.0
    while at < seconds:
        yield Moment(at, "weather", rng.choice(list(WEATHERS)))
        at += rng.uniform(8, 25)


def _workers(rng: random.Random, seconds: float) -> Iterator[Moment]:
    at = rng.uniform(5, 10)
    while at < seconds:
        deed = rng.choice(
            ("kill worker",) * 3 + ("kill machine", "stop worker", "stop worker", "leave", "join for a time")
        )
        yield Moment(at, deed, number=rng.choice((3, 8, 15, 30)), share=rng.random(), more=rng.uniform(1, 6))
        at += rng.expovariate(1 / 11)


def _slides(rng: random.Random, seconds: float) -> Iterator[Moment]:
    at = rng.uniform(2, 4)
    while at < seconds:
        how = rng.choice(("renamed", "renamed", "in place"))
        yield Moment(at, "replace", how, share=rng.random(), more=rng.random())
        at += rng.expovariate(1 / 3)
    at = rng.uniform(6, 12)
    while at < seconds:
        point, deed = rng.choice(_SABOTAGE)
        yield Moment(at, "sabotage", f"{point} {deed}", share=rng.random(), more=rng.random())
        at += rng.expovariate(1 / 15)
