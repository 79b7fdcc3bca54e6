"""`make bench BENCH=guide`: a made cohort whose sites differ by tint alone, trained on with its site erased.

Biology is the shape of dark blobs (small, large, long), equally dense in all classes and independent of the site, which
is the tint of the glass. Judged on whole tiles of slides that training never saw, half of them to learn from: by the
linear probe of `make evaluate`, by logistic regression of one fixed penalty (which holds back less), and by neighbours.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.train import main as pretrain
from pretrain.data.labelled import EncodedTiles
from pretrain.evaluation.probe import knn, linear
from pretrain.evaluation.scores import balanced_accuracy
from pretrain.evaluation.tasks import Task
from pretrain.features.embedder import Inference, embed_tiles, of_backbone
from pretrain.model.backbone import Backbone
from pretrain.train.metrics import read_metrics
from pretrain.train.runs import load_run, untrained
from tests.benchmarks.measure import Figure, machine, markdown, table
from tests.support.labelled_tiles import encoded
from tests.support.shard_folders import add_slide

SHAPES = ("small", "large", "long")
SITES = ("A", "B", "C")
TINTS = np.array([(0.82, 0.62, 0.74), (0.68, 0.72, 0.86), (0.86, 0.76, 0.58)])
_SIDE, _COVERED, _SPREAD = 392, 0.2, 0.05
_PENALTY = 1e-3
_EACH = 36  # figures of a seed
_RADII = {"small": (3.0, 3.0), "large": (7.0, 7.0), "long": (2.2, 9.5)}

RECIPE = [
    *("sampling.batch=32", "sampling.mix.40x=0", "sampling.mix.10x=0", "sampling.mix.5x=0"),
    *("views.crops.global_px=56", "views.crops.local_px=28", "views.crops.local_crops=0", "views.colour.blur=0,0,0"),
    *("backbone.width=64", "backbone.depth=3", "backbone.heads=2", "backbone.image_px=56", "optim.patch_rate=1"),
    *("schedule.rate=0.016", "schedule.momentum=0.98,0.98", "objective.head.prototypes=8", "saving.every=1000000"),
    *("compute.precision=fp32", "compute.threads=1", "loader.threads=1", "looking.picture=0", "looking.probe=0"),
]


def main() -> None:
    """Train and judge with every seed, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--slides", type=int, default=4, help="to train on, of each shape at each site")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes to all arms")
    parser.add_argument("--runs", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    torch.set_num_threads(1)
    figures = []
    with tempfile.TemporaryDirectory(prefix="guide-") as scratch:
        folder = given.runs or Path(scratch)
        _make_shards(folder / "shards", slides=1 if given.quick else given.slides)
        held = _held_out(slides=2 if given.quick else 6)
        for seed in given.seeds[: 1 if given.quick else None]:
            run, changes = folder / f"run-{seed}", [*RECIPE, "guide.institution=-1", *given.set]
            changes += [f"sampling.seed={seed}", f"schedule.steps={4 if given.quick else given.steps}"]
            changes += ["saving.erase_tiles=32"] if given.quick else []
            seconds = _train(folder / "shards", run, changes)
            figures += _judged(f"untrained, seed {seed}", untrained(run), held)
            backbone, _ = load_run(run)
            eraser, backbone.eraser = backbone.eraser, None  # to the bit what a run without a guide is
            figures += _judged(f"trained, no guide, seed {seed}", backbone, held)
            backbone.eraser = eraser
            figures += _judged(f"institution erased, seed {seed}", backbone, held)
            last = {name: round(value, 3) for name, value in read_metrics(run)[-1].items() if "loss" in name}
            print(table(figures[-_EACH:]))
            print(f"seed {seed}: {seconds:.0f} s; {last}", flush=True)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=guide"))


def tile(shape: str, site: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(392, 392, 3): blobs of one shape that cover a fifth, on glass of the site's tint."""
    across, along = _RADII[shape]
    count = round(-np.log(1 - _COVERED) * _SIDE**2 / (np.pi * across * along))
    rows, columns = rng.uniform(0, _SIDE, (2, count))
    angles, reach = rng.uniform(0, np.pi, count), int(max(across, along)) + 1
    dark = np.zeros((_SIDE + 2 * reach, _SIDE + 2 * reach), bool)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    for row, column, angle in zip(rows.astype(int), columns.astype(int), angles, strict=True):
        one, other = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        window = (slice(row, row + 2 * reach + 1), slice(column, column + 2 * reach + 1))
        dark[window] |= (one / across) ** 2 + (other / along) ** 2 <= 1
    dark = dark[reach:-reach, reach:-reach]
    density = np.where(dark, rng.uniform(0.9, 1.1), 0.12) + rng.normal(0, 0.03, dark.shape)
    tint = TINTS[SITES.index(site)] * np.exp(rng.normal(0, _SPREAD, 3))  # glass and staining differ within a site, too
    light = 255 * np.minimum(tint, 1) ** (0.5 + 2.5 * density[..., None])
    return np.clip(light, 0, 255).astype(np.uint8)


def _cells(slides: int) -> Iterator[tuple[str, str]]:
    yield from ((shape, site) for shape in SHAPES for site in SITES for _ in range(slides))


def _make_shards(out: Path, slides: int) -> None:
    if out.exists():
        return
    for number, (shape, site) in enumerate(_cells(slides)):
        rng = np.random.default_rng(number)
        add_slide(
            out, number, {"20x": 24}, lambda *_, s=shape, i=site, r=rng: tile(s, i, r), tissue=shape, institution=site
        )


def _held_out(slides: int, tiles: int = 16) -> tuple[Task, Task]:
    """The same tiles as two tasks: which shape, and which site; every second slide is judged on."""
    images, shapes, sites, groups = [], [], [], []
    for number, (shape, site) in enumerate(_cells(slides)):
        rng = np.random.default_rng((1, number))
        images += [encoded(tile(shape, site, rng)) for _ in range(tiles)]
        shapes += [SHAPES.index(shape)] * tiles
        sites += [SITES.index(site)] * tiles
        groups += [number] * tiles
    train = np.array(groups) % 2 == 0
    both = (("shape", SHAPES, shapes), ("site", SITES, sites))
    one, other = (
        Task(name, EncodedTiles(images), np.array(labels), classes, np.array(groups), train)
        for name, classes, labels in both
    )
    return one, other


def _train(shards: Path, run: Path, changes: list[str]) -> float:
    began = time.monotonic()
    words = ["--shards", str(shards), "--run", str(run), "--index", str(run.parent / "index"), "--recipe", "small"]
    with redirect_stdout(io.StringIO()):
        code = pretrain([*words, "--set", *changes])
    if code:
        raise SystemExit(f"{run} ended with {code}")
    return time.monotonic() - began


def _judged(who: str, backbone: Backbone, held: tuple[Task, Task]) -> list[Figure]:
    """By the class token alone, and by the embedding: class token and mean patch token."""
    features = embed_tiles(of_backbone(backbone), held[0].tiles, 0, Inference(torch.device("cpu")))
    width = features.shape[1] // 2
    found = []
    for task in held:
        for name, part in (("class token", features[:, :width]), ("embedding", features)):
            said = {"linear": linear(part, task), "logistic": linear(part, task, [_PENALTY]), "knn": knn(part, task)}
            for how, classes in said.items():
                right = balanced_accuracy(classes, task.labels[task.test], len(task.classes))
                found.append(Figure(who, f"{task.name} told from the {name}, {how}", f"{right:.3f}"))
    return found


if __name__ == "__main__":
    main()
