"""Tables of labelled tiles become tasks, divided by groups, or are refused in one line."""

import io
import itertools

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from pretrain.data.labelled import EncodedTiles, whole_patches
from pretrain.errors import BadTask
from pretrain.evaluation.tasks import load_tasks
from tests.support.labelled_tiles import TILES, encoded, noise, table


def load_task(spec, limit=0, seed=0):
    (task,) = load_tasks(spec, limit, seed)
    return task


def tiles_of(images, patch_px):
    tiles = EncodedTiles(images)
    return whole_patches([tiles.read(number) for number in range(len(tiles))], patch_px)


def test_a_table_becomes_a_task(tmp_path):
    spec = table(
        tmp_path / "tiles.parquet",
        label=["b", "a", None, "b", "a", "b"],
        group=["s", "s", "s", "t", "t", "t"],
        split=["train"] * 3 + ["test"] * 3,
    )
    task = load_task(spec)
    assert task.name == "tiles"
    assert task.classes == ("a", "b")
    assert task.labels.dtype == task.groups.dtype == np.int64
    assert task.labels.tolist() == [1, 0, 1, 0, 1]
    assert task.train.tolist() == [True, True, False, False, False]
    assert list(task.tiles.images) == [noise(n) for n in (0, 1, 3, 4, 5)]
    np.testing.assert_array_equal(task.groups == task.groups[0], [True, True, False, False, False])


@pytest.mark.parametrize("column", ["slide_id", "slide"])
def test_a_column_of_slides_is_a_group(tmp_path, column):
    slides = [f"s{n // 4}" for n in range(48)]
    task = load_task(table(tmp_path / "t.parquet", label=[0, 1] * 24, **{column: slides}))
    assert task.grouped
    assert not set(np.array(slides)[task.train]) & set(np.array(slides)[task.test])


def test_another_column_holds_the_labels(tmp_path):
    spec = table(tmp_path / "tiles.parquet", label=["a"] * 12, grade=[1, 2, 10] * 4)
    task = load_task(f"{spec}:grade")
    assert task.name == "tiles:grade"
    assert task.classes == ("1", "2", "10")


@pytest.mark.parametrize("slides", [2, 5, 40, 300])
def test_groups_are_never_divided_and_every_class_is_on_both_sides(tmp_path, slides):
    rng = np.random.default_rng(slides)
    group = rng.integers(0, slides, 600)
    label = rng.integers(0, 3, 600)
    task = load_task(table(tmp_path / "t.parquet", label=label, group=[f"slide {g}" for g in group]))
    assert not set(task.groups[task.train]) & set(task.groups[~task.train])
    assert set(task.labels[task.train]) == set(task.labels[~task.train]) == {0, 1, 2}
    if slides >= 40:
        assert np.mean(~task.train) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("column", ["patient", "patient_id", "patient_key"])
def test_no_patient_is_on_both_sides_however_many_slides_it_has(tmp_path, column):
    tiles = range(240)
    columns = {"label": [n % 3 for n in tiles], "group": [f"slide {n // 4}" for n in tiles]}
    whose = [f"patient {n // 24}" if n < 216 else None for n in tiles]  # six slides each; the last six are of nobody
    task = load_task(table(tmp_path / "t.parquet", **columns, **{column: whose}))
    told = np.array([str(name) for name in whose])
    assert not set(told[task.train]) & set(told[task.test]) - {"None"}
    assert len(np.unique(task.owners)) == 9 + 6
    without = load_task(table(tmp_path / "u.parquet", label=columns["label"], **{column: whose}))
    assert without.grouped  # patients alone are enough
    assert not set(told[without.train]) & set(told[without.test]) - {"None"}


