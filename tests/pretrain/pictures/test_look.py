"""The picture of what the teacher sees: its components, its neighbours, and what it does not disturb."""

from collections import defaultdict
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pretrain.data.index import open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.pictures.canvas import GAP, MARGIN, line
from pretrain.pictures.feature_picture import (
    FeaturePictures,
    LookSettings,
    as_colours,
    nearest,
    principal_components,
    save_picture,
)
from tests.support.shard_folders import MPP, add_slide
from wsi_prep.errors import BadOption
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.tiles.store import StoreWriter

CPU = torch.device("cpu")
CAPTIONED = 96  # px across of a tile with a caption
LEFT_OUT = "no nearest neighbours are shown: there is no tile of another slide"


def add_tiles(out, number, tiles):
    """Commit a slide with these (392, 392, 3) uint8 tiles at 20x."""
    slide_id = f"slide{number}-{number:08x}"
    catalog = Catalog(out)
    catalog.create()
    store = out / "stores" / f"{slide_id}.zarr"
    store.parent.mkdir(exist_ok=True)
    writer = StoreWriter(store, defaultdict(JpegSettings), attributes={})
    rows = []
    for pixels in tiles:
        at = writer.append("20x", encode_tile(pixels, JpegSettings()))
        rows.append(
            {"slide_id": slide_id, "magnification": "20x", "mpp": MPP["20x"], "array": f"stores/{slide_id}.zarr/20x"}
            | {"shard": f"stores/{slide_id}.zarr/{at.shard}"}
            | {field: getattr(at, field) for field in ("index", "offset", "nbytes", "crc32")}
        )
    writer.close()
    given = {"stain": "HE", "institution": "unknown", "tissue": "unknown", "status": "ok"}
    counts = {f"tiles_{name}": len(tiles) * (name == "20x") for name in MPP}
    row = dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": slide_id} | given | counts
    catalog.commit(row, pa.Table.from_pylist(rows, TILE_SCHEMA))


