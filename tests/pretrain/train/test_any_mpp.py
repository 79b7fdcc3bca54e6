"""Runs at any um/px."""

import json

import pytest

from tests.support.training import losses, make_shards, run

ANY = ("sampling.any_mpp=true", "sampling.density=0.6:1,1.3:2", "sampling.batch=4")


@pytest.mark.slow
def test_a_run_at_any_um_per_px_goes_on_to_the_bit_and_old_runs_are_refused_the_change(tmp_path, capsys):
    shards = make_shards(tmp_path / "shards")
    assert run(shards, tmp_path / "whole", *ANY) == 0
    assert run(shards, tmp_path / "parts", *ANY, stop_at=5) == 0
    assert run(shards, tmp_path / "parts", *ANY) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 8
    drawn = json.loads((tmp_path / "parts/drawn.json").read_text())
    assert sum(row["drawn"] for row in drawn) == 32
    capsys.readouterr()
    assert run(shards, tmp_path / "whole", *ANY, "sampling.any_mpp=false", "sampling.density=") == 2
    assert "sampling.any_mpp: True -> False" in " ".join(capsys.readouterr().err.split())