def test_a_patient_on_both_sides_of_a_split_is_said(tmp_path):
    columns = {"label": [0, 1] * 6, "group": [f"slide {n // 2}" for n in range(12)]}
    split = ["train"] * 6 + ["test"] * 6
    whose = ["p"] * 4 + ["q"] * 4 + ["r"] * 4
    (said,) = load_task(table(tmp_path / "t.parquet", **columns, split=split, patient=whose)).notes
    assert said.startswith("1 patient is on both sides by the column split: figures may be too high")
    apart = ["p"] * 6 + ["q"] * 6
    assert load_task(table(tmp_path / "u.parquet", **columns, split=split, patient=apart)).notes == ()


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
    task = load_task(table(tmp_path / "t.parquet", label=label, group=group))
    assert task.classes == ("a", "b", "c", "d")
    held = {group for group, train in zip(group, task.train, strict=True) if not train}
    assert held in working


def test_a_class_of_one_group_is_left_out(tmp_path):
    spec = table(tmp_path / "t.parquet", label=list("aabbc") * 4, group=list("pqpqr") * 4)
    task = load_task(spec)
    assert task.classes == ("a", "b")
    assert len(task.labels) == len(task.tiles.images) == 16
    assert set(task.tiles.images) == {noise(n) for n in range(20) if n % 5 < 4}


def test_the_division_does_not_depend_on_the_order_of_rows(tmp_path):
    rng = np.random.default_rng(0)
    label, group, order = rng.integers(0, 2, 200), rng.integers(0, 12, 200), rng.permutation(200)
    first = load_task(table(tmp_path / "a.parquet", label=label, group=group))
    other = load_task(table(tmp_path / "b.parquet", label=label[order], group=group[order]))
    np.testing.assert_array_equal(first.train[order], other.train)


def test_limit_keeps_the_proportions_and_the_rarest(tmp_path):
    rng = np.random.default_rng(1)
    label = rng.choice(["common", "half", "rare"], 1500, p=[0.6, 0.39, 0.01])
    spec = table(tmp_path / "t.parquet", label=label, group=rng.integers(0, 100, 1500))
    whole, task, again, other = (load_task(spec, limit, seed) for limit, seed in ((0, 0), (50, 0), (50, 0), (50, 1)))
    for side in (task.train, ~task.train):
        count = np.bincount(task.labels[side])
        assert count.sum() == 50
        assert count[2] == 1
        assert count[0] == pytest.approx(30, abs=2)
    assert task.tiles.images == again.tiles.images
    assert task.tiles.images != other.tiles.images
    trained = dict(zip(whole.tiles.images, whole.train, strict=True))
    assert [trained[image] for image in task.tiles.images] == task.train.tolist()
    assert len(load_task(spec, 10**6).tiles.images) == 1500


def refused(spec, *words, **options):
    with pytest.raises(BadTask) as caught:
        load_task(spec, **options)
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
    refused(table(path, **good, split=["train", "dev"] * 6), "dev")
    refused(table(path, **good, split=["train", None] * 6), "None")
    refused(table(path, **good, split=["train", "test"] * 6), "2 groups")
    refused(table(path, label=list("abab"), group=["p", "p", None, "q"]), "group is null in 1 rows")
    refused(table(path, **good, image=[b"text"] * 12), "image")
    refused(table(path, **good, image=[noise(0)] * 11 + [None]), "image")
    refused(table(path, **good, image=[noise(0)] * 11 + [noise(0, 18)]), "sizes", "(18, 16)", "(18, 18)")
    pq.write_table(pa.table(good), path)
    refused(str(path), "no column image")


