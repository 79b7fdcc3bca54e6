"""Patches as a task: their classes and tokens one by one, what bounds their number, and their curve during a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.command import EXIT_WRONG_CALL
from pretrain.errors import BadTask
from pretrain.evaluation.datasets import read_tasks
from pretrain.evaluation.probe import Score, score
from pretrain.evaluation.segmentation import probe
from pretrain.evaluation.segmentation.probe import patches_of
from pretrain.features.colours import of_patch_colours
from pretrain.features.embedder import Inference, of_backbone
from pretrain.model.normalise import normalise
from pretrain.train.metrics import read_metrics
from pretrain.train.watch.probes import Bests
from tests.support.coloured_tiles import coloured, write
from tests.support.labelled_tiles import CPU, small_backbone, table
from tests.support.training import make_shards, run

PX = 7


def rare(folder):
    """Tiles of 44 x 30 px of two classes, the first of which is rare, and pixels that do not count."""
    rng = np.random.default_rng(0)
    for slide in range(6):
        for number in range(2):
            mask = np.repeat(np.repeat(rng.choice([0, 1, 255], (7, 5), p=[0.1, 0.7, 0.2]), 7, 0), 7, 1)
            mask = np.pad(mask, ((0, 0), (0, 2)), constant_values=255)[:44, :30].astype(np.uint8)
            write(folder / "images" / str(slide) / f"{number}.png", rng.integers(0, 256, (44, 30, 3), np.uint8))
            write(folder / "masks" / str(slide) / f"{number}.png", mask)
    return folder


def test_a_patchs_class_is_that_of_most_of_its_pixels_and_its_token_the_models(tmp_path):
    (found,) = read_tasks(f"masks:{rare(tmp_path / 'rare')}")
    made, backbone = patches_of(found, PX), small_backbone().eval()
    tokens = made.tokens(of_backbone(backbone), Inference(CPU, 5, 1))
    assert made.task.name == "rare_patches"
    known, expected = [], []
    for number in range(len(found.tiles)):  # of 44 x 30 px, 42 x 28 are seen, from the second row and column on
        mask, pixels = found.masks.read(number), found.tiles.read(number)
        with torch.no_grad():
            tile = torch.from_numpy(pixels[1:43, 1:29].copy()).permute(2, 0, 1)[None] / 255
            whole = backbone([normalise(tile)])[0].patches[0]
        for row in range(6):
            for column in range(4):
                square = mask[1 + PX * row : 8 + PX * row, 1 + PX * column : 8 + PX * column]
                counts = [(square == label).sum() for label in (0, 1)]
                if sum(counts) >= PX * PX / 2:
                    label, groups = int(np.argmax(counts)), found.groups[number]
                    known.append(whole[4 * row + column])
                    expected.append((label, groups, found.test[number]))
    assert len(expected) == len(tokens)
    apart, nearest = torch.cdist(tokens, torch.stack(known), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert apart.max() < 1e-3
    assert sorted(nearest.tolist()) == list(range(len(known)))
    for n, other in enumerate(nearest.tolist()):
        assert (made.task.labels[n], made.task.groups[n], made.task.test[n]) == expected[other]
    assert not set(made.task.groups[made.task.train]) & set(made.task.groups[made.task.test])


def test_however_many_tiles_there_are_patches_are_few_and_rare_ones_are_whole(tmp_path, monkeypatch):
    (found,) = read_tasks(f"masks:{rare(tmp_path)}")
    every = patches_of(found, PX).task
    monkeypatch.setattr(probe, "MOST_PATCHES", 40)
    few = patches_of(found, PX).task
    for side in ("train", "test"):
        of_all, of_few = (task.labels[getattr(task, side)] for task in (every, few))
        assert len(of_few) == 40 < len(of_all)
        assert (of_few == 0).sum() == min((of_all == 0).sum(), 20) > 5
    again = patches_of(found, PX)
    assert np.array_equal(again.task.labels, few.labels)
    assert len(again.tiles) <= len(found.tiles)
    assert len(again.tokens(of_patch_colours(PX), Inference(CPU, 4, 1))) == len(few.labels)


def test_patches_are_told_by_what_tells_them(tmp_path):
    (found,) = read_tasks(f"masks:{coloured(tmp_path / 'a', px=56)}")
    made = patches_of(found, 14)
    judged = score(made.tokens(of_patch_colours(14), Inference(CPU, 4, 1)), made.task)
    assert min(judged.linear, judged.knn) > 0.9
    for file in (tmp_path / "a/images").glob("*/*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)).save(file)
    judged = score(made.tokens(of_patch_colours(14), Inference(CPU, 4, 1)), made.task)
    assert max(judged.linear, judged.knn) < 0.75


def test_masks_whose_patches_are_all_of_one_class_are_refused(tmp_path):
    folder = coloured(tmp_path / "a")
    for file in (folder / "masks").glob("*/*.png"):
        mask = np.zeros((40, 40), np.uint8)
        mask[20, 20] = 1
        write(file, mask)
    (found,) = read_tasks(f"masks:{folder}")
    with pytest.raises(BadTask, match="patches of 14 px are of 1 class that both sides have"):
        patches_of(found, 14)
    with pytest.raises(BadTask, match=r"tiles of \(40, 40\) px are smaller than a patch of 42 px"):
        patches_of(found, 42)


def test_what_was_better_before_is_said(tmp_path):
    name = "probe_a_patches_linear_balanced_accuracy"
    rows = [{"step": 0, name: 0.6}, {"step": 2, name: 0.8}, {"step": 4, name: None}, {"step": 6, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bests = Bests(tmp_path)
    assert bests.said(Score("a_patches", 0.5, 0.7, 1, 1), 8) == "; linear was 0.800 at step 2"
    assert bests.said(Score("a_patches", 0.5, 0.9, 1, 1), 10) == ""
    assert bests.said(Score("a_patches", 0.5, 0.85, 1, 1), 12) == "; linear was 0.900 at step 10"
    assert bests.said(Score("other", 0.5, 0.1, 1, 1), 12) == ""


@pytest.mark.slow
def test_a_run_is_probed_with_tiles_that_have_masks(tmp_path, capsys):
    folder = coloured(tmp_path / "nuclei", px=56)
    tiles = table(tmp_path / "tiles.parquet", label=list("ab") * 10, group=[str(n // 4) for n in range(20)])
    changes = ("schedule.steps=2", "looking.probe=1", "looking.probe_tiles=6")
    shards = make_shards(tmp_path / "out")
    assert run(shards, tmp_path / "run", *changes, probe=[f"masks:{folder}", tiles]) == 0
    names = [f"probe_{task}_{by}_balanced_accuracy" for task in ("nuclei_patches", "tiles") for by in ("linear", "knn")]
    rows = read_metrics(tmp_path / "run")
    for name in names:
        assert {row["step"] for row in rows if 0 <= row.get(name, -1) <= 1} == {0, 1, 2}
    said = " ".join(capsys.readouterr().out.split())
    assert "nuclei_patches: colour alone: linear " in said
    assert "12 of 18 tiles, by the limit of 6 a side" in said
    assert "step 2: nuclei_patches: linear " in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probes", "why"),
    [
        (["masks:{0}", "masks:{0}"], "two of PROBE are named 'nuclei_patches'; rename a file or folder"),
        (["masks:{0}/images"], "holds no folders images/ and masks/"),
        (["masks:nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_probed_with_is_refused_before_a_step(tmp_path, capsys, probes, why):
    folder = coloured(tmp_path / "nuclei", px=56)
    named = [each.format(folder) for each in probes]
    assert run(make_shards(tmp_path / "out"), tmp_path / "run", probe=named) == EXIT_WRONG_CALL
    said = capsys.readouterr().err
    assert why in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "run/checkpoints").is_dir() or not any((tmp_path / "run/checkpoints").iterdir())
