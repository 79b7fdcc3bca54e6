"""Runs at any um/px."""

import json

import pyarrow.dataset as ds
import pytest
import torch

from pipelines.embed import main as embed
from pipelines.export import main as export
from pretrain.model.normalise import normalise
from pretrain.train.runs import load_model, untrained
from tests.support.shard_folders import grey
from tests.support.training import close_to, losses, make_shards, run, train_together

ANY = ("sampling.any_mpp=true", "sampling.density=0.6:1,1.3:2", "sampling.batch=4")
TOLD = (*ANY, "backbone.mpp_token=true", "backbone.layer_scale=0", "schedule.rate=0.05", "schedule.warmup=0")


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


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run that is told um/px, and its shards."""
    folder = tmp_path_factory.mktemp("told")
    shards = make_shards(folder / "shards")
    assert run(shards, folder / "run", *TOLD) == 0
    return shards, folder / "run"


@pytest.mark.slow
def test_a_run_that_is_told_um_per_px_learns_from_them_and_goes_on_to_the_bit(told, tmp_path):
    shards, whole = told
    assert run(shards, tmp_path / "parts", *TOLD, stop_at=5) == 0
    assert run(shards, tmp_path / "parts", *TOLD) == 0
    assert losses(tmp_path / "parts") == losses(whole)
    began, learnt = untrained(whole), load_model(whole)
    assert not torch.equal(began.mpp_token.second.bias, learnt.mpp_token.second.bias)
    assert run(shards, tmp_path / "plain", *TOLD, "backbone.mpp_token=false", stop_at=1) == 0
    assert losses(tmp_path / "plain")[0] != losses(whole)[0]


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_that_are_told_do_what_one_does(told, tmp_path, parallel):
    shards, whole = told
    train_together(shards, tmp_path / "run", *TOLD, f"compute.parallel={parallel}")
    close_to(tmp_path / "run", whole)


@pytest.mark.slow
def test_features_are_those_at_the_tiles_um_per_px(told, tmp_path):
    shards, folder = told
    assert embed(["--shards", str(shards), "--model", str(folder), "--to", str(tmp_path / "to"), "--threads", "1"]) == 0
    backbone = load_model(folder).eval()
    for row in ds.dataset(tmp_path / "to/parquet").to_table().to_pylist()[::9]:
        slide = int(row["slide_id"].split("-")[0].removeprefix("slide"))
        shade = grey(slide, row["magnification"], row["row"] * 4 + row["col"]) / 255
        tile, found = normalise(torch.full((1, 3, 392, 392), shade)), torch.tensor(row["features"])
        with torch.no_grad():
            at = {mpp: backbone([tile], mpp=[torch.tensor([mpp])])[0].embedding[0] for mpp in (0.5, 1.0)}
        own, other = (at[mpp] for mpp in ((0.5, 1.0) if row["magnification"] == "20x" else (1.0, 0.5)))
        assert (found - own).norm() < 0.2 * (found - other).norm()


@pytest.mark.slow
def test_what_timm_cannot_express_is_not_exported(told, tmp_path, capsys):
    assert export(["--run", str(told[1]), "--to", str(tmp_path / "to")]) == 2
    assert "timm's ViT takes no um/px" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "to").exists()