def mottled(seed, base=None):
    """A tile of coloured squares a patch large, or of small changes to another tile."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (28, 28, 3)).repeat(14, 0).repeat(14, 1)
    return (squares if base is None else (0.95 * base + 0.05 * squares)).astype(np.uint8)


def lookout(out, **settings):
    index = open_index([str(out)], out.parent / "index")
    return FeaturePictures(
        Sampler(index, SamplingSettings(batch=1)), LookSettings(**{"gallery": 40, "px": 56, **settings})
    )


def backbone():
    torch.manual_seed(0)
    return Backbone(BackboneSettings(width=32, depth=1, heads=2, layer_scale=0.0, image_px=112))


def drawn(watched, step=0):
    return np.asarray(watched.draw(backbone(), step, CPU))


def rows_of(sheet, pixels, x=MARGIN):
    """Where down the sheet these pixels stand at `x`."""
    height, width = pixels.shape[:2]
    part = sheet[:, x : x + width]
    return [
        y
        for y in range(len(sheet) - height + 1)
        if (part[y] == pixels[0]).all() and (part[y : y + height] == pixels).all()
    ]


def says(sheet, text):
    return bool(rows_of(sheet, np.asarray(line(text, 720)), x=0))


@pytest.mark.parametrize(
    "wrong",
    [{"tiles": 0}, {"queries": 7}, {"queries": -1}, {"neighbours": 0}, {"gallery": 0}, {"px": 393}, {"seed": -1}],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BadOption, match=f"{next(iter(wrong))} {next(iter(wrong.values()))} is not between"):
        LookSettings(**wrong)


def test_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(1)
    tokens = (rng.normal(size=(300, 24)) @ rng.normal(size=(24, 24)) + 5).astype(np.float32)
    along = principal_components(tokens)
    _, _, axes = np.linalg.svd(tokens.astype(np.float64) - tokens.mean(0, dtype=np.float64), full_matrices=False)
    for component, axis in zip(along.T, axes[:3], strict=True):
        positive = axis if axis.max() > -axis.min() else -axis
        np.testing.assert_allclose(component, (tokens - tokens.mean(0, dtype=np.float64)) @ positive, atol=1e-6)


def test_the_sign_of_a_component_does_not_depend_on_the_number_of_tokens():
    tokens = np.random.default_rng(2).normal(size=(200, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
    twice = principal_components(np.concatenate([tokens, tokens]))
    np.testing.assert_allclose(twice[:200], principal_components(tokens), atol=1e-6)


def test_colours_reach_from_the_second_to_the_98th_percentile():
    along = np.stack([np.arange(101.0), -np.arange(101.0), np.full(101, 3.0)], 1)
    colours = as_colours(along)
    assert (colours[:3, 0] == 0).all()
    assert (colours[98:, 0] == 255).all()
    np.testing.assert_allclose(colours[2:99, 0], np.arange(97) * 255 / 96, atol=0.5)
    assert (colours[:, 1] == colours[::-1, 0]).all()
    assert (colours[:, 2] == 128).all()


def test_the_halves_of_a_tile_have_two_colours(tmp_path):
    halves = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    halves[:, : TILE_PX // 2] = (200, 60, 150)
    halves[:, TILE_PX // 2 :] = (60, 60, 180)
    add_tiles(tmp_path / "out", 1, [halves, np.rot90(halves)])
    watched = lookout(tmp_path / "out", px=112, tiles=2)
    sheet = drawn(watched)
    for place, pixels in enumerate(watched.pixels[:2]):
        x = MARGIN + place * (112 + GAP)
        (y,) = rows_of(sheet, pixels, x)
        colours = sheet[y + 112 + GAP :, x : x + 112][:112].astype(float)
        assert (colours == np.kron(colours[7::14, 7::14], np.ones((14, 14, 1)))).all()  # nearest neighbour
        upright = abs(int(pixels[5, 5, 0]) - int(pixels[5, -5, 0])) > 50
        one, other = np.split(colours if upright else colours.swapaxes(0, 1), 2, axis=1)
        apart = np.abs(one.mean((0, 1)) - other.mean((0, 1)))
        assert apart.max() > 150
        assert max(one.std((0, 1))[apart.argmax()], other.std((0, 1))[apart.argmax()]) < 50


def test_nearest_follows_the_cosine_and_keeps_to_what_is_allowed():
    rng = np.random.default_rng(3)
    query, gallery = rng.normal(size=8).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    allowed = np.arange(30) % 3 > 0
    slow = {
        row: float(sum(a * b for a, b in zip(query, other, strict=True)) / (query @ query * (other @ other)) ** 0.5)
        for row, other in enumerate(gallery)
        if row % 3
    }
    found = nearest(query, gallery, allowed, 5)
    assert [row for row, _ in found] == sorted(slow, key=lambda row: -slow[row])[:5]
    np.testing.assert_allclose([cosine for _, cosine in found], [slow[row] for row, _ in found], atol=1e-6)
    assert len(nearest(query, gallery, np.arange(30) < 2, 5)) == 2


def shown_neighbours(watched, sheet, query):
    """Gallery pixels beside the query, in order, where one query stands in a line."""
    px = watched.pixels.shape[1]
    y = rows_of(sheet, watched.pixels[query])[-1]
    first = MARGIN + CAPTIONED + 2 * GAP
    places = (first + n * (CAPTIONED + GAP) for n in range(watched.settings.neighbours))
    return [sheet[y : y + px, x : x + px] for x in places]


def test_neighbours_are_of_other_slides_though_the_own_are_nearer(tmp_path):
    for slide in range(1, 5):
        base = mottled(slide)
        add_tiles(tmp_path / "out", slide, [mottled(100 * slide + n, base) for n in range(4)])
    watched = lookout(tmp_path / "out", neighbours=4)
    gallery = range(watched.shown, len(watched.slide))
    assert len(gallery) == 16
    sheet = drawn(watched)
    for query in range(2):
        for pixels in shown_neighbours(watched, sheet, query):
            (row,) = (row for row in gallery if (watched.pixels[row] == pixels).all())
            assert watched.slide[row] != watched.slide[query]


def test_the_nearest_is_the_same_tile_in_another_slide(tmp_path):
    for slide in range(1, 5):
        add_tiles(tmp_path / "out", slide, [mottled(10 * (slide // 3) + n) for n in range(3)])  # 1 = 2, 3 = 4
    watched = lookout(tmp_path / "out", neighbours=3)
    sheet = drawn(watched)
    for query in range(2):
        assert (shown_neighbours(watched, sheet, query)[0] == watched.pixels[query]).all()


def test_tiles_of_one_slide_have_no_neighbours(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 4, "5x": 2})
    assert says(drawn(lookout(tmp_path / "out")), LEFT_OUT)
    assert not says(drawn(lookout(tmp_path / "out", queries=0)), LEFT_OUT)
    add_slide(tmp_path / "out", 2, {"20x": 1})
    assert not says(drawn(lookout(tmp_path / "out")), LEFT_OUT)


def test_rows_are_of_their_magnification_and_of_different_slides(tmp_path):
    for slide in range(1, 7):
        add_slide(tmp_path / "out", slide, {"20x": 5, "10x": 1 + slide % 2})
    watched = lookout(tmp_path / "out")
    for number in (1, 2):
        rows = np.flatnonzero(watched.magnification[: watched.shown] == number)
        assert sorted(watched.slide[rows]) == list(range(6))
    assert watched.shown == 12


def test_the_picture_depends_on_nothing_but_the_seed(tmp_path):
    for slide in range(1, 4):
        add_tiles(tmp_path / "out", slide, [mottled(10 * slide + n) for n in range(4)])
    watch = partial(lookout, tmp_path / "out", tiles=4)
    watched = watch()
    first = drawn(watched, 7)
    torch.rand(5)
    assert (first == drawn(watched, 7)).all()
    assert (first == drawn(watch(), 7)).all()
    later = drawn(watched, 8000)
    changed = np.flatnonzero((first != later).any((1, 2)))
    assert len(changed)
    assert changed.max() < MARGIN + 40  # the heading
    assert not np.array_equal(watch(seed=1).pixels[:4], watched.pixels[:4])


def test_modes_and_gradients_are_as_before(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 2})
    model = backbone().train()
    model.vit.norm.eval()
    modes = []
    model.vit.blocks[0].register_forward_hook(lambda block, *_: modes.append((block.training, torch.is_grad_enabled())))
    lookout(tmp_path / "out").draw(model, 0, CPU)
    assert set(modes) == {(False, False)}
    assert all(module.training == (module is not model.vit.norm) for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_centre_is_rounded_down_to_whole_patches(tmp_path):
    add_tiles(tmp_path / "out", 1, [mottled(1)])
    watched = lookout(tmp_path / "out", px=120)
    assert watched.pixels.shape == (2, 120, 120, 3)
    assert len(rows_of(drawn(watched), watched.pixels[0, 4:116, 4:116])) == 1
    with pytest.raises(BadOption, match="holds no patch of 14 px"):
        drawn(lookout(tmp_path / "out", px=13))


def damage(out, tiles):
    """Overwrite the tiles of these row numbers; returns their names."""
    index = open_index([str(out)], out.parent / "index")
    names = []
    for address in index.addresses(np.array(tiles)):
        with (out / address.path).open("r+b") as file:
            file.seek(address.offset)
            file.write(bytes(address.nbytes))
        names.append(address.name)
    return names


def test_a_tile_that_cannot_be_read_is_left_out(tmp_path):
    tiles = [mottled(n) for n in range(4)]
    add_tiles(tmp_path / "out", 1, tiles)
    whole = lookout(tmp_path / "out")
    assert (whole.shown, len(whole.pixels)) == (4, 8)
    (name,) = damage(tmp_path / "out", [2])
    watched = lookout(tmp_path / "out")
    assert set(watched.unreadable) == {name}
    assert "CRC-32" in watched.unreadable[name]
    assert (watched.shown, len(watched.pixels)) == (3, 6)
    sheet = drawn(watched)
    for place, pixels in enumerate(watched.pixels[:3]):
        assert rows_of(sheet, pixels, MARGIN + place * (56 + GAP))


def test_where_no_tile_can_be_read_a_line_says_so(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 2, "5x": 1})
    damage(tmp_path / "out", [0, 1, 2])
    watched = lookout(tmp_path / "out")
    assert (watched.shown, len(watched.pixels), len(watched.unreadable)) == (0, 0, 3)
    assert says(drawn(watched), "no tile can be read")


def test_a_magnification_that_cannot_be_read_keeps_the_others(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 2, "5x": 1})
    index = open_index([str(tmp_path / "out")], tmp_path / "index")
    damage(tmp_path / "out", [n for n in range(3) if "/5x[" in index.address(n).name])
    watched = lookout(tmp_path / "out")
    assert set(watched.magnification.tolist()) == {1}
    drawn(watched)


def test_a_picture_replaces_the_one_before(tmp_path):
    file = tmp_path / "new" / "step.png"
    for grey in (10, 20):
        save_picture(Image.new("RGB", (4, 3), (grey,) * 3), file)
        assert (np.asarray(Image.open(file)) == grey).all()
    assert list(file.parent.iterdir()) == [file]