TWO = {"label": list("abab")}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": []}, "the table has no rows"),
        ({"label": pa.nulls(6, pa.string())}, "label is null in every row"),
        ({"label": [float("nan")] * 6}, "label is null in every row"),
        ({"label": ["a"] * 6}, "all 6 tiles are of class a"),
        ({**TWO, "split": ["train"] * 4}, "all 4 tiles are of split train: nothing to judge on"),
        ({**TWO, "split": ["test"] * 4}, "all 4 tiles are of split test: nothing to learn from"),
        ({**TWO, "split": ["val"] * 4}, "all 4 tiles are of split valid: nothing to learn from, nothing to judge on"),
        ({**TWO, "split": ["val", "val", "test", "test"]}, "no tile is of split train: nothing to learn from"),
        ({**TWO, "split": ["val", "val", "train", "train"]}, "no tile is of split test: nothing to judge on"),
        ({**TWO, "split": ["train", "test"] * 2}, "in both splits: train has a, test has b"),
        ({**TWO, "group": ["p"] * 4}, "all 4 tiles are of one slide or case"),
        ({"label": list("aabb"), "group": list("ppqq")}, "a is in 1, b is in 1"),
        ({"label": list("aabb"), "group": list("ppqr")}, "a is in 1, b is in 2"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused_with_the_true_reason(tmp_path, columns, reason):
    refused(table(tmp_path / "t.parquet", **columns), reason)


def test_what_is_left_out_and_what_is_not_known_is_said(tmp_path):
    path = tmp_path / "t.parquet"
    told = load_task(table(path, label=list("aabbc") * 4, group=list("pqpqr") * 4)).notes
    assert told == ("skipped, because they are on one side only: c (4 tiles)",)
    (told,) = load_task(table(path, label=list("ab") * 9)).notes
    assert "is not known" in told
    assert "add a column group" in told
    assert load_task(table(path, label=list("ab") * 9, group=list("pqr") * 6), 4).notes == (
        "8 of 18 tiles, by the limit of 4 a side",
    )


@pytest.mark.skipif(not TILES.is_dir(), reason="needs ../shared/tiles, which is not part of the repository")
@pytest.mark.parametrize(("column", "classes"), [("organ", ("duodenum", "liver")), ("stain", ("HE", "PAS"))])
def test_real_tiles_are_divided_by_case(column, classes):
    task = load_task(f"{TILES / 'atlas_organ_stain.parquet'}:{column}", limit=40)
    assert task.classes == classes
    assert not set(task.groups[task.train]) & set(task.groups[~task.train])
    assert set(task.labels[task.train]) == set(task.labels[~task.train]) == {0, 1}
    assert tiles_of(task.tiles.images[:2], 14).shape == (2, 3, 252, 252)


# pixels


def test_tiles_are_decoded_and_their_middle_cut_out():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    tiles = tiles_of([encoded(pixels), encoded(pixels[::-1].copy())], 5)
    assert tiles.dtype == torch.float32
    middle = pixels[1:16, 1:21].astype(np.float32) / 255
    np.testing.assert_array_equal(tiles[0].permute(1, 2, 0), middle)
    np.testing.assert_array_equal(tiles[1].permute(1, 2, 0), pixels[::-1][1:16, 1:21].astype(np.float32) / 255)


def test_jpegs_are_decoded_as_pillow_does():
    smooth = np.add.outer(np.arange(128), np.arange(128))[:, :, None] * np.array([0.9, 0.5, 0.1]) % 256
    jpeg = encoded(smooth.astype(np.uint8), "JPEG")
    tiles = tiles_of([jpeg], 14)
    assert tiles.shape == (1, 3, 126, 126)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))[1:127, 1:127].transpose(2, 0, 1)
    assert np.abs(tiles[0].numpy() * 255 - expected).max() <= 2
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in ("PNG", "JPEG"):
        assert tiles_of([encoded(grey, kind)], 16).shape == (1, 3, 16, 16)


def saved(pixels, kind, mode=None, **options):
    """A file of any of Pillow's modes, None for the one that the numbers themselves are."""
    image = (
        Image.fromarray(pixels) if mode is None else Image.frombytes(mode, (16, 16), pixels.astype(np.uint8).tobytes())
    )
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pixels_of(image):
    return EncodedTiles([image]).read(0)


