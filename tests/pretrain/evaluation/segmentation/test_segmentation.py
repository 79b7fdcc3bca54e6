"""Patch tokens and masks: scores and the head against slow references, layouts, and the command."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from pipelines.evaluate import main
from pretrain.errors import BadTask
from pretrain.evaluation.datasets import read_tasks
from pretrain.evaluation.scores import multiplicities
from pretrain.evaluation.segmentation.head import fitted
from pretrain.evaluation.segmentation.judge import enlarged, judge_patches, patch_shares, region
from pretrain.evaluation.segmentation.scores import pixel_confusion, segmentation_figures
from pretrain.features.colours import colours_of, of_patch_colours
from pretrain.features.embedder import Inference, of_backbone
from tests.support.coloured_tiles import coloured, write
from tests.support.labelled_tiles import CPU, small_backbone
from tests.support.training import make_shards, run

INFERENCE = Inference(CPU, 4, 1)


def slow_scores(masks, guesses, classes):
    """Dice and IoU of each class, pixel by pixel."""
    found = []
    for number in range(classes):
        both = truth = said = 0
        for mask, guess in zip(masks, guesses, strict=True):
            for m, g in zip(mask.ravel().tolist(), guess.ravel().tolist(), strict=True):
                if m != 255:
                    both += m == g == number
                    truth += m == number
                    said += g == number
        found.append((2 * both / (truth + said), both / (truth + said - both)) if truth else (np.nan, np.nan))
    return found


@pytest.fixture
def drawn():
    """Six masks of three classes with pixels that do not count, guesses, and the group of each; class 3 is nowhere."""
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 2, 255], (6, 9, 7), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
    guesses = np.where(rng.random(masks.shape) < 0.7, np.minimum(masks, 2), rng.integers(0, 4, masks.shape))
    return masks, guesses.astype(np.uint8), np.array([0, 0, 1, 1, 1, 2])


def counts_of(masks, guesses, groups):
    each = [pixel_confusion(guess, mask, 4) for mask, guess in zip(masks, guesses, strict=True)]
    return np.stack([np.sum([e for e, g in zip(each, groups, strict=True) if g == group], 0) for group in range(3)])


def test_dice_and_iou_are_those_of_a_slow_count_and_intervals_resample_groups(drawn):
    masks, guesses, groups = drawn
    names = ("a", "b", "c", "none")
    found = segmentation_figures(counts_of(masks, guesses, groups), names, grouped=True)
    slow = slow_scores(masks, guesses, 4)
    for name, (dice, iou) in zip(names, slow, strict=True):
        assert found[f"Dice {name}"].value == pytest.approx(dice, nan_ok=True)
        assert found[f"IoU {name}"].value == pytest.approx(iou, nan_ok=True)
    assert found["mean Dice"].value == pytest.approx(np.mean([dice for dice, _ in slow[:3]]))
    assert found["mean IoU"].value == pytest.approx(np.mean([iou for _, iou in slow[:3]]))
    resampled = []
    for times in multiplicities(3)[:1000]:
        rows = np.repeat(np.arange(6), times[groups].astype(int))
        resampled.append(np.nanmean([d for d, _ in fast_scores(masks[rows], guesses[rows])]))
    ends = np.quantile(resampled, [0.025, 0.975])
    assert (found["mean Dice"].low, found["mean Dice"].high) == pytest.approx(tuple(ends))
    assert np.isnan(segmentation_figures(counts_of(masks, guesses, groups), names, grouped=False)["mean Dice"].low)


def fast_scores(masks, guesses):
    known = masks != 255
    for number in range(4):
        truth, said = (masks == number) & known, (guesses == number) & known
        total = truth.sum() + said.sum()
        yield (2 * (truth & said).sum() / total, 0) if truth.any() else (np.nan, 0)


def test_shares_of_patches_are_counts_of_their_pixels():
    mask = np.random.default_rng(0).choice([0, 1, 2, 255], (12, 20)).astype(np.uint8)
    found = patch_shares(mask, (3, 5), 3)
    for row in range(3):
        for column in range(5):
            cell = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert found[row, column].tolist() == [(cell == number).sum() for number in range(3)]
    assert patch_shares(mask, (5, 7), 3).sum() == (mask < 3).sum()  # of a tile that was resized


def test_logits_are_laid_over_what_the_model_saw():
    embedder = of_patch_colours(4)
    logits = torch.zeros(2, 3, 2)
    logits[0, :, 1] = 5.0
    logits[1, :, 0] = 5.0
    said = enlarged(logits, (11, 13), embedder)
    assert region((11, 13), embedder) == (slice(1, 9), slice(0, 12))
    assert said.shape == (11, 13)
    assert (said[:5] == 1).all()
    assert (said[5:] == 0).all()


def test_the_head_is_scikit_learns_on_patches_of_one_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    tokens = rng.normal(size=(400, 6)) * [1, 2, 3, 4, 5, 0] + np.eye(3, 6)[labels] + 7
    shares = torch.eye(3)[torch.from_numpy(labels)]
    (head,) = fitted(torch.from_numpy(tokens).float(), shares, (0.01,))
    scaled = (tokens - tokens.mean(0)) / np.where(tokens.std(0) > 0, tokens.std(0), np.inf)
    model = LogisticRegression(C=1 / (400 * 0.01), tol=1e-8, max_iter=1000).fit(scaled, labels)
    expected = model.predict_proba(scaled)
    found = torch.softmax(head.logits(torch.from_numpy(tokens)), 1).numpy()
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_patchs_token_is_where_the_patch_is():
    tiles = torch.rand(2, 3, 28, 42)
    backbone = of_backbone(small_backbone().eval())
    with torch.no_grad():
        found = backbone.patches(tiles)
        assert found.shape == (2, 4, 6, 32)
        assert torch.allclose(found.flatten(1, 2).mean(1), backbone.features(tiles)[:, 32:], atol=1e-5)
    found = of_patch_colours(14).patches(tiles)
    assert found.shape == (2, 2, 3, 12)
    assert torch.allclose(found[:, 1, 2], colours_of(tiles[:, :, 14:, 28:]), atol=1e-6)


def test_colours_tell_what_colours_tell_and_a_network_of_chance_less(tmp_path):
    coloured(tmp_path, px=64)
    (tmp_path / "classes.txt").write_text("ground\nred\n")
    (task,) = read_tasks(f"masks:{tmp_path}")
    assert (task.classes, task.grouped, int(task.test.sum())) == (("ground", "red"), True, 6)
    assert not set(task.groups[task.train]) & set(task.groups[task.test])
    rows = {row.metric: row for row in judge_patches(task, "colours", of_patch_colours(8), INFERENCE)}
    assert list(rows)[:2] == ["mean IoU", "mean Dice"]
    assert rows["mean IoU"].value > 0.8
    assert rows["mean IoU"].low <= rows["mean IoU"].value <= rows["mean IoU"].high
    assert (rows["Dice red"].groups, rows["Dice red"].train, rows["Dice red"].test) == (2, 12, 6)
    shuffled = coloured(tmp_path / "other", px=64)
    for file in (shuffled / "images").glob("*/*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file)
    (blind,) = read_tasks(f"masks:{shuffled}")
    rows = {row.metric: row for row in judge_patches(blind, "colours", of_patch_colours(8), INFERENCE)}
    assert rows["mean IoU"].value < 0.6


def test_a_split_of_folders_is_kept_and_a_mask_of_0_and_255_is_binary(tmp_path):
    coloured(tmp_path, slides=2, sides=("train", "val", "test"), value=255)
    (task,) = read_tasks(f"masks:{tmp_path}")
    assert [int(side.sum()) for side in (task.train, task.valid, task.test)] == [6, 6, 6]
    assert task.classes == ("background", "foreground")
    assert task.notes == ("masks hold 0 and 255 alone: 255 is class 1",)
    assert set(np.unique(task.masks.read(0))) == {0, 1}
    (few,) = read_tasks(f"masks:{tmp_path}", 2)
    assert (len(few.tiles), few.notes[-1]) == (6, "6 of 18 tiles, by the limit of 2 a side")
    rows = judge_patches(few, "colours", of_patch_colours(8), INFERENCE)
    assert rows[0].value > 0.7


def without_mask(folder):
    (folder / "masks/0/1.png").unlink()


def linked_mask(folder):
    without_mask(folder)
    (folder / "masks/0/1.png").symlink_to("/etc/hostname")


def coloured_mask(folder):
    write(folder / "masks/0/1.png", np.zeros((40, 40, 3), np.uint8))


def broken_mask(folder):
    (folder / "masks/0/1.png").write_bytes(b"no image")


def pipe(folder):
    without_mask(folder)
    os.mkfifo(folder / "masks/0/1.tif")


def one_class(folder):
    for file in (folder / "masks").glob("*/*.png"):
        write(file, np.zeros((40, 40), np.uint8))


def of_several_sizes(folder):
    write(folder / "masks/0/1.png", np.zeros((39, 40), np.uint8))


def few_names(folder):
    (folder / "classes.txt").write_text("only\n")


def beside(folder):
    write(folder / "images/loose.png", np.zeros((40, 40, 3), np.uint8))


def half_a_split(folder):
    coloured(folder, slides=1, sides=("train",))


def on_both_sides(folder):
    coloured(folder / "train", slides=2)
    coloured(folder / "test", slides=2)


def nothing(folder):
    (folder / "images").rename(folder / "pictures")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_mask, r"1\.png: has no mask \S+/masks/0/1\.png"),
        (linked_mask, r"1\.png: has no mask"),
        (coloured_mask, "is a RGB image; write masks as 8-bit numbers"),
        (broken_mask, "cannot be read as a mask"),
        (pipe, "has no mask"),
        (one_class, "hold one class alone"),
        (of_several_sizes, r"several sizes, \[\(40, 39\), \(40, 40\)\] px"),
        (few_names, "names 1 class, and masks hold class 1"),
        (beside, "has tiles beside folders of tiles"),
        (half_a_split, "both train and test are needed"),
        (on_both_sides, "2 slides are in test and train; put in one"),
        (nothing, "holds no folders images/ and masks/"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, change, said):
    change(coloured(tmp_path, slides=2))
    with pytest.raises(BadTask, match=said):
        read_tasks(f"masks:{tmp_path}")


def test_a_mask_of_another_size_than_its_tile_is_refused(tmp_path):
    coloured(tmp_path)
    write(tmp_path / "images/0/0.png", np.ones((39, 40, 3), np.uint8))
    (task,) = read_tasks(f"masks:{tmp_path}")
    with pytest.raises(BadTask, match=r"mask \d+ is of \(40, 40\) px, its tile of \(40, 39\)"):
        judge_patches(task, "colours", of_patch_colours(8), Inference(CPU, 1, 1))


TISSUES = ("Breast", "Colon", "Head&Neck")


def pannuke(folder, each=3):
    """Folds of few images, of floats as they come; a nucleus of each kind, the same in red of another strength."""
    for fold in (1, 2, 3):
        images = np.full((each, 256, 256, 3), 200.0)
        masks = np.zeros((each, 256, 256, 6))
        masks[..., 5] = 1
        for n in range(each):
            for kind in range(5):
                part = (n, slice(48 * kind, 48 * kind + 48), slice(64 * n, 64 * n + 64))
                masks[(*part, kind)] = 7 + kind
                masks[(*part, 5)] = 0
                images[part] = [40 * kind, 0, 255 - 40 * kind]
        places = [folder / f"Fold {fold}" / what / f"fold{fold}" for what in ("images", "masks")]
        for place in places:
            place.mkdir(parents=True)
        np.save(places[0] / "images.npy", images)
        np.save(places[0] / "types.npy", np.array(TISSUES[:each]))
        np.save(places[1] / "masks.npy", masks)
    return folder


def test_pannuke_is_read_as_it_comes(tmp_path):
    (task,) = read_tasks(f"pannuke:{pannuke(tmp_path)}")
    assert [int(side.sum()) for side in (task.train, task.valid, task.test)] == [3, 3, 3]
    assert task.classes == ("background", "neoplastic", "inflammatory", "connective", "dead", "epithelial")
    mask = task.masks.read(4)
    assert [mask[48 * kind, 64] for kind in range(5)] == [1, 2, 3, 4, 5]
    assert (mask == 0).sum() == 256 * 256 - 5 * 48 * 64
    assert task.tiles.read(4)[48, 64].tolist() == [40, 0, 215]
    assert len(np.unique(task.groups)) == 3
    rows = {row.metric: row for row in judge_patches(task, "colours", of_patch_colours(16), INFERENCE)}
    assert rows["Dice dead"].value > 0.85
    assert (rows["mean IoU"].groups, rows["mean IoU"].low > 0.8) == (3, True)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def pickled(place):
    np.save(place, np.array([Bomb()] * 3, object), allow_pickle=True)


def cut_short(place):
    place.write_bytes(place.read_bytes()[:-1000])


def of_nothing(place):
    place.write_bytes(b"\x93NUMPY\x01\x00")


def huge(place):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 256, 256, 3), }"
    place.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def of_another_shape(place):
    np.save(place, np.zeros((3, 10, 10, 3)))


def missing(place):
    place.unlink()


def a_pipe(place):
    place.unlink()
    os.mkfifo(place)


@pytest.mark.parametrize("change", [pickled, cut_short, of_nothing, huge, of_another_shape, missing, a_pipe])
@pytest.mark.parametrize("name", ["images/fold1/images.npy", "masks/fold1/masks.npy", "images/fold1/types.npy"])
def test_arrays_of_others_run_nothing_and_are_refused(tmp_path, monkeypatch, change, name):
    monkeypatch.chdir(tmp_path)
    change(pannuke(tmp_path / "p") / "Fold 1" / name)
    with pytest.raises(BadTask, match=r"is no array|holds|is missing|unpack it") as error:
        read_tasks(f"pannuke:{tmp_path / 'p'}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.slow
def test_the_command_judges_runs_untrained_networks_and_colours(tmp_path, capsys):
    coloured(tmp_path / "tiles", px=56)
    assert run(make_shards(tmp_path / "out"), tmp_path / "run", "schedule.steps=1") == 0
    words = ["--model", str(tmp_path / "run"), "--tasks", f"masks:{tmp_path / 'tiles'}", "--to", str(tmp_path / "f")]
    assert main([*words, "--cache", str(tmp_path / "cache")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "IoU 0." in out
    rows = pq.read_table(tmp_path / "f/figures.parquet").to_pylist()
    by = {(row["features"], row["metric"]): row for row in rows}
    assert {features for features, _ in by} == {"colours alone", "run, untrained", "run, step 1"}
    assert len(by) == 3 * 6
    assert by["colours alone", "mean IoU"]["value"] > 0.7
    assert "Dice 1" in (tmp_path / "f/figures.html").read_text()
