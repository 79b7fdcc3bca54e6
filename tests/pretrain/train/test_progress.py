"""What a person sees of a run: lines in a log, and a bar of its steps on a terminal, with the same numbers."""

import re

import pytest

from pretrain.train.metrics import read_metrics
from tests.support.terminals import shown, terminal
from tests.support.training import make_shards, run

pytestmark = pytest.mark.slow


def test_a_terminal_shows_a_bar_of_the_steps_with_the_numbers_of_the_lines(tmp_path, monkeypatch):
    shards = make_shards(tmp_path / "shards")
    with terminal(monkeypatch) as written:
        assert run(shards, tmp_path / "run", "schedule.steps=4") == 0
    lines = shown(written)
    bars = [line for line in lines if line.startswith("steps ")]
    assert re.search(r"━ 0/4$", bars[0])
    rows = read_metrics(tmp_path / "run")
    for row in rows:
        assert any(f"step {row['step']:>6}  loss {row['loss']:.3f} " in line for line in lines)
    numbers = [f"loss {row['loss']:.3f}  {row['tiles_per_s']:.1f} tiles/s  left " for row in rows]
    assert all(any(of in line for of in numbers) for line in bars if "loss" in line)  # drawn ten times a second
    assert bars[-1].endswith(f"━ 4/4 {numbers[-1]}0:00:00")
    assert [line for line in lines if line.startswith("index ")][-1].split()[2] == "3/3"
    first = next(n for n, line in enumerate(lines) if line.startswith("steps "))
    assert not any(line.startswith("index ") for line in lines[first:])


def test_a_log_has_lines_alone(tmp_path, capsys):
    assert run(make_shards(tmp_path / "shards"), tmp_path / "run", "schedule.steps=3") == 0
    out = capsys.readouterr().out
    steps = [line for line in out.splitlines() if line.startswith("step ") and "loss" in line]
    left = [re.search(r"left (\d+:\d\d:\d\d)$", line)[1] for line in steps]
    rows = read_metrics(tmp_path / "run")
    expected = [(3 - row["step"] - 1) * row["step_s"] for row in rows]
    seconds = [sum(int(n) * 60**at for at, n in enumerate(reversed(clock.split(":")))) for clock in left]
    assert seconds == [int(value) for value in expected]
    assert "━" not in out
    assert "\x1b" not in out
