"""What judges features agrees with references written another way."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pretrain.data.labelled import EncodedTiles
from pretrain.errors import BadTask
from pretrain.evaluation import probe
from pretrain.evaluation.scores import balanced_accuracy
from pretrain.evaluation.tasks import load_tasks
from pretrain.features.embedder import Inference, features_of, of_backbone, of_timm
from pretrain.model.normalise import MEAN, STD
from tests.support.labelled_tiles import CPU, accuracy, encoded, gaussians, noise, small_backbone, table, task_of

import timm  # isort: skip - pretrain has made it importable


def test_colour_of_flat_tiles_and_of_a_ramp():
    colours = np.array([[200, 100, 0], [7, 255, 30]], np.uint8)
    images = [encoded(np.full((4, 6, 3), colour, np.uint8)) for colour in colours]
    ramp = np.arange(100, dtype=np.uint8).reshape(10, 10)
    images.append(encoded(np.stack([ramp, ramp + 100, ramp.T + 50], axis=2)))
    found = probe.colour_statistics(EncodedTiles(images))
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
    backbone.vit.norm.register_forward_pre_hook(
        lambda module, _: modes.append((module.training, torch.is_grad_enabled()))
    )
    found = probe.embed(backbone, task, Inference(CPU, 4))
    assert modes == [(False, False)] * 2
    assert backbone.training
    assert found.shape == (6, 64)
    assert found.dtype == torch.float32
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)))[1:15, :21] for image in task.tiles.images]) / 255
    crops = torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2).float()
    backbone.eval()
    with torch.no_grad():
        tokens = backbone.vit.forward_features(crops)
    expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    probe.embed(backbone, task, Inference(CPU))
    assert not backbone.training


def test_embedding_compiles_nothing_and_may_be_of_low_precision():
    def refuse(*_):
        raise AssertionError("compiled")

    backbone = small_backbone()
    task = task_of([0, 1], [True, False], images=[noise(0), noise(1)])
    plain = probe.embed(backbone, task, Inference(CPU))
    for block in backbone.vit.blocks:
        block.compile(backend=refuse)
    torch.testing.assert_close(probe.embed(backbone, task, Inference(CPU)), plain)
    rough = probe.embed(backbone, task, Inference(CPU, autocast=torch.bfloat16))
    assert rough.dtype == torch.float32
    assert 0 < (rough - plain).abs().max() < 0.1


def test_the_mode_comes_back_after_an_error():
    backbone = small_backbone()
    with pytest.raises(BadTask):
        probe.embed(backbone, task_of([0], [True], images=[b"text"]), Inference(CPU))
    assert backbone.training


# judging


def test_balanced_accuracy_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 0, 1, 1, 2, 3])
    assert balanced_accuracy(predicted, labels, 5) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_gaussians_are_told_apart_about_as_well_as_they_can_be():
    features, task = gaussians(count=6000, apart=2.0)
    best = 0.5 * (1 + math.erf(2 * math.sqrt(2) / 2 / math.sqrt(2)))  # means lie 2 sqrt(2) apart
    assert accuracy(probe.linear, features, task) == pytest.approx(best, abs=0.015)
    assert accuracy(probe.knn, features, task) == pytest.approx(best, abs=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("judge", [probe.knn, probe.linear])
def test_shuffled_labels_give_chance(judge):
    scores = []
    for seed in range(8):
        features, task = gaussians(seed, count=1200, classes=3)
        shuffled = np.random.default_rng(seed).permutation(task.labels)
        scores.append(accuracy(judge, features, replace(task, labels=shuffled)))
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
    assert accuracy(probe.knn, features, task, k, temperature) == pytest.approx(
        slow_knn(features, task, k, temperature)
    )


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
    assert accuracy(probe.linear, features, task, (penalty,)) == pytest.approx(
        by_scipy(features, task, penalty), abs=0.005
    )


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
    assert accuracy(probe.linear, features, task, [penalty]) == pytest.approx(expected, abs=0.005)


def test_linear_bears_constant_and_repeated_features():
    features, task = gaussians()
    plain = accuracy(probe.linear, features, task, (0.01,))
    constant = torch.tensor([0.0, 0.1, -1e6]).expand(len(features), 3)
    assert accuracy(probe.linear, torch.cat([features, constant], dim=1), task, (0.01,)) == plain
    assert accuracy(probe.linear, torch.cat([features, features], dim=1), task, (0.02,)) == pytest.approx(
        plain, abs=0.002
    )
    assert accuracy(probe.linear, constant, task) == 0.5


def test_the_penalty_is_chosen_across_groups():
    """The tiles of a group are nearly the same: only groups left out show that the weak penalty overfits."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(1120), 4)
    features = rng.normal(size=(1120, 60))[groups] + 0.01 * rng.normal(size=(len(groups), 60))
    features[:, 0] += 2 * (groups % 2)
    features, task = torch.from_numpy(features), task_of(groups % 2, groups < 120, groups)
    weak, strong = (accuracy(probe.linear, features, task, (penalty,)) for penalty in (1e-5, 3.0))
    assert strong > weak + 0.05
    assert accuracy(probe.linear, features, task, (1e-5, 3.0)) == strong
    assert accuracy(probe.linear, features, replace(task, groups=np.arange(len(groups))), (1e-5, 3.0)) == weak


