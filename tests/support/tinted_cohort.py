"""A made cohort: tiles of classes that a shape tells, tinted by the hospital that made them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.evaluation.robustness.sites import Site
from tests.support.labelled_tiles import encoded, task_of


def cohort(classes=2, sites=2, slides=4, tiles=6):
    """Labels, sites and slides (n,) of every class at every site; a slide is of one class."""
    cells = np.array(list(product(range(classes), range(sites), range(slides), range(tiles))))
    labels, site, slide, _ = cells.T
    return labels, site, (labels * sites + site) * slides + slide


def task_with_sites(labels, sites, slides, patients=None, names="ABCDEFGH", **more):
    """A task of these numbers, with one column of sites, -1 where none is known."""
    column = Site.of("scanner", [names[n] if n >= 0 else None for n in sites])
    task = task_of(labels, np.arange(len(labels)) % 3 > 0, slides, [b""] * len(labels))
    return replace(task, sites=(replace(column, **more),), patients=patients)


def one_hot(numbers, noise=0.0, seed=0):
    """(n, S) features that tell these numbers and, with noise, little else."""
    rng = np.random.default_rng(seed)
    return np.eye(int(numbers.max()) + 1)[numbers] + noise * rng.normal(size=(len(numbers), int(numbers.max()) + 1))


TINTS = np.array([(200, 120, 150), (120, 160, 200), (160, 200, 120)])


def write_tinted(path, side=32, **numbers):
    """A table of tiles: the class is how stripes run, the hospital is the tint. Returns labels, sites, slides."""
    labels, sites, slides = cohort(**numbers)
    rng = np.random.default_rng(0)
    images = []
    for label, site in zip(labels, sites, strict=True):
        stripe = 30 * np.sin(np.arange(side) * 0.8 + rng.uniform(0, 6))
        stripes = np.broadcast_to(stripe[:, None] if label else stripe[None, :], (side, side))
        tile = TINTS[site] + stripes[..., None] + rng.integers(-8, 9, (side, side, 3))
        images.append(encoded(np.clip(tile, 0, 255).astype(np.uint8)))
    columns = {"label": [("across", "along")[n] for n in labels], "group": [f"slide {n}" for n in slides]}
    pq.write_table(pa.table({"image": images, "institution": [f"hospital {n}" for n in sites], **columns}), path)
    return labels, sites, slides
