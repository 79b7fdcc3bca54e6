"""One broken slide at a time through `find_slides` and `prepare_slide`, in a process that is watched."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from wsi_prep import errors
from wsi_prep.compute.jobs import WorkerDied
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.errors import UsageError
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import STATUSES
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.pyramid.resample import area_resample, resample_planes
from wsi_prep.stain.classify import classify_stain
from wsi_prep.storage.base import LOCK
from wsi_prep.tiles.quality import measure_tile
from wsi_prep.tissue.background_model import BackgroundModel

cv2.setNumThreads(1)  # a pool of threads does not survive a fork

Told = dict[str, list[str]]
Work = Callable[[Path, Path, float, Told], None]
"""Takes the slide, OUT and the time limit, and adds what it finds."""

_GRACE_S = 8.0
_POLL_S = 0.02
_MOST_BYTES = 4 * 2**30
"""What a case may ask for at all: a guard of the machine, beyond the limit that is judged by."""

_OURS = {name for name in vars(errors) if name[0].isupper()} | {WorkerDied.__name__}
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_NEVER = ("subprocess.Popen", "os.system", "socket.connect", "os.exec", "os.posix_spawn")


@dataclass
class Outcome:
    """How a case went.

    `said`: errors and warnings of its rows. `faults` in words: a hang, too much memory, a write outside of OUT, a bad
    row, an exception. A process that `died` of a signal breaks no rule, since in a run it becomes a failed row
    (WorkerDied), but it is worth a look.
    """

    statuses: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    hung_at: list[tuple[str, str]] = field(default_factory=list)
    died: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: float = 0.0


def warm_up() -> None:
    """Import and compile what every case needs, once, before processes are split off."""
    import pydicom  # noqa: F401

    area_resample(np.zeros((8, 8, 3), np.uint8), np.arange(2.0), np.arange(2.0), 1.5, 1.5)
    resample_planes([np.zeros((8, 8), np.uint8)], np.arange(2.0), np.arange(2.0), 1.5, 1.5)
    measure_tile(np.zeros((TILE_PX, TILE_PX, 3), np.uint8))
    classify_stain(
        np.full((64, 64, 3), 120, np.uint8),
        np.ones((64, 64), bool),
        BackgroundModel.of(np.full((64, 64, 3), 240, np.uint8)),
    )


def run_case(path: Path, out: Path, limit_s: float, limit_mb: float, work: Work | None = None) -> Outcome:
    """Prepare the slide at `path` in a child process, into `out`, which is made and removed; or do `work` there."""
    for name in ("catalog/slides", "catalog/tiles"):
        (out / name).mkdir(parents=True)
    (out / LOCK).write_text("fuzz")
    before = _listing(path.parent.parent, out)
    reading, writing = os.pipe()
    started = time.monotonic()
    held_mb = _held_mb("self")  # which the child has from the start
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(path, out, limit_s, writing, work or _prepare)
    os.close(writing)
    outcome = Outcome()
    status = _watch(child, started, limit_s, limit_mb + held_mb, outcome)
    outcome.peak_mb = max(0.0, outcome.peak_mb - held_mb)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    outcome.seconds = time.monotonic() - started
    if outcome.peak_mb > limit_mb:
        outcome.faults.append(f"memory: {outcome.peak_mb:.0f} MB")
    _judge(outcome, status, said, out)
    if _listing(path.parent.parent, out) != before:
        outcome.faults.append("escaped: files beside OUT were changed")
    shutil.rmtree(out)
    return outcome


def _listing(root: Path, out: Path) -> dict[str, int]:
    paths = (p for p in root.rglob("*") if not p.is_relative_to(out))
    return {str(p): p.lstat().st_size for p in paths if not p.is_dir()}


def _held_mb(process: int | str) -> float:
    """Memory of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0


def _watch(child: int, started: float, limit_s: float, limit_mb: float, outcome: Outcome) -> int:
    """Wait for the child, and kill it past a limit; returns its wait status."""
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            outcome.peak_mb = max(outcome.peak_mb, usage.ru_maxrss / 1024)
            return status
        outcome.peak_mb = max(outcome.peak_mb, _held_mb(child))
        late = time.monotonic() - started > limit_s + _GRACE_S
        if late:
            outcome.faults.append(f"hang: still there after {limit_s + _GRACE_S:.0f} s")
        if late or outcome.peak_mb > limit_mb:
            os.kill(child, signal.SIGKILL)
            _, status, _ = os.wait4(child, 0)
            return status
        time.sleep(_POLL_S)


