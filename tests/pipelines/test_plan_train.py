"""`plan-train`: what it says, what it writes, and the same check before a run."""

import json
import typing

import pytest

from pipelines import train as train_command
from pipelines.calls.training import PlanTrainCall
from pipelines.plan_train import main
from pretrain.model.network import Network
from pretrain.train.planning import plan as planning
from pretrain.train.planning import preflight, simulate
from pretrain.train.planning.gpus import GPUS
from pretrain.train.planning.simulate import Simulated
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import recipe
from tests.support.paths import ROOT
from tests.support.terminals import shown, terminal
from tests.support.training import TINY, make_shards, run
from wsi_prep.errors import BadOption

PLAIN = ["views.colour.jitter=0", "views.colour.grayscale=0", "views.colour.blur=0,0,0"]  # operations of no interest


def plan(*words, changes=()):
    return main(["--recipe", "debug", *words, "--set", *TINY, *PLAIN, *changes])


@pytest.mark.slow
def test_one_plan_is_told_in_full(tmp_path, capsys):
    assert plan("--gpus", "2", "--gpu", "l4", "--price", "3", "--to", str(tmp_path / "plan.json")) == 0
    out = capsys.readouterr().out
    assert "debug on 2 x l4, by simulation of a step: batch 8, 4 tiles a GPU, ddp, recompute none, accumulate 1" in out
    (told,) = json.loads((tmp_path / "plan.json").read_text())
    assert told["asked"] == told["fits"]
    made = told["asked"]
    assert sum(made["at_rest_bytes"].values()) < sum(made["at_peak_bytes"].values()) < made["needed_gb"] * 1e9
    assert made["days"] == pytest.approx(8 * made["step_s"]["step"] / 86400)
    assert made["cost"] == pytest.approx(3 * made["gpu_hours"]) == pytest.approx(3 * 2 * 24 * made["days"])
    for words in ("parameters", "EMA model", "optimizer", "crops", "it fits", "cores to load", "  PRICE=3: "):
        assert words in out


@pytest.fixture
def made_up(monkeypatch):
    """Steps that hold 40 GB, and 20 GB where all is computed again; none is simulated."""

    def step(recipe, _processes):
        held = {"activations": (20 if recipe.compute.recompute == "full" else 40) * 10**9}
        return Simulated({"parameters": 10**9}, {"losses": held}, {}, {}, 0, 0.5)

    monkeypatch.setattr(planning, "simulate", step)
    monkeypatch.setattr(preflight, "simulate", step)


@pytest.mark.usefixtures("made_up")
def test_what_does_not_fit_is_told_with_what_does(tmp_path, capsys):
    words = ["--gpus", "2", "--gpu", "a100-40", "--to", str(tmp_path / "plan.json")]
    assert plan(*words) == 3
    out = capsys.readouterr().out
    assert "CUDA and NCCL it needs 46.0 of 40 GB: it does not fit\nthe nearest settings that do: SET=" in out
    assert 'do: SET="compute.recompute=full", 24.5 GB at 4 tiles a GPU. With these:' in out
    (told,) = json.loads((tmp_path / "plan.json").read_text())
    assert (told["asked"]["fits"], told["fits"]["fits"], told["fits"]["recompute"]) == (False, True, "full")
    assert plan(*words, "--reserved-gb", "30") == 3
    assert "it does not fit, with no recomputation, shards or accumulation\ntake more GPUs" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())[0]["fits"] is None


