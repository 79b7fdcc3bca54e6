"""Makes the sample slides that are missing: `make samples`, or `mixmag samples --to FOLDER`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sample_slides.fetch import NotFetched, fetch_cmu, is_cmu
from sample_slides.layout import make_layout
from sample_slides.pyramid import paint_levels, write_svs, write_tiff
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain, ihc_stain

CMU = "CMU-1-Small-Region.svs"
_TILE = 256


def he_svs(path: Path, width: int = 8000, height: int = 7200, mpp: float = 0.25) -> NDArray[np.bool_]:
    """H&E slide in Aperio's layout, with pen and dust beside the tissue; returns the known mask (see Layout.mask)."""
    layout = make_layout(width, height, mpp, seed=1, marks=True)
    write_svs(path, make_scene(layout, he_stain(mpp, seed=2), seed=3).paint, width, height, mpp, _TILE)
    return layout.mask


def ihc_svs(path: Path, width: int = 5200, height: int = 6600, mpp: float = 0.2527) -> NDArray[np.bool_]:
    """Pale IHC slide in Aperio's layout; returns the known mask (see Layout.mask)."""
    layout = make_layout(width, height, mpp, seed=11, marks=False)
    write_svs(path, make_scene(layout, ihc_stain(), seed=13).paint, width, height, mpp, _TILE)
    return layout.mask


def nompp_tiff(path: Path, width: int = 3500, height: int = 4000, mpp: float = 0.5) -> NDArray[np.bool_]:
    """H&E slide drawn at `mpp` um/px that says so nowhere, as a generic TIFF; returns the known mask."""
    layout = make_layout(width, height, mpp, seed=21, marks=False)
    scene = make_scene(layout, he_stain(mpp, seed=22), seed=23)
    tiles, levels = paint_levels(scene.paint, width, height, (2, 4), _TILE)
    write_tiff(path, tiles, (width, height), levels, _TILE)
    return layout.mask


SYNTHETIC: dict[str, Callable[[Path], NDArray[np.bool_]]] = {
    "he_40x.svs": he_svs,
    "ihc_40x.svs": ihc_svs,
    "he_nompp.tiff": nompp_tiff,
}


NAMES = (*SYNTHETIC, CMU)
FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.csv"


def mask_path(slide: Path) -> Path:
    """Where the known mask of a synthetic slide lies: `he_40x.mask.png` beside `he_40x.svs`."""
    return slide.with_suffix(".mask.png")


def make_synthetic(slide: Path, build: Callable[[Path], NDArray[np.bool_]]) -> None:
    """Make `slide` and its mask by `build`, aside first, so that neither ever stands half written."""
    import cv2  # noqa: PLC0415 - heavy

    with tempfile.TemporaryDirectory(prefix=".making-", dir=slide.parent) as folder:
        aside = Path(folder) / "slide.part"
        mask = build(aside)
        encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
        mask_aside = Path(folder) / "mask.part"
        mask_aside.write_bytes(encoded.tobytes())
        mask_aside.replace(mask_path(slide))
        aside.replace(slide)


def make_cmu(slide: Path) -> None:
    """Fetch the real slide, aside first."""
    with tempfile.TemporaryDirectory(prefix=".making-", dir=slide.parent) as folder:
        aside = Path(folder) / "slide.part"
        fetch_cmu(aside)
        aside.replace(slide)


def make_missing(folder: Path, names: Sequence[str], say: Callable[[str], object] = print) -> None:
    """Make those of `names` that `folder` lacks, a line for each; WsiPrepError where one must not be used."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        slide = folder / name
        if is_cmu(slide) if name == CMU else slide.is_file() and mask_path(slide).is_file():
            continue
        say(f"{'fetching' if name == CMU else 'making'} {slide}")
        if name != CMU:
            make_synthetic(slide, SYNTHETIC[name])
            continue
        try:
            make_cmu(slide)
        except NotFetched as error:
            say(f"{CMU} is left out: {error}")


def write_manifest(folder: Path) -> None:
    """Write the manifest of those sample slides that are in `folder`, unless a manifest.csv is there."""
    manifest = folder / MANIFEST.name
    if manifest.exists():
        return
    head, *rows = MANIFEST.read_text().splitlines()
    there = [row for row in rows if (folder / row.partition(",")[0]).is_file()]
    if there:
        manifest.write_text("\n".join([head, *there, ""]))