def _judge(outcome: Outcome, status: int, said: bytes, out: Path) -> None:
    if said:
        told = json.loads(said)
        outcome.statuses, outcome.kinds, outcome.said = told["statuses"], told["kinds"], told["said"]
        outcome.faults += told["faults"]
    elif traces := [file.read_text() for file in (out / ".staging").glob("*.hung") if file.stat().st_size]:
        outcome.statuses, outcome.kinds = ["failed"], ["TimedOut"]
        outcome.hung_at = re.findall(r"([^/]+\.py)\", line (\d+) in", traces[0])
    elif not outcome.faults:
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        outcome.statuses, outcome.kinds, outcome.died = ["failed"], ["WorkerDied"], how


def _child(path: Path, out: Path, limit_s: float, pipe: int, work: Work) -> None:
    """Never returns. What it finds goes through the pipe as JSON."""
    told: Told = {"statuses": [], "kinds": [], "said": [], "faults": []}
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
        sys.addaudithook(_guard(out, told["faults"]))
        work(path, out, limit_s, told)
    except BaseException as error:
        told["faults"].append(f"raised: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
        os.write(pipe, json.dumps(told).encode())
        os._exit(0)


def _prepare(path: Path, out: Path, limit_s: float, told: Told) -> None:
    prepare(path, out, limit_s, told, PrepareSettings())


def prepare(path: Path, out: Path, limit_s: float, told: Told, settings: PrepareSettings) -> list[dict]:
    """The slides at `path` as `make shards` makes them; returns their rows and adds to `told` what breaks a rule."""
    try:
        sources = find_slides(str(path))
    except UsageError as error:
        told["statuses"].append("refused")
        told["kinds"].append(type(error).__name__)
        return []
    rows = []
    for source in sources:
        row = prepare_slide(SlideTask(source, EMPTY_ROW, None, settings, str(out), "fuzz", limit_s))
        told["statuses"].append(row["status"])
        told["kinds"].append(row["error_type"] or "")
        told["said"] += [text for text in (row["error"], row["warning"]) if text]
        told["faults"] += _row_faults(row)
        report = check_slide(SlideCheck(str(out), row, f"{source.slide_id}.parquet"))
        told["faults"] += [f"unsound: {fault.kind}: {fault.what}" for fault in report.faults]
        rows.append(row)
    return rows


def _row_faults(row: dict) -> list[str]:
    text = row["error"] or ""
    found = []
    if row["status"] not in STATUSES or (row["status"] in ("failed", "excluded") and not text):
        found.append(f"row: {row['status']} without a reason")
    if not text.isprintable() or len(text) > 500 or "Traceback" in text:
        found.append(f"row: not one plain line: {text[:100]!r}")
    if row["error_type"] and row["error_type"] not in _OURS:
        found.append(f"unnamed: {row['error_type']}: {text}")
    return found


def _guard(out: Path, faults: list[str]):
    """An audit hook that notes whatever is written outside of `out`, and every other process or connection."""
    inside = f"{out}{os.sep}"

    def hook(event: str, arguments: tuple) -> None:
        if event in _NEVER:
            faults.append(f"escaped: {event} {str(arguments)[:100]}")
        elif event in _WRITES or (event == "open" and _is_write(arguments)):
            count = 2 if event in ("os.rename", "os.link", "os.symlink") else 1
            for path in arguments[:count]:
                name = _full(path, arguments[-1] if event in ("os.remove", "os.rmdir") else -1)
                if name and name != os.devnull and not f"{name}{os.sep}".startswith(inside):
                    faults.append(f"escaped: {event} {name[:200]}")

    return hook


def _full(path: object, folder: int) -> str:
    """The real path behind what an audit event names, relative to the open `folder` if there is one."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return ""
    name = os.fsdecode(path)
    base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path()
    return os.path.realpath(base / name)


def _is_write(arguments: tuple) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
