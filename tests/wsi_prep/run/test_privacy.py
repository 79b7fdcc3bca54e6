"""What a slide carries beside its pixels, and with PRIVATE=1 its name, is in no byte of the output."""

import csv
import json
import re
import stat
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.shards import main
from sample_slides.make import CMU
from tests.support.paths import REAL, ROOT
from tests.support.private_slides import label_picture, plant, tag_values, worth_searching
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.private import add_names

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.slow]

ALLOWED = ("vendor", "scanner", "objective", "mpp_x", "mpp_y", "width", "height", "reader")
FEW = ["--max-tiles", "5x=1 10x=2 20x=4 40x=4"]


def shards(slides, out, *more):
    return main(["--slides", str(slides), "--out", str(out), "--workers", "1", *map(str, more)])


def slide_rows(out):
    return pq.read_table(out / "catalog/slides").to_pylist()


def texts(out):
    """Every text value of the catalog."""
    found = set()
    for name in ("slides", "tiles"):
        table = pq.read_table(out / "catalog" / name)
        for field in table.schema:
            if pa.types.is_string(field.type):
                found |= set(table[field.name].unique().to_pylist())
    return "\n".join(text for text in found if text is not None)


def everything(out, slide_id=""):
    """Files' names and bytes, with the catalog's values; with `slide_id`, of other slides only what all share."""
    paths = [p for p in out.rglob("*") if slide_id in str(p) or p.relative_to(out).parts[0] in ("catalog", "run.json")]
    names = "\n".join(str(p.relative_to(out)) for p in paths)
    return b"\n".join([p.read_bytes() for p in paths if p.is_file()] + [names.encode(), texts(out).encode()])


def found(words, data):
    """Those of the words that are somewhere in the data; a number counts only where it stands alone."""
    plain = {word for word in words if not word.isdecimal() and word.encode() in data}
    alone = [w for w in words if w.isdecimal() and re.search(rb"(?<![\d.])" + w.encode() + rb"(?![\d.])", data)]
    return plain | set(alone)


def allowed(row):
    return [str(row[column]) for column in ALLOWED if row[column]]


def overlay(out, row):
    """The overlay's first panel without its caption: the slide as (h, w, 3) uint8."""
    picture = cv2.imread(str(out / "overlays" / f"{row['slide_id']}.jpg"))[28:, :, ::-1]
    scale = 720 / max(row["width"] * row["mpp_x"], row["height"] * row["mpp_y"])
    return picture[:, : round(row["width"] * row["mpp_x"] * scale)]


def level_pixels(path, size):
    """The slide's own pixels by area mean to `size` (width, height), read with another library than the overlay's."""
    try:
        with openslide.OpenSlide(path) as slide:
            level = slide.get_best_level_for_downsample(max(slide.dimensions) / max(size) / 2)
            rgba = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level])).astype(np.float32)
            pixels = rgba[..., :3] * (rgba[..., 3:] / 255) + (255 - rgba[..., 3:])
    except openslide.OpenSlideError:
        pixels = tifffile.imread(path, key=0).astype(np.float32)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def likeness(picture, template):
    """The best normalised cross-correlation of `template`, at sizes from 30 to 240 px, with a part of `picture`."""
    best = -1.0
    for width in (30, 60, 120, 180, 240):
        small = cv2.resize(template, (width, max(8, round(width * template.shape[0] / template.shape[1]))))
        if small.shape[0] < picture.shape[0] and width < picture.shape[1]:
            match = cv2.matchTemplate(picture, small, cv2.TM_CCOEFF_NORMED)
            best = max(best, float(match[np.isfinite(match)].max(initial=-1)))
    return best


def tiles(out, slide_id):
    """The JPEGs of one slide's tiles."""
    table = pq.read_table(out / "catalog/tiles", filters=[("slide_id", "=", slide_id)]).to_pylist()
    return [(out / t["shard"]).read_bytes()[t["offset"] : t["offset"] + t["nbytes"]] for t in table]


def segments(jpeg):
    """Marker and payload of each segment of a JPEG before its scan."""
    place = 2
    while jpeg[place + 1] != 0xDA:
        length = int.from_bytes(jpeg[place + 2 : place + 4])
        yield jpeg[place + 1], jpeg[place + 4 : place + 2 + length]
        place += 2 + length


