"""Labelled tiles and features for tests of the probe: small images in tables, and classes of known distance."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pretrain.data.labelled import EncodedTiles
from pretrain.evaluation.scores import balanced_accuracy
from pretrain.evaluation.tasks import Task
from pretrain.model.backbone import Backbone, BackboneSettings
from tests.support.paths import SHARED

TILES = SHARED / "tiles"
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
    return Task("made", EncodedTiles(images), labels, classes, groups, np.asarray(train))


def accuracy(judge, features, task, *options):
    """Balanced accuracy of a judge's guesses."""
    return balanced_accuracy(judge(features, task, *options), task.labels[task.test], len(task.classes))


def gaussians(seed=0, count=3000, width=8, apart=2.0, classes=2):
    """Classes whose means lie `apart` along different axes, with noise of 1 in every direction."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(count, width)) + apart * np.eye(classes, width)[labels]
    return torch.from_numpy(features).float(), task_of(labels, rng.random(count) < 0.6, rng.integers(0, 30, count))


def small_backbone(**settings):
    torch.manual_seed(0)
    return Backbone(BackboneSettings(width=32, depth=2, heads=2, patch_px=7, image_px=14, layer_scale=0.0, **settings))
