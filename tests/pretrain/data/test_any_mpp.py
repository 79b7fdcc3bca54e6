"""Any um/px from stored tiles: what is drawn, from what, and what is then seen."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from pretrain.compute.randomness import Places
from pretrain.data.columns import TileNumbers
from pretrain.data.fields import fields
from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings, read_tile
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.data.scales.blocks import Blocks
from pretrain.data.scales.cut import AnyMpp, shrink
from pretrain.views.crops import CropSettings, TileScales, crop, plan_crops
from tests.support.painted import APART_UM, WIDE_UM, nuclei, width_and_offset
from tests.support.prepared import prepare
from tests.support.shard_folders import MPP, add_slide
from wsi_prep.curation.exchange.stored import Wanted
from wsi_prep.curation.exchange.tables import write_tables
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX

LACKING = "NOT (magnification = '40x' AND row = 1 AND col = 1)"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Slides that lack a magnification each, or the neighbours that make blocks."""
    folder = tmp_path_factory.mktemp("painted") / "out"
    add_slide(folder, 1, {"40x": 16, "20x": 16, "10x": 12, "5x": 3}, nuclei)
    add_slide(folder, 2, {"20x": 20, "10x": 4}, nuclei, institution="A")
    add_slide(folder, 3, {"40x": 8, "10x": 8}, nuclei)
    return folder


def sampler(out, where=None, batch=8, **settings):
    index = open_index([str(out)], out.parent / "index", where)
    return Sampler(index, SamplingSettings(batch=batch, any_mpp=True, **settings))


