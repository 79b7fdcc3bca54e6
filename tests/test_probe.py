"""Labelled tiles are divided by groups, and what judges features agrees with references written another way."""

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pretrain import probe
from pretrain.backbone import Backbone, BackboneSettings
from pretrain.colour import MEAN, STD
from pretrain.errors import BadTask

TILES = Path(__file__).parents[2] / "shared" / "tiles"
CPU = torch.device("cpu")


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def noise(number, height=16, width=18, kind="PNG"):
    return encoded(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8), kind)


def table(path, **columns):
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [noise(n) for n in range(count)], **columns}), path)
    return str(path)


def task_of(labels, train, groups=None, images=()):
    labels = np.asarray(labels, np.int64)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups, np.int64)
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return probe.Task("made", images, labels, classes, groups, np.asarray(train), np.full(len(labels), np.nan, "f4"))


def gaussians(seed=0, count=3000, width=8, apart=2.0, classes=2):
    """Classes whose means lie `apart` along different axes, with noise of 1 in every direction."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(count, width)) + apart * np.eye(classes, width)[labels]
    return torch.from_numpy(features).float(), task_of(labels, rng.random(count) < 0.6, rng.integers(0, 30, count))


def small_backbone(**settings):
    torch.manual_seed(0)
    return Backbone(BackboneSettings(width=32, depth=2, heads=2, patch_px=7, image_px=14, layer_scale=0.0, **settings))


# tables


def test_a_table_becomes_a_task(tmp_path):
    spec = table(
        tmp_path / "tiles.parquet",
        label=["b", "a", None, "b", "a", "b"],
        group=["s", "s", "s", "t", "t", "t"],
        split=["train"] * 3 + ["test"] * 3,
        mpp=[0.25, 0.5, None, None, 1.0, 2.0],
    )
    task = probe.load_task(spec)
    assert task.name == "tiles"
    assert task.classes == ("a", "b")
    assert task.labels.dtype == task.groups.dtype == np.int64
    assert task.labels.tolist() == [1, 0, 1, 0, 1]
    assert task.train.tolist() == [True, True, False, False, False]
    assert list(task.images) == [noise(n) for n in (0, 1, 3, 4, 5)]
    assert task.mpp.dtype == np.float32
    np.testing.assert_array_equal(task.mpp, np.array([0.25, 0.5, np.nan, 1, 2], np.float32))
    np.testing.assert_array_equal(task.groups == task.groups[0], [True, True, False, False, False])


def test_another_column_holds_the_labels(tmp_path):
    spec = table(tmp_path / "tiles.parquet", label=["a"] * 12, grade=[1, 2, 10] * 4)
    task = probe.load_task(f"{spec}:grade")
    assert task.name == "tiles:grade"
    assert task.classes == ("1", "2", "10")
    assert np.isnan(task.mpp).all()


@pytest.mark.parametrize("slides", [2, 5, 40, 300])
def test_groups_are_never_divided_and_every_class_is_on_both_sides(tmp_path, slides):
    rng = np.random.default_rng(slides)
    group = rng.integers(0, slides, 600)
    label = rng.integers(0, 3, 600)
    task = probe.load_task(table(tmp_path / "t.parquet", label=label, group=[f"slide {g}" for g in group]))
    assert not set(task.groups[task.train]) & set(task.groups[~task.train])
    assert set(task.labels[task.train]) == set(task.labels[~task.train]) == {0, 1, 2}
    if slides >= 40:
        assert np.mean(~task.train) == pytest.approx(1 / 3, abs=0.03)


def test_a_division_that_works_is_found_among_few_groups(tmp_path):
    classes = {"a": "pq", "b": "rs", "c": "qrt", "d": "ps"}  # of the 30 divisions, few put each on both sides
    rows = [(label, group) for label, groups in classes.items() for group in groups for _ in range(4)]
    working = [
        held
        for size in range(1, 5)
        for held in map(set, itertools.combinations("pqrst", size))
        if all(held & set(groups) and set(groups) - held for groups in classes.values())
    ]
    assert 0 < len(working) < 10
    label, group = zip(*rows, strict=True)
    task = probe.load_task(table(tmp_path / "t.parquet", label=label, group=group))
    assert task.classes == ("a", "b", "c", "d")
    held = {group for group, train in zip(group, task.train, strict=True) if not train}
    assert held in working


def test_a_class_of_one_group_is_left_out(tmp_path):
    spec = table(tmp_path / "t.parquet", label=list("aabbc") * 4, group=list("pqpqr") * 4)
    task = probe.load_task(spec)
    assert task.classes == ("a", "b")
    assert len(task.labels) == len(task.images) == 16
    assert set(task.images) == {noise(n) for n in range(20) if n % 5 < 4}


def test_the_division_does_not_depend_on_the_order_of_rows(tmp_path):
    rng = np.random.default_rng(0)
    label, group, order = rng.integers(0, 2, 200), rng.integers(0, 12, 200), rng.permutation(200)
    first = probe.load_task(table(tmp_path / "a.parquet", label=label, group=group))
    other = probe.load_task(table(tmp_path / "b.parquet", label=label[order], group=group[order]))
    np.testing.assert_array_equal(first.train[order], other.train)


def test_limit_keeps_the_proportions_and_the_rarest(tmp_path):
    rng = np.random.default_rng(1)
    label = rng.choice(["common", "half", "rare"], 1500, p=[0.6, 0.39, 0.01])
    spec = table(tmp_path / "t.parquet", label=label, group=rng.integers(0, 100, 1500))
    whole, task, again, other = (
        probe.load_task(spec, limit, seed) for limit, seed in ((0, 0), (50, 0), (50, 0), (50, 1))
    )
    for side in (task.train, ~task.train):
        count = np.bincount(task.labels[side])
        assert count.sum() == 50
        assert count[2] == 1
        assert count[0] == pytest.approx(30, abs=2)
    assert task.images == again.images
    assert task.images != other.images
    trained = dict(zip(whole.images, whole.train, strict=True))
    assert [trained[image] for image in task.images] == task.train.tolist()
    assert len(probe.load_task(spec, 10**6).images) == 1500


def refused(spec, *words, **options):
    with pytest.raises(BadTask) as caught:
        probe.load_task(spec, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for word in ("t.parquet", *words):
        assert word in line


def test_bad_tables_are_refused_in_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    refused(str(path), "no Parquet")
    path.write_bytes(b"text")
    refused(str(path), "no Parquet")
    good = {"label": list("abab") * 3, "group": list("ppqq") * 3}
    refused(table(path, **good) + ":grade", "grade", "label")
    refused(table(path, **good), "limit of 1", limit=1)
    refused(table(path, label=["a"] * 6), "fewer than 2 classes")
    refused(table(path, label=pa.nulls(6, pa.string())), "fewer than 2 classes")
    refused(table(path, label=list("aabb"), group=list("ppqq")), "fewer than 2 classes")
    refused(table(path, **good, split=["train", "valid"] * 6), "valid")
    refused(table(path, **good, split=["train", None] * 6), "None")
    refused(table(path, **good, split=["train", "test"] * 6), "2 groups")
    refused(table(path, **good, image=[b"text"] * 12), "image")
    refused(table(path, **good, image=[noise(0)] * 11 + [None]), "image")
    refused(table(path, **good, image=[noise(0)] * 11 + [noise(0, 18)]), "sizes", "(18, 16)", "(18, 18)")
    pq.write_table(pa.table(good), path)
    refused(str(path), "no column image")


@pytest.mark.skipif(not TILES.is_dir(), reason="needs ../shared/tiles, which is not part of the repository")
@pytest.mark.parametrize(("column", "classes"), [("organ", ("duodenum", "liver")), ("stain", ("HE", "PAS"))])
def test_real_tiles_are_divided_by_case(column, classes):
    task = probe.load_task(f"{TILES / 'atlas_organ_stain.parquet'}:{column}", limit=40)
    assert task.classes == classes
    assert not set(task.groups[task.train]) & set(task.groups[~task.train])
    assert set(task.labels[task.train]) == set(task.labels[~task.train]) == {0, 1}
    assert probe.decode_tiles(task.images[:2], 14).shape == (2, 3, 252, 252)


# pixels


def test_tiles_are_decoded_and_their_middle_cut_out():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    tiles = probe.decode_tiles([encoded(pixels), encoded(pixels[::-1].copy())], 5)
    assert tiles.dtype == torch.float32
    middle = pixels[1:16, 1:21].astype(np.float32) / 255
    np.testing.assert_array_equal(tiles[0].permute(1, 2, 0), middle)
    np.testing.assert_array_equal(tiles[1].permute(1, 2, 0), pixels[::-1][1:16, 1:21].astype(np.float32) / 255)


def test_jpegs_are_decoded_as_pillow_does():
    smooth = np.add.outer(np.arange(128), np.arange(128))[:, :, None] * np.array([0.9, 0.5, 0.1]) % 256
    jpeg = encoded(smooth.astype(np.uint8), "JPEG")
    tiles = probe.decode_tiles([jpeg], 14)
    assert tiles.shape == (1, 3, 126, 126)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))[1:127, 1:127].transpose(2, 0, 1)
    assert np.abs(tiles[0].numpy() * 255 - expected).max() <= 2
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in ("PNG", "JPEG"):
        assert probe.decode_tiles([encoded(grey, kind)], 16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([noise(0), noise(0, 20)], "sizes"),
        ([b"text"], "readable"),
        ([noise(0)[:300]], "readable"),
        ([b"\xff\xd8text"], "readable"),
        ([noise(0)], "18 x 16"),
    ],
)
def test_tiles_that_cannot_be_used_are_refused(images, word):
    with pytest.raises(BadTask, match=word) as caught:
        probe.decode_tiles(images, 17)
    assert len(str(caught.value).splitlines()) == 1


def test_colour_of_flat_tiles_and_of_a_ramp():
    colours = np.array([[200, 100, 0], [7, 255, 30]], np.uint8)
    images = [encoded(np.full((4, 6, 3), colour, np.uint8)) for colour in colours]
    ramp = np.arange(100, dtype=np.uint8).reshape(10, 10)
    images.append(encoded(np.stack([ramp, ramp + 100, ramp.T + 50], axis=2)))
    found = probe.colour_statistics(task_of([0, 1, 0], [True, True, False], images=images))
    assert found.shape == (3, 12)
    assert found.dtype == torch.float32
    flat = np.concatenate([colours, np.zeros((2, 3)), colours, colours], axis=1) / 255
    np.testing.assert_allclose(found[:2], flat, atol=1e-6)
    low = np.array([0, 100, 50])
    of_ramp = np.concatenate([low + 49.5, [math.sqrt((100**2 - 1) / 12)] * 3, low + 10, low + 89]) / 255
    np.testing.assert_allclose(found[2], of_ramp, atol=1e-6)


# embedding


@pytest.mark.parametrize("registers", [0, 2])
def test_embedding_is_timms_on_the_same_crops(registers):
    backbone = small_backbone(registers=registers, drop_path=0.5)
    task = task_of([0, 1] * 3, [True, False] * 3, images=[noise(n, 16, 22) for n in range(6)])
    modes = []
    backbone.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    found = probe.embed(backbone, task, CPU, batch=4)
    assert modes == [(False, False)] * 2
    assert backbone.training
    assert found.shape == (6, 64)
    assert found.dtype == torch.float32
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)))[1:15, :21] for image in task.images]) / 255
    crops = torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2).float()
    backbone.eval()
    with torch.no_grad():
        tokens = backbone.vit.forward_features(crops)
    expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    probe.embed(backbone, task, CPU)
    assert not backbone.training


def test_embedding_compiles_nothing_and_may_be_of_low_precision():
    def refuse(*_):
        raise AssertionError("compiled")

    backbone = small_backbone()
    task = task_of([0, 1], [True, False], images=[noise(0), noise(1)])
    plain = probe.embed(backbone, task, CPU)
    for block in backbone.vit.blocks:
        block.compile(backend=refuse)
    torch.testing.assert_close(probe.embed(backbone, task, CPU), plain)
    rough = probe.embed(backbone, task, CPU, autocast=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert 0 < (rough - plain).abs().max() < 0.1


def test_the_mode_comes_back_after_an_error():
    backbone = small_backbone()
    with pytest.raises(BadTask):
        probe.embed(backbone, task_of([0], [True], images=[b"text"]), CPU)
    assert backbone.training


# judging


def test_balanced_accuracy_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 0, 1, 1, 2, 3])
    assert probe.balanced_accuracy(predicted, labels, 5) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_gaussians_are_told_apart_about_as_well_as_they_can_be():
    features, task = gaussians(count=6000, apart=2.0)
    best = 0.5 * (1 + math.erf(2 * math.sqrt(2) / 2 / math.sqrt(2)))  # means lie 2 sqrt(2) apart
    assert probe.linear(features, task) == pytest.approx(best, abs=0.015)
    assert probe.knn(features, task) == pytest.approx(best, abs=0.025)


@pytest.mark.parametrize("judge", [probe.knn, probe.linear])
def test_shuffled_labels_give_chance(judge):
    scores = []
    for seed in range(8):
        features, task = gaussians(seed, count=1200, classes=3)
        shuffled = np.random.default_rng(seed).permutation(task.labels)
        scores.append(judge(features, replace(task, labels=shuffled)))
    assert np.mean(scores) == pytest.approx(1 / 3, abs=0.03)


def slow_knn(features, task, k, temperature):
    x = features.numpy().astype(np.float64)
    x = x - x[task.train].mean(0)
    right = {label: [] for label in set(task.labels[~task.train].tolist())}
    for row in np.flatnonzero(~task.train):
        likeness = {}
        for other in np.flatnonzero(task.train):
            likeness[other] = x[row] @ x[other] / math.sqrt((x[row] @ x[row]) * (x[other] @ x[other]))
        votes = [0.0] * len(task.classes)
        for other in sorted(likeness, key=likeness.get)[::-1][:k]:
            votes[task.labels[other]] += math.exp(likeness[other] / temperature)
        right[int(task.labels[row])].append(votes.index(max(votes)) == task.labels[row])
    return np.mean([np.mean(hits) for hits in right.values()])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (1000, 0.07)])
def test_neighbours_agree_with_a_slow_loop(k, temperature):
    features, task = gaussians(count=400, width=5, apart=1.0, classes=4)
    features = features * 3 + 10
    assert probe.knn(features, task, k, temperature) == pytest.approx(slow_knn(features, task, k, temperature))


def by_scipy(features, task, penalty):
    """The same objective, written from its formula, by another minimiser; accuracy on the held-out tiles."""
    x, y, classes = features.numpy().astype(np.float64), task.labels, len(task.classes)
    known = x[task.train]
    x = (x - known.mean(0)) / known.std(0)
    known, wanted = x[task.train], np.eye(classes)[y[task.train]]
    share = wanted / wanted.sum(0) / classes  # every class weighs the same, all together 1

    def loss(flat):
        w, b = flat[:-classes].reshape(-1, classes), flat[-classes:]
        log_p = log_softmax(known @ w + b, axis=1)
        slope = share.sum(1, keepdims=True) * np.exp(log_p) - share
        gradient = np.concatenate([(known.T @ slope + penalty * w).ravel(), slope.sum(0)])
        return -(share * log_p).sum() + penalty / 2 * (w**2).sum(), gradient

    found = minimize(loss, np.zeros((x.shape[1] + 1) * classes), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    guess = (x[~task.train] @ found[:-classes].reshape(-1, classes) + found[-classes:]).argmax(1)
    return np.mean([(guess == label)[y[~task.train] == label].mean() for label in range(classes)])


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_linear_agrees_with_scipy(penalty):
    features, task = gaussians(count=1500, width=6, apart=1.0, classes=3)
    keep = (task.labels < 2) | (np.arange(1500) % 4 == 0)  # unequal classes
    task = replace(task, labels=task.labels[keep], train=task.train[keep], groups=task.groups[keep])
    features = features[keep] @ torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) + 5
    assert probe.linear(features, task, (penalty,)) == pytest.approx(by_scipy(features, task, penalty), abs=0.005)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4])
def test_linear_is_within_half_a_point_of_scikit_learns(seed, classes):
    """Whose C is the inverse of the summed loss's penalty: one over the number of tiles times ours."""
    features, task = gaussians(seed, count=4000, width=12, apart=1.5, classes=classes)
    x, train, penalty = features.double().numpy(), task.train, 0.01
    x = (x - x[train].mean(0)) / x[train].std(0)
    model = LogisticRegression(C=1 / (penalty * train.sum()), class_weight="balanced", max_iter=1000, tol=1e-8)
    model.fit(x[train], task.labels[train])
    expected = balanced_accuracy_score(task.labels[~train], model.predict(x[~train]))
    assert probe.linear(features, task, [penalty]) == pytest.approx(expected, abs=0.005)