@pytest.mark.usefixtures("made_up")
def test_memory_of_the_host_and_what_is_not_read_are_told(tmp_path, capsys):
    erase = ("guide.stain=-1", "saving.erase_tiles=1000", "start_from=/nowhere/weights")
    words = ["--gpus", "2", "--gpu", "h100", "--to", str(tmp_path / "plan.json")]
    made = changed(recipe("debug"), TINY)
    made_network = Network.with_heads(made.backbone, made.objective.head)
    for parallel, more, whole in (("ddp", erase, True), ("fsdp", erase, True), ("fsdp", (), False)):
        assert plan(*words, changes=(*more, f"compute.parallel={parallel}")) == 0
        out = " ".join(capsys.readouterr().out.split())
        (told,) = json.loads((tmp_path / "plan.json").read_text())
        numbers = sum(each.numel() for each in made_network.parameters())
        assert told["asked"]["host_start_bytes"] == pytest.approx(2 * 4 * numbers if whole else 0, rel=0.03)
        tokens = 1 + (392 // 14) ** 2
        assert told["asked"]["host_erasing_bytes"] == (1000 * tokens * 32 * 4 if more else 0)
        assert ("of the first process at each checkpoint, to erase fields over 1,000 tiles" in out) == bool(more)
        assert ("start_from /nowhere/weights is not read" in out) == bool(more)


@pytest.mark.usefixtures("made_up")
def test_several_numbers_make_a_table(capsys):
    assert plan("--gpus", "1", "2", "--gpu", "h100") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["GPUs", "---", "1", "2"]
    assert {row.count("|") for row in rows} == {9}


@pytest.mark.usefixtures("made_up")
def test_a_terminal_shows_what_is_simulated(monkeypatch):
    with terminal(monkeypatch) as written:
        assert plan("--gpus", "2", "--gpu", "a100-40") == 3
    lines = [line for line in shown(written) if line.startswith("simulation ")]
    assert any(line.startswith("simulation 1: 2 GPUs, ddp, recompute none, accumulate 1 ") for line in lines)
    assert any(line.startswith("simulation 2: 2 GPUs, fsdp, recompute full, accumulate 4 ") for line in lines)


@pytest.fixture
def later_more(monkeypatch):
    """Steps that hold 10 GB, and 40 GB with crops of 84 px or 20 GB where all is computed again."""

    def step(recipe, _processes):
        large = recipe.views.crops.global_px == 84
        held = (20 if recipe.compute.recompute == "full" else 40) if large else 10
        return Simulated({"parameters": 10**9}, {"losses": {"activations": held * 10**9}}, {}, {}, 0, 0.5)

    monkeypatch.setattr(planning, "simulate", step)
    monkeypatch.setattr(preflight, "simulate", step)


STAGES = ("stages.4.views.crops.global_px=84", "stages.6.sampling.batch=16", "stages.6.views.crops.global_px=56")


@pytest.mark.usefixtures("later_more")
def test_the_peak_of_a_run_with_stages_is_that_of_the_largest(tmp_path, capsys):
    assert plan("--gpus", "2", "--gpu", "h100", "--to", str(tmp_path / "plan.json"), changes=STAGES) == 0
    out = capsys.readouterr().out
    assert "by simulation of a step from 6 on: batch 16, 8 tiles a GPU" in out
    assert "all stages: the peak is from step 4 on, 46.0 of 80 GB: it fits\nall stages: 0.0 days" in out
    told = [each["asked"] for each in json.loads((tmp_path / "plan.json").read_text())]
    assert [(each["from_step"], each["steps"], each["batch"]) for each in told] == [(0, 4, 8), (4, 2, 8), (6, 2, 16)]
    assert plan("--gpus", "2", "--gpu", "a100-40", changes=STAGES) == 3
    out = capsys.readouterr().out
    assert 'the nearest settings that do: SET="stages.4.compute.recompute=full", 24.5 GB' in out
    assert "the peak is from step 4 on, 46.0 of 40 GB: it does not fit" in out
    assert plan("--gpus", "1", "2", "--gpu", "h100", changes=STAGES) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == [f"{gpus}{at}" for gpus in (1, 2) for at in ("", ", from step 4", ", from step 6")]


@pytest.mark.usefixtures("later_more")
def test_a_stage_that_cannot_fit_is_refused_before_the_run_begins():
    asked = changed(recipe("debug"), [*TINY, *STAGES])
    with pytest.raises(BadOption, match=r"a step from 4 on holds 40 GB .* SET=.stages.4.compute.recompute=full. fits"):
        preflight.require_fit(asked, 1, 30 * 10**9)
    assert preflight.require_fit(asked, 1, 80 * 10**9) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h10"], "GPU 'h10' is not in the table; did you mean h100?"),
        (["--gpus", "0"], "GPUS=0 is no number of GPUs"),
        (["--gpus", "3"], "a batch of 8 does not divide by 3 processes times 1 parts"),
        (["--matrix", "2"], "matrix 2 is a share, from 0 to 1"),
    ],
)
def test_a_wrong_call_is_one_line(words, said, capsys):
    assert plan(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_error_that_nobody_foresaw_is_one_line_and_no_plan(monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise RuntimeError("an operator has no shapes\nmore of it")

    monkeypatch.setattr(simulate, "simulate_whole", broken)
    assert plan("--to", str(tmp_path / "plan.json")) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(
        "plan-train: the simulation of a step failed (an operator has no shapes), so there is no plan"
    )
    assert "may be a fault of ours" in line
    assert not out
    assert not (tmp_path / "plan.json").exists()


def test_a_batch_of_a_stage_that_does_not_divide_is_refused_before_any_simulation(monkeypatch, capsys):
    monkeypatch.setattr(simulate, "simulate_whole", lambda *_: pytest.fail("simulated"))
    assert plan("--gpus", "2", changes=["stages.4.sampling.batch=15"]) == 2
    said = "from step 4 on: a batch of 15 does not divide by 2 processes times 1 parts; change sampling.batch, "
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("made_up")
def test_a_plan_of_a_student_says_that_it_has_no_teacher(capsys):
    words = ["--recipe", "virchow2g_mini", "--gpus", "2", "--set", *TINY, *PLAIN]
    assert main(words) == 0
    assert "virchow2g_mini is the recipe of a student, and there is no teacher" in capsys.readouterr().out
    assert plan("--gpus", "2") == 0
    assert "no teacher" not in capsys.readouterr().out


def test_the_help_names_every_gpu():
    text = (ROOT / "pipelines/calls/training.py").read_text()
    assert f'"""Their kind: {", ".join(GPUS)}."""' in text
    assert typing.get_type_hints(PlanTrainCall)["gpus"] == tuple[int, ...]


@pytest.mark.slow
@pytest.mark.usefixtures("made_up")
def test_a_run_that_cannot_fit_is_refused_before_it_begins_unless_forced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_command, "gpu_memory", lambda _device, apart: 15 * 10**9)
    shards = make_shards(tmp_path / "out")
    assert run(shards, tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a step holds 40 GB by simulation, and this GPU has 15: take more GPUs" in line
    assert not (tmp_path / "run").exists()
    forced = ["--force", *("--shards", str(shards), "--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"))]
    assert train_command.main([*forced, "--stop-at", "1", "--set", *TINY]) == 0
