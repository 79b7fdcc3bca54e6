"""The jobs of docs/slurm on a real SLURM: training on two nodes that is preempted, and features by an array."""

import socket

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipelines.embed import main as embed
from tests.support.dask_processes import wait_until
from tests.support.training import TINY, close_to, losses, make_shards, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


LONG = "schedule.steps=120"


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run(shards, folder, LONG) == 0
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def pretraining(slurm, shards, tmp_path):
    """Submits docs/slurm/pretrain.sbatch on both nodes, and waits until it has trained some steps; its number."""

    def submit(*options):
        more = f"--index {tmp_path / 'index'} --set {' '.join([*TINY, LONG])}"
        told = {"SHARDS": shards, "RUN": tmp_path / "run", "RECIPE": "debug", "HEAD": f"127.0.0.1:{free_port()}"}
        number = slurm.submit("pretrain.sbatch", tmp_path, *options, MORE=more, **told)
        began = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: began.exists() and len(losses(began.parent)) > 7, seconds=200, every=0.1)
        return number

    return submit


def goes_on(slurm, number, folder, unbroken):
    """It is started again, once, and ends with the losses of a run that nobody disturbed; no step is computed twice."""
    slurm.at_once(number)
    wait_until(lambda: slurm.state(number) == "COMPLETED", seconds=250, every=0.5)
    assert slurm.about(number)["Restarts"] == "1"
    close_to(folder / "run", unbroken)
    said = (folder / f"slurm-{number}.out").read_text()
    assert "stopping after this step, then saving" in said
    steps = [line.split()[1] for line in said.splitlines() if line.startswith("step ") and "loss" in line]
    assert len(steps) == len(set(steps)), "a step was lost with its checkpoint, and computed again"


def test_a_preempted_training_is_queued_again_and_goes_on_to_the_same_losses(slurm, pretraining, unbroken, tmp_path):
    number = pretraining()
    urgent = slurm.submit_line("true", tmp_path, "--partition=urgent", "--nodes=2", "--exclusive")
    wait_until(lambda: slurm.state(urgent) == "COMPLETED", seconds=100, every=0.2)
    goes_on(slurm, number, tmp_path, unbroken)


def test_a_training_whose_time_is_nearly_over_saves_and_queues_itself_again(slurm, pretraining, unbroken, tmp_path):
    number = pretraining()
    slurm.ask("scancel", "--signal=TERM", number)  # as --signal=TERM@300 does five minutes before its end
    goes_on(slurm, number, tmp_path, unbroken)


def test_an_array_computes_each_slides_features_once(slurm, shards, tmp_path):
    assert run(shards, tmp_path / "model", "schedule.steps=2") == 0
    told = {"SHARDS": shards, "MODEL": tmp_path / "model", "TO": tmp_path / "to"}
    number = slurm.submit("embed.sbatch", tmp_path, "--array=0-1", MORE="--threads 1", **told)
    tasks = [f"{number}_{task}" for task in (0, 1)]
    wait_until(lambda: {slurm.state(task) for task in tasks} == {"COMPLETED"}, seconds=200, every=0.5)
    assert embed(["--shards", str(shards), "--model", str(tmp_path / "model"), "--to", str(tmp_path / "all")]) == 0
    found, expected = (
        ds.dataset(sorted(tmp_path.glob(pattern))).to_table().sort_by([(name, "ascending") for name in KEYS])
        for pattern in ("to/*/parquet/*.parquet", "all/parquet/*.parquet")
    )
    assert found.select(KEYS) == expected.select(KEYS)
    of = (np.stack(table["features"].to_numpy()) for table in (found, expected))
    np.testing.assert_allclose(*of, atol=1e-5)
    assert len(list(tmp_path.glob("to/*/features.json"))) == 2


KEYS = ["slide_id", "magnification", "row", "col"]