def test_linear_bears_constant_and_repeated_features():
    features, task = gaussians()
    plain = probe.linear(features, task, (0.01,))
    constant = torch.tensor([0.0, 0.1, -1e6]).expand(len(features), 3)
    assert probe.linear(torch.cat([features, constant], dim=1), task, (0.01,)) == plain
    assert probe.linear(torch.cat([features, features], dim=1), task, (0.02,)) == pytest.approx(plain, abs=0.002)
    assert probe.linear(constant, task) == 0.5


def test_the_penalty_is_chosen_across_groups():
    """The tiles of a group are nearly the same: only groups left out show that the weak penalty overfits."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(1120), 4)
    features = rng.normal(size=(1120, 60))[groups] + 0.01 * rng.normal(size=(len(groups), 60))
    features[:, 0] += 2 * (groups % 2)
    features, task = torch.from_numpy(features), task_of(groups % 2, groups < 120, groups)
    weak, strong = (probe.linear(features, task, (penalty,)) for penalty in (1e-5, 3.0))
    assert strong > weak + 0.05
    assert probe.linear(features, task, (1e-5, 3.0)) == strong
    assert probe.linear(features, replace(task, groups=np.arange(len(groups))), (1e-5, 3.0)) == weak


def test_one_group_to_train_on_is_enough():
    features, task = gaussians()
    assert probe.linear(features, replace(task, groups=(~task.train).astype(np.int64))) > 0.85


def test_scores_are_repeatable_and_tell_the_sides():
    features, task = gaussians(count=500)
    found = probe.score(features, task)
    assert found == probe.score(features, task)
    assert (found.task, found.train, found.test) == ("made", int(task.train.sum()), int((~task.train).sum()))
    assert (found.knn, found.linear) == (probe.knn(features, task), probe.linear(features, task))
    features[3, 2] = torch.nan
    broken = probe.score(features, task)
    assert math.isnan(broken.knn)
    assert math.isnan(broken.linear)


def test_probing_a_backbone_judges_its_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 2, 60)
    images = [encoded(rng.integers(0, 100, (14, 14, 3), np.uint8) + np.uint8(120 * b)) for b in bright]
    spec = table(tmp_path / "t.parquet", image=images, label=bright, group=rng.integers(0, 10, 60))
    task, backbone = probe.load_task(spec), small_backbone()
    found = probe.probe(backbone, [task, replace(task, name="again")], CPU)
    assert [score.task for score in found] == ["t", "again"]
    assert found[0] == probe.score(probe.embed(backbone, task, CPU), task)
    assert found[0].knn == found[0].linear == probe.score(probe.colour_statistics(task), task).linear == 1.0
