"""`make bench BENCH=evaluate`: judging 100,000 tiles by their features, and embedding against the bare forward pass."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain.data.labelled import EncodedTiles
from pretrain.evaluation.probe import few_shot, knn, linear
from pretrain.evaluation.scores import balanced_accuracy
from pretrain.evaluation.tasks import Task
from pretrain.features.embedder import Inference, embed_tiles, of_backbone
from pretrain.model.backbone import Backbone
from pretrain.train.recipe.recipes import recipe
from tests.benchmarks.measure import Figure, compare, machine, markdown, table

_CLASSES = 9
_SECONDS = 60


def main() -> None:
    """Measure, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    figures = []
    for width, who in ((768, "ViT-S"), (2560, "Virchow2")):
        figures += _judges(1000 if given.quick else 100_000, 64 if given.quick else width, who)
    figures += _embedding(8 if given.quick else 128, 1 if given.quick else 5)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=evaluate"))


def _judges(tiles: int, width: int, who: str) -> list[Figure]:
    """Features that overlap as real ones do: correlated axes, nine classes of unequal size, 200 slides."""
    rng = np.random.default_rng(0)
    labels = rng.choice(_CLASSES, tiles, p=np.arange(1, _CLASSES + 1) / 45)
    groups = rng.integers(0, 200, tiles)
    scale = (1 / np.arange(1, width + 1)).astype(np.float32) ** 0.5
    means = rng.normal(size=(_CLASSES, width)).astype(np.float32) * 0.15
    shift = rng.normal(size=(200, width)).astype(np.float32) * 0.3
    features = rng.standard_normal((tiles, width), np.float32)
    features = (features + means[labels] + shift[groups]) * scale
    task = Task("made", EncodedTiles([]), labels, tuple("abcdefghi"), groups, groups < 160)
    part, x = f"{tiles:,} tiles x {width} ({who})", torch.from_numpy(features)
    found = []
    for name, judge in (("linear", linear), ("kNN", knn), ("10-shot", few_shot)):
        began = time.perf_counter()
        guessed = np.atleast_2d(judge(x, task))[0]
        seconds = time.perf_counter() - began
        accuracy = balanced_accuracy(guessed, labels[task.test], _CLASSES)
        target, ok = (f"<= {_SECONDS} s", seconds <= _SECONDS) if name == "linear" else ("", None)
        found.append(Figure(part, f"{name} (balanced accuracy {accuracy:.3f})", f"{seconds:.1f} s", target, ok))
    return found


def _embedding(tiles: int, rounds: int) -> list[Figure]:
    """Tiles of 224 px in JPEG through a ViT-S/14: read, decoded and embedded, and the forward pass alone."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(tiles):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
        small.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    embedder = of_backbone(Backbone(recipe("vit_s").backbone).eval())
    batch = min(32, tiles)
    crops = torch.rand(batch, 3, 224, 224)
    forward, whole = "forward alone", "read, decoded, embedded"

    def bare() -> int:
        with torch.no_grad():
            for _ in range(tiles // batch):
                embedder.features(crops)
        return tiles // batch * batch

    def embedded() -> int:
        embed_tiles(embedder, EncodedTiles(images), 0, Inference(torch.device("cpu"), batch))
        return tiles

    rates = compare("ViT-S/14, 224 px", {forward: bare, whole: embedded}, rounds)
    return [*rates.figures(), rates.ratio(whole, forward, 0.9)]


if __name__ == "__main__":
    main()