def grey_rgb(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def test_sixteen_bits_become_eight():
    deep = np.arange(65536).astype(np.uint16).reshape(256, 256)
    right = grey_rgb((np.arange(65536) * 255 / 65535 + 0.5).astype(int).reshape(256, 256))
    for image in (
        imagecodecs.png_encode(deep),
        tiff(deep, photometric="minisblack"),
        tiff(deep.astype(">u2"), photometric="minisblack", byteorder=">"),
        tiff(65535 - deep, photometric="miniswhite"),
    ):
        np.testing.assert_array_equal(pixels_of(image), right)
    few = tiff(deep[:16] % 4096, photometric="minisblack", bitspersample=12)
    np.testing.assert_array_equal(pixels_of(few)[:, :, 0].ravel(), (np.arange(4096) * 255 / 4095 + 0.5).astype(int))
    for many in (3, 4):  # Pillow takes the upper byte of colours
        image = imagecodecs.png_encode(np.stack([deep, deep, deep, np.full_like(deep, 65535)][:many], axis=2))
        assert np.abs(pixels_of(image).astype(int) - right).max() <= 1


def test_what_is_transparent_is_white_and_the_rest_is_its_colour():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    alpha = np.where(np.arange(256).reshape(16, 16) % 3, 255, 0).astype(np.uint8)
    white = np.where(alpha, grey, 255)
    colours = np.stack([grey, grey[::-1], grey.T, alpha], axis=2)
    seen = np.where(alpha[:, :, None] > 0, colours[:, :, :3], 255)
    np.testing.assert_array_equal(pixels_of(saved(colours, "PNG", "RGBA")), seen)
    np.testing.assert_array_equal(pixels_of(saved(np.stack([grey, alpha], axis=2), "PNG", "LA")), grey_rgb(white))
    half = np.stack([grey, grey, grey, np.full_like(grey, 51)], axis=2)  # a fifth of the colour, four of white
    assert np.abs(pixels_of(saved(half, "PNG", "RGBA")).astype(int) - grey_rgb(grey / 5 + 204)).max() <= 1
    key = np.where(grey == 7, 255, grey)
    np.testing.assert_array_equal(pixels_of(saved(grey, "PNG", transparency=7)), grey_rgb(key))


def test_palettes_and_single_bits_are_their_colours():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey, "L").convert("P")
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(pixels_of(file.getvalue()), palette[np.asarray(image)])
    np.testing.assert_array_equal(pixels_of(saved(grey > 99, "PNG")), grey_rgb(np.where(grey > 99, 255, 0)))


def test_a_tile_that_cannot_be_read_is_named_by_its_table_and_row(tmp_path):
    path = tmp_path / "t.parquet"
    images = [noise(n) for n in range(11)] + [noise(11)[:300]]
    spec = table(path, label=[None, *"ab" * 5, "a"], image=images)
    task = load_task(spec)
    with pytest.raises(BadTask, match=r"t\.parquet: column image, row 11, is no readable image"):
        [task.tiles.read(n) for n in range(len(task.tiles))]


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([noise(0), noise(0, 20)], "sizes"),
        ([b"text"], "readable"),
        ([noise(0)[:300]], "readable"),
        ([b"\xff\xd8text"], "readable"),
        ([noise(0, kind="JPEG")[:-40]], "end is missing"),
        ([saved(np.full((16, 16, 4), 9), "JPEG", "CMYK")], "CMYK"),
        ([saved(np.full((16, 16, 4), 9), "TIFF", "CMYK")], "CMYK"),
        ([saved(np.full((16, 16, 3), 9), "TIFF", "LAB")], "LAB"),
        ([saved(np.full((16, 16), 9, np.int32), "TIFF")], "32 bits"),
        ([saved(np.full((16, 16), 0.5, np.float32), "TIFF")], "floating-point"),
        ([noise(0)], "18 x 16"),
    ],
)
def test_tiles_that_cannot_be_used_are_refused(images, word):
    with pytest.raises(BadTask, match=word) as caught:
        tiles_of(images, 17)
    assert len(str(caught.value).splitlines()) == 1