def assert_bare(jpeg):
    """A JPEG of tables and pixels alone: no comment, no Exif, no XMP, no ICC profile, no thumbnail in its header."""
    assert jpeg[:2] == b"\xff\xd8"
    for marker, payload in segments(jpeg):
        assert marker in (0xE0, 0xDB, 0xC0, 0xC4)
        assert marker != 0xE0 or (payload[:5] == b"JFIF\0" and len(payload) == 14)


@pytest.fixture(scope="module")
def samples(tmp_path_factory, he_slide, nompp_slide):
    """The sample slides, and the real ones where they are, run once: {slide_id: source}, the output."""
    slides, out = tmp_path_factory.mktemp("samples"), tmp_path_factory.mktemp("out") / "shards"
    real = [p for p in REAL.iterdir() if p.suffix not in (".md", ".csv")] if REAL.is_dir() else []
    cmu = ROOT / "sample_slides" / CMU
    for path in [he_slide, nompp_slide, *real, *([cmu] if cmu.is_file() and not real else [])]:
        (slides / path.name).symlink_to(path)
    given = list(csv.DictReader((REAL / "manifest.csv").open())) if real else []
    lines = [f"{row['slide']},{row['mpp']}\n" for row in [*given, {"slide": "nompp.tiff", "mpp": "0.5"}]]
    (slides / "m.csv").write_text("slide,mpp\n" + "".join(lines))
    assert shards(slides, out, "--manifest", slides / "m.csv", *FEW) == 0
    return {source.slide_id: source for source in find_slides(str(slides))}, out


