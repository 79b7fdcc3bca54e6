"""A slide whose file is replaced while it is read: nothing of it is stored, and the next try makes the new one."""

import contextlib
import shutil
import zlib

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from tests.soak.slides import MPP, Slide, painted, under
from wsi_prep.run import slide as prepare
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK, STAGING
from wsi_prep.tiles.plan import PlanSettings

SLIDE = Slide.of(0, "deflate", 0)


def write(path, version):
    """Uncompressed, so that both versions have their tiles at the same places of the file."""
    scale = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": 3}
    pixels = painted(SLIDE, version).pixels
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, **scale)


@pytest.fixture
def out(tmp_path):
    out = tmp_path / "out"
    for name in ("slides", "tiles"):
        (out / "catalog" / name).mkdir(parents=True)
    (out / LOCK).write_text("token")
    return out


def make(path, out):
    (source,) = find_slides(str(path))
    settings = PrepareSettings(PlanSettings(("20x", "10x")))
    return prepare.prepare_slide(SlideTask(source, EMPTY_ROW, None, settings, str(out), "token"))


def stored(row, out):
    """Each tile as it is stored, with the place that it is of."""
    for tile in pq.read_table(out / "catalog/tiles" / f"{row['slide_id']}.parquet").to_pylist():
        data = (out / tile["shard"]).read_bytes()[tile["offset"] :][: tile["nbytes"]]
        assert zlib.crc32(data) == tile["crc32"]
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        yield (tile["magnification"], tile["row"], tile["col"]), picture.astype(float)


def replaced_after_opening(monkeypatch, replace):
    """Somebody replaces the file when the first slide from now on has been opened."""
    opened, waiting = prepare.opened, [replace]

    @contextlib.contextmanager
    def opening(*arguments):
        with opened(*arguments) as slide:
            if waiting:
                waiting.pop()()
            yield slide

    monkeypatch.setattr(prepare, "opened", opening)


def test_a_slide_that_is_written_over_while_it_is_read_is_no_mixture_of_both(tmp_path, out, monkeypatch):
    path = tmp_path / "slide.tiff"
    write(path, 1)
    replaced_after_opening(monkeypatch, lambda: write(path, 2))
    row = make(path, out)
    assert (row["status"], row["error_type"]) == ("failed", "SlideChanged")
    assert row["error"] == "the file was changed while it was read, as by a copy under way; repeat the command"
    assert not (out / "stores").exists()
    assert not list((out / "catalog/tiles").iterdir())
    assert not list((out / STAGING).iterdir())

    row = make(path, out)
    assert row["status"] == "ok"
    tiles = dict(stored(row, out))
    assert tiles.keys() == SLIDE.tiles()
    for place, pixels in tiles.items():
        assert np.abs(pixels.mean((0, 1)) - under(painted(SLIDE, 2), *place).mean((0, 1))).max() < 3


def test_a_copy_that_begins_while_the_slide_is_read_is_not_called_damage(tmp_path, out, monkeypatch):
    path = tmp_path / "slide.tiff"
    write(path, 1)
    half = path.read_bytes()[: path.stat().st_size // 2]
    replaced_after_opening(monkeypatch, lambda: path.write_bytes(half))
    assert make(path, out)["error_type"] == "SlideChanged"
    row = make(path, out)  # the copy broke off: now it is
    assert (row["status"], row["error_type"]) == ("failed", "DamagedSlide")


def test_a_slide_that_only_gets_a_new_name_of_the_same_content_is_made(tmp_path, out, monkeypatch):
    path = tmp_path / "slide.tiff"
    write(path, 1)
    shutil.copy(path, tmp_path / "again")
    replaced_after_opening(monkeypatch, lambda: (tmp_path / "again").rename(path))
    assert make(path, out)["status"] == "ok"
