"""How much memory processes hold over time, and whether it grows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import psutil

_MB = 2**20
_LEAST_S = 600
_MOST_MB, _MOST_SHARE = 30.0, 0.1


@dataclass
class Watched:
    """One process: `at`, s since the watch began, and `mb`, its resident memory then."""

    role: str
    at: list[float] = field(default_factory=list)
    mb: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.at[-1] - self.at[0]

    def told(self) -> dict[str, object]:
        """Plain values for a report: how long, how much, and the slope over the last half in MB an hour."""
        half = np.array(self.at) >= self.at[0] + self.seconds / 2
        at, mb = np.array(self.at)[half], np.array(self.mb)[half]
        told: dict[str, object] = {
            "role": self.role,
            "minutes": round(self.seconds / 60, 1),
            "first_mb": round(self.mb[0]),
            "median_mb": round(float(np.median(mb))),
            "peak_mb": round(max(self.mb)),
        }
        if half.sum() > 2:
            slope, offset = np.polyfit(at, mb, 1)
            rest = mb - slope * at - offset
            spread = np.sqrt(np.square(rest).sum() / (half.sum() - 2) / np.square(at - at.mean()).sum())
            told |= {"mb_an_hour": round(slope * 3600, 1), "plus_minus": round(1.96 * spread * 3600, 1)}
            told["grown_mb"] = round(slope * (at[-1] - at[0]), 1)
        return told

    def grows(self) -> bool:
        """Whether it is long enough to tell, and grew by more than is let over its last half."""
        told = self.told()
        grown, most = told.get("grown_mb", 0.0), max(_MOST_MB, _MOST_SHARE * told["median_mb"])
        return self.seconds >= _LEAST_S and grown > most


class Watch:
    """Looks at processes every so often."""

    def __init__(self, every_s: float = 2.0) -> None:
        self._every, self._began, self._last = every_s, time.monotonic(), 0.0
        self._known: dict[tuple[int, float], Watched] = {}

    def look(self, processes: Iterable[tuple[str, psutil.Process | int | None]]) -> None:
        """At these, each by its role, unless it was done just now."""
        now = time.monotonic() - self._began
        if now - self._last < self._every:
            return
        self._last = now
        for role, given in processes:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(given) if isinstance(given, int) else given
                if process is not None and process.status() != psutil.STATUS_ZOMBIE:
                    watched = self._known.setdefault((process.pid, process.create_time()), Watched(role))
                    watched.at.append(now)
                    watched.mb.append(process.memory_info().rss / _MB)

    def longest(self) -> dict[str, Watched]:
        """Of each role the process that was there longest."""
        found: dict[str, Watched] = {}
        for watched in self._known.values():
            if watched.role not in found or watched.seconds > found[watched.role].seconds:
                found[watched.role] = watched
        return found