def catalog(index):
    """Of each tile of the index its slide, magnification, row and col, where shard_folders puts it."""
    places = {}
    for cell in index.cells:
        for tile in range(int(cell["start"]), int(cell["start"] + cell["count"])):
            at = index.address(tile).index
            places[tile] = (int(cell["slide"]), int(cell["magnification"]), at // 4, at % 4)
    return places


@pytest.mark.parametrize("where", [None, LACKING, "magnification = '20x' AND row % 2 = 0"])
def test_blocks_are_two_by_two_and_all_there_is(out, where):
    index = open_index([str(out)], out.parent / "index", where)
    places = catalog(index)
    tile_at = {place: tile for tile, place in places.items()}
    blocks, found = Blocks(index), set()
    for number, count in enumerate(blocks.count.tolist()):
        found |= set(map(tuple, blocks.tiles(np.full(count, number), np.arange(count)).tolist()))
    expected = set()
    for slide, magnification, row, col in places.values():
        block = [(slide, magnification, row + y, col + x) for y in (0, 1) for x in (0, 1)]
        if all(place in tile_at for place in block):
            expected.add(tuple(tile_at[place] for place in block))
    assert found == expected
    assert bool(found) == (where is None or where == LACKING)


def serving(sampler):
    """The slow, plain rule: of a um/px (number of a cell, its weight) of all that serve it, by a tile or a block."""
    index, alone = sampler.index, sampler.settings.alone
    size = {}
    for row in sampler.strata:
        size[row["magnification"], row["institution"]] = row["tiles"] ** sampler.settings.alpha / row["slides"]
    cells = []
    for number, (cell, blocks) in enumerate(zip(index.cells, Blocks(index).count.tolist(), strict=True)):
        institution = index.names["institution"][index.slides["institution"][cell["slide"]]]
        weight = size[list(MPP)[cell["magnification"]], institution]
        cells.append((number, weight, float(cell["mpp"]), 2 if blocks else alone))
    return lambda mpp: [(number, weight) for number, weight, own, most in cells if own <= mpp <= own * most]


DENSITIES = [(), ((0.25, 1.0), (0.5, 3.0), (1.9, 0.5)), ((0.3, 0.0), (0.6, 1.0), (4.0, 1.0))]


@pytest.mark.parametrize("where", [None, LACKING, "magnification != '20x'", "slide_id LIKE 'slide3%'"])
@pytest.mark.parametrize("density", DENSITIES)
def test_um_per_px_follow_the_density_over_whatever_tiles_there_are(out, where, density):
    draws = sampler(out, where, density=density)
    mpps = np.concatenate([draws.draw(step).wanted for step in range(500)]).astype(float)
    knots = density or ((0.25, 1.0), (2.0, 1.0))
    bins = np.exp(np.linspace(np.log(knots[0][0]), np.log(knots[-1][0]), 41))
    fine = np.exp(np.linspace(np.log(knots[0][0]), np.log(knots[-1][0]), 4001))
    middle = np.sqrt(fine[1:] * fine[:-1])
    by_rule = serving(draws)
    there = np.array([bool(by_rule(mpp)) for mpp in middle])
    mass = np.interp(np.log(middle), np.log([m for m, _ in knots]), [w for _, w in knots]) * there
    expected = mass.reshape(40, 100).sum(1)
    full = expected > 0.02 * expected.max()
    expected = np.append(expected[full], expected[~full].sum() + 1e-9)
    found = np.histogram(mpps, bins)[0]
    found = np.append(found[full], found[~full].sum())
    assert found.sum() == len(mpps)
    expected *= len(mpps) / expected.sum()
    many = expected >= 5
    assert (found[~many] <= 15).all()
    assert stats.chisquare(found[many], expected[many] * found[many].sum() / expected[many].sum()).pvalue > 1e-3
    lost = 1 - there.mean() if not density else None
    said = [line for line in draws.warnings if "of the density" in line]
    assert bool(said) == (not there.all())
    if lost:
        assert f"{lost:.1%}"[:2] in said[0]


def test_slides_are_drawn_by_their_weight_among_those_that_serve(out):
    draws = sampler(out, batch=4)
    index = draws.index
    by_rule = serving(draws)
    expected, found, chance = (np.zeros(len(index.cells)) for _ in range(3))
    for step in range(2000):
        draw = draws.draw(step)
        for tile, mpp in zip(draw.tile, draw.wanted, strict=True):
            number = int(np.searchsorted(index.cells["start"] + index.cells["count"], tile, side="right"))
            found[number] += 1
            if not step % 10:
                cells = by_rule(float(mpp))
                for one, weight in cells:
                    expected[one] += weight / sum(weight for _, weight in cells)
    cells = draws.cells
    chance[np.searchsorted(index.cells["start"], cells.start)] = cells.chance
    assert chance.sum() == pytest.approx(1)
    assert chance * expected.sum() == pytest.approx(expected, abs=4 * np.sqrt(expected.max()))
    drawn = chance > 0
    assert found[~drawn].sum() == 0
    # a double is drawn again from its own slide, so the shares of slides stay
    assert stats.chisquare(found[drawn], chance[drawn] * found.sum()).pvalue > 1e-3
    targets = {row["magnification"]: 0.0 for row in draws.strata}
    for row in draws.strata:
        targets[row["magnification"]] += row["target"]
    assert targets == pytest.approx({"40x": 1 / 3, "20x": 1 / 3, "10x": 1 / 3, "5x": 0.0}, abs=0.02)


def test_a_tile_serves_alone_and_a_block_beyond_and_nothing_is_made_larger(out):
    draws = sampler(out, batch=16)
    places = catalog(draws.index)
    for step in range(60):
        draw = draws.draw(step)
        for row, tile in enumerate(draw.tile):
            of_tile = list(MPP.values())[places[int(tile)][1]]
            times = draw.wanted[row] / of_tile
            assert 1 - 1e-6 <= times <= 2 + 1e-6
            needed = draw.needed(row)
            assert len(needed) == (1 if times <= 1.4 else 4)
            own = draw.mpp[row] / draw.wanted[row]  # within a pixel of the block
            assert draw.mpp[row] == of_tile if times <= 1.4 else 1 - 1e-6 < own < 1 + 1 / 500
            assert len({places[int(one)][:2] for one in needed}) == 1


def crops_of(draws, steps, cut):
    """Each crop with its um/px and where its upper left corner lies on its slide, in um."""
    places = catalog(draws.index)
    with Loader(draws, LoaderSettings(threads=2)) as loader:
        for batch in loader.batches(0, steps):
            draw = batch.draw
            scales = TileScales(draw.mpp, draw.wanted)
            windows, _ = plan_crops(cut, Places(0, batch.step, draw.position), scales)
            images = crop(batch.pixels, windows)
            mpps = windows.mpp(draw.mpp)[:, 0]
            for row, tile in enumerate(draw.tile):
                _, magnification, down, right = places[int(tile)]
                stored = list(MPP.values())[magnification]
                step = draw.any_mpp.side[row] / TILE_PX  # stored px of a px of the picture
                at = np.array([windows.x0[row, 0], windows.y0[row, 0]]) * step + draw.any_mpp.corner[row]
                corner = (at + np.array([right, down]) * TILE_PX) * stored
                yield images[row, 0].numpy() * 255, mpps[row], corner, float(draw.wanted[row])


def test_a_nucleus_keeps_its_size_and_place_at_every_um_per_px(out):
    cut = CropSettings(global_crops=1, local_crops=0, scale=(1.0, 1.0), aspect=1.0, flips=False)
    seen, magnified = [], []
    for image, mpp, corner, wanted in crops_of(sampler(out, seed=3), 20, cut):
        assert mpp == pytest.approx(wanted, rel=1e-6)
        middle = corner + 112 * mpp
        nucleus = (np.floor(middle / APART_UM) + 0.5) * APART_UM  # of those nearest the middle of the crop
        x, y = (nucleus - corner) / mpp
        across, off_x = width_and_offset(image[int(y)], x)
        down, off_y = width_and_offset(image[:, int(x)], y)
        assert abs(across - WIDE_UM / mpp) < 1
        assert abs(down - WIDE_UM / mpp) < 1
        assert max(abs(off_x), abs(off_y)) < 0.5
        seen.append(across * mpp)
        magnified.append(mpp)
    assert np.mean(seen) == pytest.approx(WIDE_UM, rel=0.02)
    assert min(magnified) < 0.27
    assert max(magnified) > 1.85


@pytest.mark.parametrize("side", [549, 640, 784])
def test_pictures_of_blocks_are_pillows(side):
    """Put together out of tiles, and made smaller."""
    block = np.random.default_rng(side).integers(0, 256, (784, 784, 3)).astype(np.uint8)
    corner = np.array([784 - side, (784 - side) // 3])
    how = AnyMpp(np.ones(1, np.float32), np.ones((1, 3), int), corner[None], np.array([side]))
    picture, out = np.zeros((side, side, 3), np.uint8), np.empty((392, 392, 3), np.uint8)
    for number, (y, x) in enumerate([(0, 0), (0, 392), (392, 0), (392, 392)]):
        how.put(0, number, block[y : y + 392, x : x + 392], picture)
    x, y = corner.tolist()
    assert np.array_equal(picture, block[y : y + side, x : x + side])
    shrink(picture, out)
    pillows = Image.fromarray(picture).resize((392, 392), Image.Resampling.BICUBIC)
    differ = np.abs(out.astype(int) - np.asarray(pillows))
    assert differ.max() <= 2  # of noise from black to white
    assert differ.mean() < 0.1


@pytest.mark.parametrize("cut", [CropSettings(), CropSettings(right_angles=True, local_px=112)])
def test_crops_lie_in_their_tiles_and_carry_their_um_per_px(out, cut):
    draws = sampler(out, batch=16)
    for step in range(20):
        draw = draws.draw(step)
        for windows in plan_crops(cut, Places(1, step, draw.position), TileScales(draw.mpp, draw.wanted)):
            for start, size in ((windows.x0, windows.width), (windows.y0, windows.height)):
                assert (start >= 0).all()
                assert (start + size <= TILE_PX + 1e-6).all()
            mpp = windows.mpp(draw.mpp)
            assert (mpp / draw.wanted[:, None] < 1 / 0.9 + 1e-6).all()
            assert (mpp / draw.wanted[:, None] > 1 / 1.1 - 1e-6).all()


def batches(draws, start=0, stop=4, threads=2, **settings):
    with Loader(draws, LoaderSettings(threads=threads), **settings) as loader:
        return [(b.pixels.clone(), b.mpp.clone(), b.wanted.clone()) for b in loader.batches(start, stop)]


def test_resume_threads_and_ranks_change_nothing(out):
    draws = sampler(out)
    whole = batches(draws)
    for again in (batches(draws, start=2), batches(sampler(out), start=2, threads=1)):
        for mine, theirs in zip(again, whole[2:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    shares = [batches(draws, rank=rank, world=2) for rank in range(2)]
    for parts, together in zip(zip(*shares, strict=True), whole, strict=True):
        for some, all_of_it in zip(zip(*parts, strict=True), together, strict=True):
            assert torch.equal(torch.cat(some), all_of_it)


def test_a_broken_tile_of_a_block_is_replaced_by_what_serves_the_same(tmp_path):
    folder = tmp_path / "out"
    add_slide(folder, 1, {"20x": 40}, nuclei)
    draws = sampler(folder, density=((0.9, 1.0), (1.0, 1.0)))
    before = draws.draw(0)
    address = draws.index.address(int(before.needed(3)[2]))
    broken = [row for row in range(8) if address in draws.index.addresses(before.needed(row))]
    with (folder / address.path).open("r+b") as file:
        file.seek(address.offset + address.nbytes // 2)
        file.write(b"\0\0\0\0\0\0")
    with Loader(draws) as loader:
        batch = next(loader.batches(0, 1))
        assert torch.equal(batch.wanted, torch.from_numpy(before.wanted))
        others = [row for row in range(8) if batch.draw.tile[row] != before.tile[row]]
        assert others == broken
        assert loader.bad.bad >= len(broken)
        assert list(loader.bad.named) == [address.name]
        assert loader.bad.read == 4 * (8 + loader.bad.bad) - 0
    for row in range(8):
        assert address not in draws.index.addresses(batch.draw.needed(row))


def test_a_cohort_hardly_larger_than_a_batch_keeps_its_density(tmp_path):
    folder = tmp_path / "out"
    add_slide(folder, 1, {"20x": 8}, nuclei)
    draws = sampler(folder, density=((0.5, 1.0), (1.0, 1.0)))
    mpps = np.concatenate([draws.draw(step).wanted for step in range(200)])
    assert stats.kstest(np.log(mpps), "uniform", (np.log(0.5), np.log(2))).pvalue > 1e-3


def test_a_magnification_without_a_share_of_the_mix_is_not_read(out):
    draws = sampler(out, mix={"20x": 0.1, "10x": 0.9})
    places = catalog(draws.index)
    read = {places[int(tile)][1] for step in range(50) for tile in draws.draw(step).tile}
    assert {list(MPP)[number] for number in read} == {"20x", "10x"}
    assert min(draws.draw(0).wanted) >= 0.5


def test_what_guides_a_training_is_the_um_per_px_that_is_seen_and_the_mean_of_a_block(out):
    draws = sampler(out, batch=16)
    mpp, focus = fields(draws, ["mpp", "focus"])
    every = [draws.draw(step) for step in range(400)]
    wanted = np.concatenate([draw.wanted for draw in every])
    assert (mpp.mean, mpp.spread) == pytest.approx((wanted.mean(), wanted.std()), rel=0.03)
    assert mpp.labels(every[0]) == pytest.approx((every[0].wanted - mpp.mean) / mpp.spread, rel=1e-5)
    for row in range(16):  # whose focus is a hundredth of its place in its array
        each = [draws.index.address(int(tile)).index / 100 for tile in every[0].needed(row)]
        assert focus.labels(every[0])[row] == pytest.approx((np.mean(each) - focus.mean) / focus.spread, abs=1e-5)


@pytest.mark.parametrize(
    ("where", "density", "says"),
    [
        (None, ((5.0, 1.0), (8.0, 1.0)), "no tile that can be drawn serves 5 to 8 um/px"),
        ("magnification = '5x'", (), "finest tiles' um/px to 2, and these have 2"),
    ],
)
def test_what_no_tile_serves_is_refused(out, where, density, says):
    with pytest.raises(BadOption, match=says):
        sampler(out, where, batch=2, density=density)


def test_blocks_in_an_object_store_are_read_by_ranges(object_server, out, tmp_path):
    object_server.upload(out, "painted/")
    here = sampler(out, batch=16)
    there = Sampler(open_index("s3://slides/painted", tmp_path / "index"), here.settings)
    for mine, its in zip(batches(here, stop=2), batches(there, stop=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
    assert max(len(there.draw(0).needed(row)) for row in range(16)) == 4


def test_tiles_of_tables_serve_alone(out, tmp_path):
    write_tables(Wanted(out, "true", 0), tmp_path / "tables", 1_000_000_000)
    draws = Sampler(open_index(tmp_path / "tables", tmp_path / "index"), SamplingSettings(batch=8, any_mpp=True))
    assert "no tile that can be drawn serves 0.35 to 0.5, 0.7 to 1, 1.4 to 2 um/px" in draws.warnings[0]
    assert {len(draws.draw(step).needed(row)) for step in range(20) for row in range(8)} == {1}


@pytest.mark.parametrize("slide", ["he_slide", "cmu_slide"])
def test_a_block_is_what_the_slide_stage_made_at_half_the_magnification(slide, request, tmp_path):
    prepare(request.getfixturevalue(slide), tmp_path / "out", "20x 10x")
    index = open_index([str(tmp_path / "out")], tmp_path / "index")
    row, col, blocks = TileNumbers(index, "row"), TileNumbers(index, "col"), Blocks(index)
    fine, coarse = index.cells[0], index.cells[1]
    rows = int(coarse["start"]) + np.arange(int(coarse["count"]))
    at = dict(zip(zip(row[rows].tolist(), col[rows].tolist(), strict=True), rows.tolist(), strict=True))
    compared = 0
    for block in blocks.tiles(np.zeros(blocks.count[0], int), np.arange(blocks.count[0])):
        assert fine["start"] <= block.min() <= block.max() < fine["start"] + fine["count"]
        half = (float(row[block[:1]][0]) / 2, float(col[block[:1]][0]) / 2)
        if half not in at:
            continue
        tiles = [read_tile(index.address(int(tile))) for tile in block]
        small = np.empty((392, 392, 3), np.uint8)
        shrink(np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]), small)
        stored = read_tile(index.address(at[half])).astype(int)
        assert np.abs(small - stored).mean() < 0.4 * np.abs(np.roll(small, 4, 1) - stored).mean()
        compared += 1
    assert compared >= 2
