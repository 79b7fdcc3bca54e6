"""A person's view of an output: every text and every kind of file is shown, and what was slipped in is seen."""

import csv
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.privacy import main
from pipelines.shards import main as make_shards
from tests.support.shard_folders import add_row
from wsi_prep.curation.disclosure import disclose, odd_parts

pytestmark = pytest.mark.usefixtures("shared_dask")


def write_slide(path):
    path.parent.mkdir(exist_ok=True)
    pixels = np.full((420, 800, 3), 244, np.uint8)
    pixels[10:400, 10:390] = np.random.default_rng(0).integers((150, 60, 110), (220, 130, 180), (390, 380, 3))
    scale = {"resolution": (5_000, 5_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, **scale)


@pytest.fixture(scope="module")
def outs(tmp_path_factory):
    """An open and a private output of one slide and one that fails, with a manifest."""
    base = tmp_path_factory.mktemp("disclosure")
    write_slide(base / "slides/S19-0044721 DOE.tiff")
    (base / "slides/S19-9.svs").write_bytes(b"no slide")
    (base / "key").write_text("a secret that is long enough")
    (base / "m.csv").write_text("slide,institution,tissue\nS19-0044721 DOE.tiff,St Elsewhere,rare gland\n")
    call = ["--slides", str(base / "slides"), "--manifest", str(base / "m.csv"), "--workers", "1"]
    assert make_shards([*call, "--out", str(base / "open")]) == 3
    assert make_shards([*call, "--out", str(base / "private"), "--private", "--id-key", str(base / "key")]) == 3
    return base


def test_every_text_of_the_catalog_is_there(outs):
    for kind in ("open", "private"):
        found = disclose(str(outs / kind))
        assert (found.slides, found.strays, found.is_private) == (2, [], kind == "private")
        for table in ("slides", "tiles"):
            rows = pq.read_table(outs / kind / "catalog" / table).to_pylist()
            columns = {name for row in rows for name, value in row.items() if isinstance(value, str)}
            assert {where for where in found.texts if where.startswith(f"{table}.")} >= {
                f"{table}.{c}" for c in columns
            }
            for column in columns - {"shard", "array"}:
                shown = found.texts[f"{table}.{column}"]
                assert sum(shown.values()) == sum(row[column] is not None for row in rows)
        assert found.texts["slides.institution"] == {"St Elsewhere": 1, "unknown": 1}
        assert set(found.texts["tiles.array"]) == {"stores/<slide_id>.zarr/5x"}
        assert "s3" not in str(found.texts["tiles.shard"])
        assert found.kinds["overlays"][0] == found.kinds["tissue outlines"][0] == 1
        files = [path for path in (outs / kind).rglob("*") if path.is_file()]
        assert sum(count for count, _ in found.kinds.values()) == len(files)
        assert sum(size for _, size in found.kinds.values()) == sum(path.stat().st_size for path in files)
    names = " ".join(map(str, disclose(str(outs / "private")).texts.values()))
    assert "DOE" not in names
    assert "S19" not in names


def test_it_is_shown_with_what_a_person_has_to_decide(outs, tmp_path, capsys):
    to = tmp_path / "texts.csv"
    assert main(["--shards", str(outs / "open"), str(outs / "private"), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "slides.file: 'S19-0044721 DOE.tiff' (1), 'S19-9.svs' (1)" in said
    assert "slides.institution: 'St Elsewhere' (1), 'unknown' (1)" in said
    assert said.count("for a person to decide: ") == 2
    assert said.count("may others know slide_id and file, which hold the slides' names") == 1
    assert said.count("what does not belong: nothing") == 2
    with to.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"where": "slides.tissue", "text": "rare gland", "count": "1", "out": str(outs / "open")} in rows


@pytest.mark.parametrize("text", ["=HYPERLINK(A1)", "+1+cmd", "-1-2", "@SUM(A1)"])
def test_a_text_is_no_formula_in_the_list(tmp_path, text):
    add_row(tmp_path / "out", "a-0123456789", file="a.svs", status="empty", institution=text)
    main(["--shards", str(tmp_path / "out"), "--to", str(tmp_path / "texts.csv")])
    with (tmp_path / "texts.csv").open(newline="") as file:
        shown = [row["text"] for row in csv.DictReader(file) if row["where"] == "slides.institution"]
    assert shown == [f"'{text}"]


def test_a_list_inside_the_output_is_refused(outs, capsys):
    assert main(["--shards", str(outs / "open"), "--to", str(outs / "open/x.csv")]) == 2
    assert "lies inside" in capsys.readouterr().err
    assert main(["--shards", str(outs / "slides")]) == 2


def stray_file(out):
    (out / "names.csv").write_text("slide_id,path")


def hidden_file(out):
    (out / ".staging/overlay.jpg").write_bytes(b"")


def link(out):
    (out / "overlays/y.jpg").symlink_to("/etc/passwd")


def fifo(out):
    os.mkfifo(out / "tissue/z.geojson")


def foreign_overlay(out):
    shutil.copy(next((out / "overlays").iterdir()), out / "overlays/other.jpg")


def comment_in_overlay(out):
    path = next((out / "overlays").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xfe\x00\x0aDOE JANE" + data[2:])


def behind_overlay(out):
    path = next((out / "overlays").iterdir())
    path.write_bytes(path.read_bytes() + b"DOE JANE")


def comment_in_tile(out):
    row = pq.read_table(out / "catalog/tiles").to_pylist()[0]
    path = out / row["shard"]
    data, at = path.read_bytes(), row["offset"]
    path.write_bytes(data[: at + 2] + b"\xff\xfe\x00\x0aDOE JANE" + data[at + 2 :])


def folder(out):
    (out / "overlays/DOE JANE").mkdir()


def empty_store(out):
    (out / "stores/DOE JANE.zarr").mkdir()


def catalog_file(out):
    path = next((out / "catalog/tiles").iterdir())
    pq.write_table(pq.read_table(path).slice(0, 0), path.with_name("DOE JANE.parquet"))


def long_lock(out):
    (out / ".lock").write_text("a" * 32 + " DOE JANE made this on 1961-03-17 at St Elsewhere")


def column(out):
    path = next((out / "catalog/slides").iterdir())
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("doctor", pa.array(["Adams"] * len(rows))), path)


@pytest.mark.parametrize(
    "slip",
    [
        stray_file,
        hidden_file,
        empty_store,
        link,
        fifo,
        foreign_overlay,
        comment_in_overlay,
        behind_overlay,
        comment_in_tile,
        column,
        folder,
        catalog_file,
        long_lock,
    ],
)
def test_what_does_not_belong_is_seen(outs, tmp_path, slip, capsys):
    shutil.copytree(outs / "private", tmp_path / "out")
    slip(tmp_path / "out")
    assert main(["--shards", str(tmp_path / "out")]) == 3
    assert "what does not belong: 1\n" in capsys.readouterr().out


def test_texts_of_every_kind_of_metadata_are_shown(outs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(outs / "private", out)
    path = next((out / "catalog/slides").iterdir())
    pq.write_table(pq.read_table(path).replace_schema_metadata({"made for": "Dr Adams"}), path)
    outline, group = next((out / "tissue").iterdir()), next((out / "stores").iterdir()) / "zarr.json"
    for file, place in ((outline, "features"), (group, "attributes")):
        text = json.loads(file.read_text())
        inner = text["features"][0]["properties"] if place == "features" else text.setdefault("attributes", {})
        inner |= {"patient": "DOE JANE", "number": 4711, "ROE JOHN": None}
        file.write_text(json.dumps(text))
    texts = disclose(str(out)).texts
    assert texts["slides, Parquet metadata made for"] == {"Dr Adams": 1}
    assert texts["tissue outlines features.properties.patient"] == {"DOE JANE": 1}
    assert texts["tile stores: descriptions attributes.patient"] == {"DOE JANE": 1}
    assert texts["tile stores: descriptions attributes.number"] == {"4711": 1}
    assert texts["tissue outlines, its fields"]["features.properties.ROE JOHN"] == 1


def test_a_sound_jpeg_has_no_odd_part(outs):
    (overlay,) = (outs / "open/overlays").iterdir()
    assert list(odd_parts(overlay.read_bytes(), whole=True)) == []
    assert list(odd_parts(b"GIF89a")) == ["is no JPEG"]