@pytest.mark.parametrize("seed", range(3))
def test_no_better_penalty_lies_beyond_a_flat_stretch(seed):
    """Four sites lie 300 times as far apart as the classes: strong penalties, all alike, see nothing but the site."""
    rng = np.random.default_rng(seed)
    labels, slides = rng.integers(0, 2, 1500), rng.integers(0, 40, 1500)
    features = rng.normal(size=(4, 24))[slides % 4] + 0.005 * rng.normal(size=(1500, 24))
    axis = rng.normal(size=24)
    features += 0.02 * (labels[:, None] - 0.5) * axis / np.linalg.norm(axis)
    features, task = torch.from_numpy(features), task_of(labels, slides < 28, slides)
    alone = [accuracy(probe.linear, features, task, (penalty,)) for penalty in sorted(probe.PENALTIES)]
    assert max(alone[4:]) < 0.6  # from .1 on
    assert max(alone) > 0.9
    assert accuracy(probe.linear, features, task) == pytest.approx(max(alone), abs=0.03)


def test_one_group_to_train_on_is_enough():
    features, task = gaussians()
    assert accuracy(probe.linear, features, replace(task, groups=(~task.train).astype(np.int64))) > 0.85


def test_scores_are_repeatable_and_tell_the_sides():
    features, task = gaussians(count=500)
    found = probe.score(features, task)
    assert found == probe.score(features, task)
    assert (found.task, found.train, found.test) == ("made", int(task.train.sum()), int((~task.train).sum()))
    assert (found.knn, found.linear) == (accuracy(probe.knn, features, task), accuracy(probe.linear, features, task))
    features[3, 2] = torch.nan
    broken = probe.score(features, task)
    assert math.isnan(broken.knn)
    assert math.isnan(broken.linear)


def test_probing_a_backbone_judges_its_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 2, 60)
    images = [encoded(rng.integers(0, 100, (14, 14, 3), np.uint8) + np.uint8(120 * b)) for b in bright]
    spec = table(tmp_path / "t.parquet", image=images, label=bright, group=rng.integers(0, 10, 60))
    task, backbone = load_tasks(spec)[0], small_backbone()
    found = probe.score(probe.embed(backbone, task, Inference(CPU)), task)
    assert found.task == "t"
    assert found.knn == found.linear == probe.score(probe.colour_statistics(task.tiles), task).linear == 1.0


# a validation side of the task's own, few examples, the cache


