"""A soak: rounds of trouble, each with a quiet end at which all must be right."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.soak.crew import Call, Crew
from tests.soak.judge import judge
from tests.soak.memory import Watch
from tests.soak.plan import FAR, LOCAL, WEATHERS, Moment, moments
from tests.soak.slides import POISON
from tests.soak.store import Store
from tests.soak.worlds import World, cohort
from tests.support.dask_processes import kill
from tests.support.paths import ROOT

_QUIET_TRIES = 4
_QUIET_S = 900
_OF_STORE = re.compile(r"cannot be used|cannot be reached|cannot be opened|cannot be read")
_FALSE = re.compile(r"Traceback|^shards: .*(?:damaged|was edited|is missing or outdated)", re.MULTILINE)
"""What no call may say: all files were written by the program itself."""


@dataclass
class Options:
    """How long, with which seed, workers and slides, where."""

    hours: float
    seed: int
    workers: int
    slides: tuple[int, int]
    round_s: float
    folder: Path


@dataclass
class Outcome:
    """What was done, what came of it, and what is wrong."""

    done: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    ends: list[dict[str, object]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    memory: list[dict[str, object]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


class Soak:
    """Use as `Soak(options, crew, store, report).run()`; `report` gets what is known after each round."""

    def __init__(self, options: Options, crew: Crew, store: Store, report: Callable[[Outcome], object]) -> None:
        self.options, self.crew, self.store, self.report = options, crew, store, report
        self.began = time.monotonic()
        self.outcome = Outcome()
        self.watch = Watch()
        counts = dict(zip((LOCAL, FAR), options.slides, strict=True))
        self.worlds = {
            name: World(name, options.folder / name, cohort(options.seed + n, count), store.url)
            for n, (name, count) in enumerate(counts.items())
        }
        self.call: Call | None = None
        self.calls = 0
        self.poisoned = True
        self._plans: list[dict] = []
        self.say(f"{sum(counts.values())} slides are there")

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f}  {text}", flush=True)

    def fault(self, text: str) -> None:
        self.say(f"FAULT  {text}")
        self.outcome.faults.append(text)

    def run(self) -> None:
        """Rounds until the time is up; poison and kills of the oldest worker only in the first half."""
        try:
            self._rounds()
            self._tasks_left()
        except Exception as error:  # what was found until then is still to be told
            traceback.print_exc()
            self.fault(f"broke off: {type(error).__name__}: {error}")
        finally:
            if self.call is not None:
                kill(self.call.process)

    def _rounds(self) -> None:
        ends = self.began + self.options.hours * 3600
        number = 0
        while number == 0 or time.monotonic() + 0.5 * self.options.round_s < ends:
            half = time.monotonic() - self.began > self.options.hours * 1800
            self.poisoned, self.crew.spared = not (half and number), half
            self._storm(number, max(self.options.round_s / 2, min(self.options.round_s, ends - time.monotonic())))
            self._quiet(number)
            number += 1
            self.report(self.told())

    def _storm(self, number: int, seconds: float) -> None:
        began = time.monotonic()
        self.say(f"round {number}: {seconds:.0f} s of trouble{', poison' if self.poisoned else ''}")
        self._plans = self._poison(number)
        self.crew.sabotage(self._plans)
        for moment in moments(self.options.seed, number, seconds):
            while time.monotonic() - began < moment.at:
                self._tick()
            self._do(moment)
        while time.monotonic() - began < seconds:
            self._tick()
        self._end_call(signal.SIGKILL)

    def _tick(self) -> None:
        time.sleep(0.2)
        self.crew.tick()
        seen = [("scheduler", self.crew.dask.scheduler.pid)]
        seen += [("worker", process) for process in self.crew.worker_processes()]
        if self.call is not None:
            seen.append((f"client, {self.call.world.name}", self.call.process.pid))
        self.watch.look(seen)

    def _do(self, moment: Moment) -> None:
        if moment.deed == "call":
            self._begin_call(self.worlds[moment.what], again=moment.share < 0.7)
        elif moment.deed == "end call":
            self._end_call(int(moment.number))
        elif moment.deed == "weather":
            self.say(f"weather: {moment.what}")
            self.store.weather(WEATHERS[moment.what])
        elif moment.deed == "replace":
            self._replace(moment)
        elif moment.deed == "sabotage":
            self._sabotage(moment)
        elif text := self.crew.do(moment.deed, moment.number, moment.share, moment.more):
            self.say(text)

    def _replace(self, moment: Moment) -> None:
        world = self.call.world if self.call is not None else self.worlds[LOCAL]
        slide = world.cohort[int(moment.share * len(world.cohort))]
        if moment.more < 0.1:
            world.relabel(slide)
            self.outcome.done["slides described anew"] += 1
            return
        if slide.kind != "large" or moment.more < 0.3:
            world.replace(slide, moment.what)
            self.outcome.done[f"slides replaced, {moment.what if world.name == LOCAL else 'in the bucket'}"] += 1

    def _sabotage(self, moment: Moment) -> None:
        """Once, to one of the slides that a call has."""
        world = self.call.world if self.call is not None else self.worlds[LOCAL]
        slide = world.cohort[int(moment.share * len(world.cohort))]
        point, deed = moment.what.split()
        oldest = next(iter(self.crew.worker_processes()), None)
        spared = oldest.pid if oldest is not None and self.crew.spared else 0
        mark = f"-{len(self._plans)}-{time.monotonic_ns()}"
        plan = {"slide": slide.name, "at": point, "do": deed, "times": 1, "mark": mark, "spared": spared}
        self._plans.append(plan)
        self.crew.sabotage(self._plans)

    def _poison(self, number: int) -> list[dict]:
        """What slides of poison do in this round, as often as they are tried."""
        slides = [slide for world in self.worlds.values() for slide in world.cohort if slide.kind in POISON]
        names = {slide.name: slide.kind for slide in slides} if self.poisoned else {}
        marked = {"at": "open", "times": 10**6}
        return [{"slide": n, "do": kind, "mark": f"-poison{number}-{n}", **marked} for n, kind in names.items()]

    def _begin_call(self, world: World, *, again: bool) -> None:
        self._end_call(signal.SIGKILL)
        self.calls += 1
        self.say(f"call {self.calls}: {world.name}{', all slides again' if again else ''}")
        self.call = Call(world, self.crew, self.options.folder / f"call-{self.calls:04d}.log", again=again)

    def _end_call(self, number: int) -> None:
        """By a signal. Without one it had the time to end by itself; where it did not, it is killed."""
        call, self.call = self.call, None
        if call is None:
            return
        if number == 0 and call.process.poll() is None:
            number = signal.SIGKILL
        alive = call.process.poll() is None
        try:
            call.end(number)
        except subprocess.TimeoutExpired:
            self.fault(f"hang: {call.log.name} did not end within 60 s of {signal.Signals(number).name}")
        self._judge_end(call, signal.Signals(number).name if alive else "by itself")

    def _judge_end(self, call: Call, how: str) -> None:
        """Its exit code and what it said."""
        code, said = call.process.returncode, call.said()
        self.say(f"{call.log.name} ended {how}: exit code {code}")
        self.outcome.exits[f"{how}: {code}"] += 1
        self.outcome.done["calls"] += 1
        if false := _FALSE.search(said):
            self.fault(f"said: {call.log.name} says {_line_of(said, false.start())!r}")
        if how != "by itself":
            self.outcome.done[f"calls ended by {how}"] += 1
        elif code not in (0, 3) and not (code == 2 and call.world.name == FAR and _OF_STORE.search(said)):
            self.fault(f"ended: {call.log.name} ended by itself with {code}: {said.strip()[-300:]!r}")

    def _quiet(self, number: int) -> None:
        """No more trouble; calls until one ends well; then all must be right."""
        self.store.weather({})
        self._plans = self._poison(number)
        self.crew.sabotage(self._plans)
        self.crew.settle()
        for world in self.worlds.values():
            if self._to_the_end(world):
                self._judge(world, number)

    def _to_the_end(self, world: World) -> bool:
        for _ in range(_QUIET_TRIES):
            self._begin_call(world, again=False)
            call, began = self.call, time.monotonic()
            while call.process.poll() is None and time.monotonic() - began < _QUIET_S:
                self._tick()
            if call.process.poll() is None:
                self.fault(f"hang: the quiet {call.log.name} did not end within {_QUIET_S} s")
                self._end_call(signal.SIGKILL)
                continue
            code, took = call.process.returncode, time.monotonic() - began
            self._end_call(0)
            wanted = 3 if self._fails(world) else 0
            if code == wanted:
                self.outcome.done["quiet calls"] += 1
                self.say(f"quiet {call.log.name} took {took:.0f} s")
                return True
            self.fault(f"quiet: {call.log.name} ended with {code}, not {wanted}: {call.said().strip()[-300:]!r}")
        return False

    def _fails(self, world: World) -> bool:
        return any(slide.verdict(poisoned=self.poisoned)[0] == "failed" for slide in world.cohort)

    def _judge(self, world: World, number: int) -> None:
        out = world.fetched()
        wrong = judge(world, out, poisoned=self.poisoned)
        tiles = sum(len(slide.tiles()) for slide in world.cohort if slide.verdict(poisoned=self.poisoned)[0] == "ok")
        self.say(f"judged {world.name}: {len(world.cohort)} slides, {tiles} tiles, {len(wrong)} faults")
        ended = {
            "round": number,
            "world": world.name,
            "slides": len(world.cohort),
            "tiles": tiles,
            "faults": len(wrong),
        }
        self.outcome.ends.append(ended)
        for text in wrong:
            self.fault(f"round {number}, {world.name}: {text}")
        self._verify(world, number)
        if world.name == FAR and not wrong:
            shutil.rmtree(out)

    def _verify(self, world: World, number: int) -> None:
        words = [sys.executable, "-m", "pipelines.verify", "--shards", world.out, "--workers", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=world.folder)
        if done.returncode:
            said = f"{done.stdout[-600:]}{done.stderr[-300:]}"
            self.fault(f"round {number}, {world.name}: verify ends with {done.returncode}: {said}")

    def told(self) -> Outcome:
        """All until now, with memory and what is left beside the outputs."""
        done = self.outcome.done + self.crew.done
        done["slides that harmed their worker"] = self.crew.sabotaged()
        if self.store.process.poll() is None:
            met = self.store.met()
            done["requests to the store"] = met.pop("requests")
            done.update({f"answers {name}": count for name, count in met.items()})
        faults, longest = list(self.outcome.faults), self.watch.longest().values()
        faults += [
            f"memory: the {watched.role} grew by {watched.told()['grown_mb']} MB over its last half"
            for watched in longest
            if watched.grows()
        ]
        memory = [watched.told() for watched in longest]
        return replace(self.outcome, done=done, faults=faults, memory=memory, leftovers=self._beside())

    def _beside(self) -> list[str]:
        found = []
        for world in self.worlds.values():
            cache = world.folder / "cache"
            left = [path.name for path in cache.iterdir() if path.name != "admission.lock"] if cache.is_dir() else []
            found += [f"{world.name} cache: {name}" for name in left]
        temporary, own = Path(os.environ["TMPDIR"]), f"wsi-prep-{os.getuid()}"
        return found + [f"temporary: {path.name}" for path in temporary.glob("wsi-prep-*") if path.name != own]

    def _tasks_left(self) -> None:
        from distributed import Client

        with Client(self.crew.dask.address, set_as_default=False) as client:
            tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            busy = [name for name, keys in client.processing().items() if keys]
        if tasks or busy:
            self.fault(f"left over: {tasks} tasks on the scheduler, {len(busy)} workers that work for nobody")


def _line_of(text: str, at: int) -> str:
    begin, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    return text[begin : end if end >= 0 else None][:300]
