"""How far shards are, as Prometheus reads it from a file (node exporter's textfile collector)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from wsi_prep.curation.status import Status
from wsi_prep.storage.atomic import write_atomically

_NUMBERS = {
    "at_work": "1 while a run works, else 0",
    "to_do": "slides that the last call has to do",
    "left": "slides of these that are not done",
    "slides_per_hour": "rate of the call that works",
    "seconds_left": "time left at that rate",
    "bytes_made": "bytes of the stores",
    "bytes_to_come": "bytes that the slides left will need, as those before did",
    "bytes_free": "free bytes of the disk",
}


def write_metrics(statuses: Sequence[Status], file: Path) -> None:
    """Write the gauges of these outputs, each with the label `out`, aside and renamed into place.

    mixmag_slides by `status`, mixmag_tiles by `magnification`, mixmag_stage_seconds by `stage`, mixmag_failed by
    `error_type` (of the most frequent), mixmag_running, the longest in mixmag_running_seconds, and those of _NUMBERS.
    What an output does not tell is left out.
    """
    registry = CollectorRegistry()
    slides = Gauge("mixmag_slides", "slides in the catalog", ["out", "status"], registry=registry)
    tiles = Gauge("mixmag_tiles", "tiles of these slides", ["out", "magnification"], registry=registry)
    stages = Gauge("mixmag_stage_seconds", "time of workers by stage, all slides", ["out", "stage"], registry=registry)
    failed = Gauge("mixmag_failed", "slides that failed", ["out", "error_type"], registry=registry)
    running = Gauge("mixmag_running", "slides that are worked on, at most ROWS", ["out"], registry=registry)
    longest = Gauge("mixmag_running_seconds", "time of the one that takes longest", ["out"], registry=registry)
    gauges = {name: Gauge(f"mixmag_{name}", text, ["out"], registry=registry) for name, text in _NUMBERS.items()}
    for status in statuses:
        for name, count in status.statuses.items():
            slides.labels(status.out, name).set(count)
        for name, count in status.tiles.items():
            tiles.labels(status.out, name).set(count)
        for name, seconds in status.stage_seconds.items():
            stages.labels(status.out, name).set(seconds)
        for failure in status.failures:
            failed.labels(status.out, failure.error_type).set(failure.slides)
        if status.running is not None:
            running.labels(status.out).set(len(status.running))
            longest.labels(status.out).set(max((each.seconds for each in status.running), default=0))
        for name, gauge in gauges.items():
            if (value := getattr(status, name)) is not None:
                gauge.labels(status.out).set(value)
    write_atomically(file, generate_latest(registry))