def test_a_validation_side_chooses_the_penalty():
    """What overfits groups on the train side shows on the side that the task sets apart."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(1400), 4)
    features = rng.normal(size=(1400, 60))[groups] + 0.01 * rng.normal(size=(len(groups), 60))
    features[:, 0] += 2 * (groups % 2)
    task = task_of(groups % 2, groups < 120, np.arange(len(groups)))  # as if tiles were independent
    features = torch.from_numpy(features)
    strong = accuracy(probe.linear, features, task, (3.0,))
    assert accuracy(probe.linear, features, task, (1e-5, 3.0)) < strong - 0.05
    apart = replace(task, valid=(groups >= 120) & (groups < 400))
    assert accuracy(probe.linear, features, apart, (1e-5, 3.0)) == accuracy(probe.linear, features, apart, (3.0,))
    assert len(probe.knn(features, apart)) == apart.test.sum() == 4 * 1000


def test_ten_examples_agree_with_a_slow_loop():
    features, task = gaussians(count=400, width=5, classes=3)
    found = probe.few_shot(features, task, shots=1000, episodes=2)
    x = features.double().numpy()
    x = x - x[task.train].mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    means = [x[task.train & (task.labels == c)].mean(0) for c in range(3)]
    expected = [int(np.argmin([np.linalg.norm(row - mean) for mean in means])) for row in x[task.test]]
    np.testing.assert_array_equal(found, [expected, expected])
    some = probe.few_shot(features, task)
    assert some.shape == (probe.EPISODES, task.test.sum())
    assert (some[0] != some[1]).any()
    np.testing.assert_array_equal(some, probe.few_shot(features, task))


def test_every_class_of_every_draw_draws_by_itself():
    """From guesses of tiles that are like one train tile each: which of 20 tiles each class drew, in 400 draws."""
    count, draws = 20, 400
    known = np.eye(2 * count)
    beside = np.repeat(np.eye(2), count, axis=0)[::-1] @ np.repeat(np.eye(2), count, axis=1)  # of the other class
    features = torch.from_numpy(np.concatenate([known, known + 0.1 * beside]))
    labels = np.tile(np.repeat([0, 1], count), 2)
    task = task_of(labels, np.arange(4 * count) < 2 * count)
    found = probe.few_shot(features, task, shots=1, episodes=draws)
    drawn = found == np.repeat([0, 1], count)  # nearer to their own class only where it drew what they are like
    assert (drawn[:, :count].sum(1) == 1).all()
    assert (drawn[:, count:].sum(1) == 1).all()
    one, other = drawn[:, :count].argmax(1), drawn[:, count:].argmax(1)
    pairs = np.zeros((count, count))
    np.add.at(pairs, (one, other), 1)
    for seen in (pairs.sum(0), pairs.sum(1), [np.trace(np.roll(pairs, by, axis=1)) for by in range(count)]):
        assert chisquare(seen).pvalue > 1e-4
    again = probe.few_shot(features, task, shots=1, episodes=draws, seed=1)
    assert (found == again).all(1).mean() < 0.05


def test_more_examples_are_better_and_shuffled_ones_are_chance():
    features, task = gaussians(count=3000, width=20, apart=2.0, classes=3)

    def mean_accuracy(task, shots):
        guesses = probe.few_shot(features, task, shots)
        return np.mean([balanced_accuracy(guess, task.labels[task.test], 3) for guess in guesses])

    assert mean_accuracy(task, 1) + 0.1 < mean_accuracy(task, 10) < mean_accuracy(task, 100)
    shuffled = replace(task, labels=np.random.default_rng(0).permutation(task.labels))
    assert mean_accuracy(shuffled, 10) == pytest.approx(1 / 3, abs=0.03)


def test_features_are_kept_and_made_anew_where_anything_changed(tmp_path):
    asked = []
    backbone = small_backbone()
    backbone.register_forward_pre_hook(lambda *_: asked.append(1))
    tiles = EncodedTiles([noise(n) for n in range(4)])

    def features(px=0, tiles=tiles):
        before = len(asked)
        found = features_of(of_backbone(backbone), tiles, px, Inference(CPU), tmp_path)
        return found, len(asked) > before

    first, made = features()
    assert made
    again, made = features()
    assert not made
    assert torch.equal(first, again)
    assert features(px=21)[1]
    assert features(tiles=EncodedTiles([noise(n) for n in (0, 1, 2, 9)]))[1]
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    again, made = features()
    assert made
    assert torch.equal(first, again)
    with torch.no_grad():
        backbone.vit.cls_token += 1  # any weight is another model
    assert features()[1]


def timm_folder(folder, mean=0.5, **arguments):
    """A narrow ViT of timm's, fixed at 32 px."""
    folder.mkdir()
    arguments |= {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(3)
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    asked = {"input_size": [3, 32, 32], "mean": [mean] * 3, "std": [0.5] * 3, "num_classes": 0}
    config = {"architecture": "vit_small_patch16_224", "num_classes": 0, "model_args": arguments}
    asked |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": asked}))
    return of_timm(f"local-dir:{folder}")


@pytest.mark.parametrize("pooled", [{}, {"class_token": False, "global_pool": "avg"}])
def test_a_network_of_one_size_gets_its_size(tmp_path, pooled):
    found = features_of(
        timm_folder(tmp_path / "model", **pooled), EncodedTiles([noise(n, 48, 48) for n in range(3)]), 0, Inference(CPU)
    )
    assert found.shape == (3, 32 if pooled else 64)


def test_other_colours_asked_for_are_another_model(tmp_path):
    tiles = EncodedTiles([noise(n, 32, 32) for n in range(3)])
    one, other = (timm_folder(tmp_path / str(mean), mean) for mean in (0.5, 0.4))
    kept, again, others = (
        features_of(model, tiles, 0, Inference(CPU), tmp_path / "kept") for model in (one, one, other)
    )
    assert torch.equal(kept, again)
    assert not torch.allclose(kept, others, atol=1e-3)