@pytest.fixture(scope="module")
def planted(tmp_path_factory, he_slide):
    """A folder with slides full of private things, their manifest and a key."""
    base = tmp_path_factory.mktemp("planted")
    with openslide.OpenSlide(he_slide) as source:
        pixels = np.asarray(source.read_region((1500, 40), 0, (3360, 3360)))[..., :3]
    plant(base / "case S19-0044721", cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    (base / "m.csv").write_text(
        "slide,mpp,patient\nS19-0044721 DOE_JANE.svs,0.6,MRN-55501\nS19-0099999 gone.svs,0.5,MRN-99999\n"
    )
    (base / "key").write_text("a secret that is long enough")
    return base


def private(base, *more):
    slides, manifest = base / "case S19-0044721", base / "m.csv"
    return shards(slides, base / "out", "--manifest", manifest, "--private", "--id-key", base / "key", *more)


@pytest.fixture(scope="module")
def private_out(planted):
    assert private(planted, "--names", planted / "names.csv", "--patient-key", planted / "key") == 3
    return planted / "out"


def names(base):
    with (base / "names.csv").open(newline="") as file:
        return {row["slide_id"]: row["path"] for row in csv.DictReader(file)}


def test_no_tag_of_a_slide_reaches_the_output(samples):
    sources, out = samples
    searched = 0
    for row in slide_rows(out):
        source = sources[row["slide_id"]]
        words = {w for w in worth_searching(tag_values(list(source.files))) if w not in " ".join(allowed(row))}
        assert found(words, everything(out, row["slide_id"])) == set(), source.name
        searched += len(words)
    assert searched > 0


def test_an_overlay_and_a_tile_show_the_slides_levels_and_nothing_else(samples):
    sources, out = samples
    for row in slide_rows(out):
        for jpeg in tiles(out, row["slide_id"]):
            assert_bare(jpeg)
        if (out / "overlays" / f"{row['slide_id']}.jpg").exists():
            assert_bare((out / "overlays" / f"{row['slide_id']}.jpg").read_bytes())
            panel = overlay(out, row)
            size = tuple(max(1, round(side / 40)) for side in panel.shape[1::-1])
            ours = cv2.resize(panel.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            theirs = level_pixels(sources[row["slide_id"]].path, size)
            assert np.abs(ours - theirs).mean() < 5, row["file"]


def test_the_labels_of_real_slides_are_nowhere(real_slides, samples):
    sources, out = samples
    compared = 0
    for row in slide_rows(out):
        try:
            with openslide.OpenSlide(sources[row["slide_id"]].path) as slide:
                labels = [
                    np.asarray(slide.associated_images[n])[..., :3] for n in ("label",) if n in slide.associated_images
                ]
        except openslide.OpenSlideError:
            continue
        for label in labels:
            panel = np.ascontiguousarray(overlay(out, row))
            assert likeness(panel, label) < 0.6
            small = cv2.resize(label, (120, round(120 * label.shape[0] / label.shape[1])))
            panel[20 : 20 + small.shape[0], 30:150] = small
            assert likeness(panel, label) > 0.9
            compared += 1
    assert compared == 1


def test_what_was_planted_is_found_by_the_libraries_and_not_in_the_output(planted, private_out):
    sources = find_slides(str(planted / "case S19-0044721"), id_key=b"a secret that is long enough")
    rows = {row["slide_id"]: row for row in slide_rows(private_out)}
    for source in sources:
        words = worth_searching(tag_values(list(source.files)))
        assert len(words) > 10 or rows[source.slide_id]["status"] == "failed"
        words = {word for word in words if word not in " ".join(allowed(rows[source.slide_id]))}
        assert found(words, everything(private_out, source.slide_id)) == set(), source.name
    read = worth_searching({v for source in sources for v in tag_values(list(source.files))})
    assert {"Quincy Adams MD", "SCAN-PC-0713", "2019:08:23", "SS77881", "b414003d-95c6-48b0", "1004486"} <= read
    assert {"DOE^JANE", "MRN-55501", "20190823", "ACC-0044721", "SN-660177", "PANN-0713", "DOE JANE"} <= read
    assert {"q.adams@elsewhere.org", "2019-08-23T14:15:33", "DOE JANE S19-0044721", "23/08/2019"} <= read


def test_no_pixel_of_a_label_or_a_macro_image_is_in_the_output(private_out):
    pictures = [p.read_bytes() for p in (private_out / "overlays").iterdir()]
    ok = [row["slide_id"] for row in slide_rows(private_out) if row["status"] == "ok"]
    assert (len(pictures), len(ok)) == (5, 5)
    for jpeg in [*pictures, *(jpeg for slide_id in ok for jpeg in tiles(private_out, slide_id))]:
        red, green, blue = np.moveaxis(imagecodecs.jpeg8_decode(jpeg).astype(int), 2, 0)
        assert not ((red - green > 120) & (blue - green > 120)).any()
    red, green, blue = np.moveaxis(cv2.resize(label_picture(), (40, 30)).astype(int), 2, 0)
    assert ((red - green > 120) & (blue - green > 120)).any()


def test_facts_of_the_allow_list_are_kept(planted, private_out):
    by_id = names(planted)
    facts = {
        Path(by_id[row["slide_id"]]).name: (row["vendor"], row["scanner"], row["objective"])
        for row in slide_rows(private_out)
        if row["status"] == "ok"
    }
    assert facts == {
        "S19-0044721 DOE_JANE.svs": ("aperio", "GT450", 20),
        "S19-0044723.tiff": ("hamamatsu", "C13210-01", None),
        "S19-0044724.ome.tif": ("mirax", "Pannoramic 250", None),
        "level0.dcm": ("dicom", "", 40),
        "S19-0044725 DOE.mrxs": ("mirax", "", 40),
    }


def test_private_output_holds_no_name_even_of_what_fails_or_warns(planted, private_out, capsys):
    rows = slide_rows(private_out)
    assert sorted(row["status"] for row in rows) == ["failed"] * 2 + ["ok"] * 5
    assert sum(row["warning"] is not None for row in rows) == 1
    run = json.loads((private_out / "run.json").read_text())
    assert "the manifest names 1 slide that was not found: line 3" in run["last_call"]["warnings"]
    assert all(row["file"] == row["slide_id"] and re.fullmatch("[0-9a-f]{24}", row["file"]) for row in rows)
    assert sum(row["patient_key"] is not None for row in rows) == 1
    data = everything(private_out)
    assert found({row["slide_id"] for row in rows}, data) == {row["slide_id"] for row in rows}
    assert not re.search(rb"S19-0|004472[1-6]|0099999|DOE[ _]JANE| DOE\.|MRN-5|long enough", data)
    capsys.readouterr()
    assert private(planted, "--patient-key", planted / "key") == 3
    assert [r["seconds"] for r in slide_rows(private_out) if r["status"] == "ok"] == [
        r["seconds"] for r in rows if r["status"] == "ok"
    ]
    shown = capsys.readouterr()
    assert not re.search(r"S19|004472[1-6]|DOE|JANE", shown.out.replace(str(planted), "") + shown.err)


def test_private_overlays_are_captioned_with_the_id(planted, private_out):
    for slide_id in (row["slide_id"] for row in slide_rows(private_out) if row["status"] == "ok"):
        strip = cv2.imread(str(private_out / "overlays" / f"{slide_id}.jpg"), cv2.IMREAD_GRAYSCALE)[:28, :350]
        off = {}
        for text in (slide_id, Path(names(planted)[slide_id]).name):
            drawn = np.full(strip.shape, 255, np.uint8)
            cv2.putText(drawn, text, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 30, 1, cv2.LINE_AA)
            off[text] = np.abs(strip.astype(int) - drawn).mean()
        assert off[slide_id] < 2
        assert min(off, key=off.get) == slide_id


def test_the_names_file_leads_back_and_is_its_owners_alone(planted, private_out):
    by_id = names(planted)
    assert set(by_id) == {row["slide_id"] for row in slide_rows(private_out)}
    assert all(Path(path).exists() for path in by_id.values())
    assert stat.S_IMODE((planted / "names.csv").stat().st_mode) == 0o600


def test_a_names_file_grows_and_forgets_nothing(tmp_path):
    file = tmp_path / "names.csv"
    add_names(file, {"a": "/here/ä, 1.svs", "b": '/here/"b".svs'})
    file.chmod(0o644)
    add_names(file, {"b": "/there/b.svs", "c": "/there/c.svs"})
    assert names(tmp_path) == {"a": "/here/ä, 1.svs", "b": "/there/b.svs", "c": "/there/c.svs"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["names.csv"]


def test_another_key_or_none_is_refused_even_with_redo(planted, private_out, samples, capsys):
    (planted / "other key").write_text("another secret that is long enough")
    before = (private_out / "run.json").read_bytes()
    for out, more, message in (
        (
            private_out,
            ["--private", "--id-key", planted / "other key"],
            "made with another ID_KEY; name that one, or another",
        ),
        (private_out, [], "was made with PRIVATE=1; give it again, with the same ID_KEY"),
        (
            samples[1],
            ["--private", "--id-key", planted / "key"],
            "made without PRIVATE=1 and holds names; name another OUT",
        ),
    ):
        assert shards(planted / "case S19-0044721", out, "--redo", *more) == 2
        assert message in capsys.readouterr().err
    assert (private_out / "run.json").read_bytes() == before


def test_wrong_private_calls_are_one_line_and_touch_nothing(tmp_path, nompp_slide, capsys, monkeypatch):
    monkeypatch.delenv("WSI_PREP_ID_KEY", raising=False)
    (tmp_path / "key").write_text("a secret that is long enough")
    (tmp_path / "thesis.csv").write_text("chapter,text\n1,once\n")
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    keyed = ["--private", "--id-key", tmp_path / "key"]
    for more, message in (
        (["--private"], "PRIVATE=1 needs a secret: ID_KEY=file, or $WSI_PREP_ID_KEY"),
        (["--id-key", tmp_path / "key"], "ID_KEY and NAMES are for PRIVATE=1"),
        (["--names", tmp_path / "names.csv"], "ID_KEY and NAMES are for PRIVATE=1"),
        ([*keyed, "--names", out / "names.csv"], "lies inside OUT"),
        ([*keyed, "--names", tmp_path / "link/names.csv"], "lies inside OUT"),
        ([*keyed, "--names", tmp_path / "thesis.csv"], "holds something else than slide_id,path"),
        ([*keyed, "--names", tmp_path / "none/names.csv"], "cannot be written (No such file or directory)"),
    ):
        assert shards(nompp_slide, out, *more) == 2
        line = capsys.readouterr().err.strip()
        assert message in line
        assert "\n" not in line
    assert not out.exists()
    assert (tmp_path / "thesis.csv").read_text() == "chapter,text\n1,once\n"
