"""What a run says of itself: metrics.jsonl with units in the keys, TensorBoard, and a line on the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pretrain.compute.plain_files import json_lines
from wsi_prep.storage.atomic import write_atomically
from wsi_prep.untrusted.below import read_below

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Sent:
    step: int
    names: tuple[str, ...]
    values: Tensor
    arrived: torch.cuda.Event | None


class Deferred:
    """Numbers of past steps on their way from the device, read when they are there, so that no step waits for them.

    On the host they lag the device by at most `lag` steps.
    """

    def __init__(self, lag: int = 1) -> None:
        self._lag = lag
        self._sent: deque[_Sent] = deque()

    def put(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Send single numbers on their way."""
        packed = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        arrived = None
        if packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            packed = host.copy_(packed, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._sent.append(_Sent(step, tuple(values), packed, arrived))

    def take(self, everything: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, numbers) of the steps older than the lag, in order; waits only for these."""
        while self._sent and (everything or len(self._sent) > self._lag):
            sent = self._sent.popleft()
            if sent.arrived is not None:
                sent.arrived.synchronize()
            yield sent.step, dict(zip(sent.names, sent.values.tolist(), strict=True))


class Clock:
    """Rates since they were last asked for."""

    def __init__(self) -> None:
        self._last = {"tiles_per_s": 0.0, "step_s": 1e-9, "data_wait_share": 0.0}
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = self._tiles = 0

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time until each comes counts as waiting for data."""
        while True:
            asked = time.perf_counter()
            item = next(items, None)
            self._waited += time.perf_counter() - asked
            if item is None:
                return
            yield item

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside does not count."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def stepped(self, tiles: int) -> None:
        """A step of so many tiles is done."""
        self._steps += 1
        self._tiles += tiles

    def rates(self) -> dict[str, float]:
        """Per second of wall time since the last call, and start anew; the last ones where no step was done since."""
        if not self._steps:
            return self._last
        seconds = max(time.perf_counter() - self._began, 1e-9)
        self._last = {
            "tiles_per_s": self._tiles / seconds,
            "step_s": seconds / self._steps,
            "data_wait_share": self._waited / seconds,
        }
        self.start()
        return self._last


_MOST_BYTES, _LONGEST_NAME, _LARGEST = 256 << 20, 200, 1e100


class MetricsLog:
    """RUN/metrics.jsonl and RUN/tensorboard. A run that goes on from step n drops the lines from n on first."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - only the first process writes

        self._file = folder / "metrics.jsonl"
        with contextlib.suppress(FileNotFoundError):
            before = read_below(folder, self._file.name, _MOST_BYTES).decode(errors="replace")
            lines = [line for line in before.splitlines() if _step(line) < start]
            write_atomically(self._file, "".join(f"{line}\n" for line in lines).encode())
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """One line; numbers that are not finite become null."""
        row = {name: _plain(value) for name, value in values.items()}
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl: a step, and numbers by name, None where one was not finite.

    ValueError where it holds anything else, OSError where it cannot be read.
    """
    rows = list(json_lines(folder / "metrics.jsonl", _MOST_BYTES))
    for row in rows:
        if not isinstance(row, dict) or type(row.get("step")) is not int or not all(map(_is_figure, row.items())):
            raise ValueError("a line of metrics.jsonl holds no step with numbers by name")
    return rows


def _is_figure(item: tuple[str, Any]) -> bool:
    name, value = item
    number = value is None or (type(value) in (int, float) and abs(value) <= _LARGEST)
    return name.isprintable() and len(name) <= _LONGEST_NAME and number


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):  # a line cut off by a kill
        return math.inf


def _plain(value: float | None) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
