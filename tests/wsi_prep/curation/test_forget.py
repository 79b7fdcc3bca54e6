"""A patient who is forgotten is nowhere in the output any more, and does not come back."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import zarr

from pipelines.forget import main
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from tests.support.shard_folders import add_row
from wsi_prep.output import catalog as catalog_module
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import read_run, write_run
from wsi_prep.output.tombstone import Tombstone, id_hash, read_tombstone
from wsi_prep.slides.private import keyed_patient
from wsi_prep.storage.select import open_storage

pytestmark = pytest.mark.usefixtures("shared_dask")

KEY = b"a secret that is long enough"


def rows(out, table="slides"):
    return pq.read_table(out / "catalog" / table).to_pylist()


def everything(out):
    return b"".join(str(p).encode() + p.read_bytes() for p in out.rglob("*") if p.is_file())


def remake(slides, out, *more):
    call = ["--slides", slides, "--out", out, "--manifest", slides / "m.csv", "--workers", "1"]
    return make_shards([str(word) for word in (*call, "--id-root", slides, *more)])


@pytest.fixture(scope="module")
def made(tmp_path_factory, nompp_slide):
    """Slides of two patients, a warning among them, in an output with names and in a private one."""
    folder = tmp_path_factory.mktemp("forget")
    slides = folder / "slides"
    slides.mkdir()
    (folder / "key").write_bytes(KEY)
    for name in ("S19-0044721", "S19-0044722", "kept"):
        shutil.copy(nompp_slide, slides / f"{name}.tiff")
    (slides / "m.csv").write_text(
        "slide,mpp,patient\nS19-0044721.tiff,0.5,p7\nS19-0044722.tiff,0.5,p7\nkept.tiff,0.5,p8\n"
    )
    assert remake(slides, folder / "named", "--patient-key", folder / "key") == 0
    private = (
        "--patient-key",
        folder / "key",
        "--private",
        "--id-key",
        folder / "key",
        "--names",
        folder / "names.csv",
    )
    assert remake(slides, folder / "private", *private) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of all of it."""
    return shutil.copytree(made, tmp_path / "all")


def forget(folder, *more):
    return main([str(word) for word in ("--patient-key", folder / "key", "--yes", *more)])


def test_a_dry_call_lists_and_changes_nothing(folder, capsys):
    before = everything(folder)
    assert forget(folder, "--patient", "p7", "--shards", folder / "named", folder / "private", "--dry") == 0
    printed = capsys.readouterr().out
    assert printed.count("  ok        ") == 4
    assert printed.count("  S19-0044721.tiff\n") == printed.count("  S19-0044722.tiff\n") == 1  # not in private output
    assert "nothing was deleted" in printed
    assert everything(folder) == before


def test_a_patient_is_gone_from_every_place_and_stays_away(folder, capsys):
    out = folder / "named"
    run = read_run(open_storage(out))
    run["last_call"]["warnings"] = ["S19-0044721.tiff: the manifest's mpp 0.5 was used", "another"]
    write_run(open_storage(out), run)
    kept = {row["file"]: row for row in rows(out)}["kept.tiff"]
    assert forget(folder, "--patient", "p7", "--shards", out) == 0
    printed = capsys.readouterr().out
    assert "forgotten in" in printed
    assert "not reached from here: indices and runs of the trainer" in printed
    assert b"S19-004472" not in everything(out)
    assert rows(out) == [kept]
    assert {tile["slide_id"] for tile in rows(out, "tiles")} == {kept["slide_id"]}
    run = json.loads((out / "run.json").read_text())
    assert (run["slides"], run["last_call"]["warnings"]) == ({"ok": 1}, ["another"])
    tile = rows(out, "tiles")[3]
    assert zarr.open(out / tile["array"], mode="r")[tile["index"]].shape == (392, 392, 3)
    assert b"p7" not in (out / "forgotten.json").read_bytes()

    # found again, they are left out with their reason; without the key nobody could tell
    assert remake(folder / "slides", out, "--patient-key", folder / "key") == 0
    said = "".join(capsys.readouterr())
    assert "note: 2 slides in SLIDES are forgotten: skipped without a name or a row" in said
    assert "S19-" not in said
    assert b"S19-004472" not in everything(out)
    assert remake(folder / "slides", out) == 2
    assert [(row["file"], row["status"]) for row in rows(out)] == [("kept.tiff", "ok")]
    assert json.loads((out / "run.json").read_text())["slides"] == {"ok": 1}
    assert verify(["--shards", str(out), "--workers", "1"]) == 0


def test_a_new_slide_of_a_forgotten_patient_is_left_out(folder):
    slides, out = folder / "slides", folder / "named"
    assert forget(folder, "--patient", "p8", "--shards", out) == 0
    shutil.copy(slides / "kept.tiff", slides / "later.tiff")
    with (slides / "m.csv").open("a") as manifest:
        manifest.write("later.tiff,0.5,p8\n")
    assert remake(slides, out, "--patient-key", folder / "key") == 0
    assert {row["file"]: row["error_type"] for row in rows(out)} == {"S19-0044721.tiff": None, "S19-0044722.tiff": None}
    assert b"later" not in everything(out)
    assert b"kept" not in everything(out)


def test_rows_of_forgotten_slides_that_earlier_versions_wrote_go(folder, capsys):
    slides, out = folder / "slides", folder / "named"
    gone = next(row["slide_id"] for row in rows(out) if row["file"] == "S19-0044721.tiff")
    assert main(["--slide", gone, "--shards", str(out), "--yes"]) == 0
    add_row(out, gone, status="excluded", error_type="Forgotten", file="S19-0044721.tiff")
    assert remake(slides, out, "--patient-key", folder / "key") == 0
    assert "note: 1 slide in SLIDES is forgotten: " in capsys.readouterr().out
    assert b"S19-0044721" not in everything(out)


def test_neither_a_note_nor_the_call_script_names_a_forgotten_slide(folder, capsys):
    slides, out = folder / "slides", folder / "named"
    assert forget(folder, "--patient", "p7", "--shards", out) == 0
    (slides / "m.csv").write_text(
        "slide,mpp,patient,stain\nS19-0044721.tiff,0.5,p7,\nS19-0044722.TIFF,0.5,p7,\nkept.tiff,0.5,p8,\n"
    )
    capsys.readouterr()
    one = ["--slides", slides / "S19-0044721.tiff", "--out", out, "--manifest", slides / "m.csv", "--workers", "1"]
    words = [*one, "--id-root", slides, "--patient-key", folder / "key"]
    assert make_shards([str(word) for word in words]) == 0
    assert "nothing to do: 0 slides are already done in" in capsys.readouterr().out
    assert not (out / "call.sh").exists()
    assert b"S19-0044721" not in everything(out)


def test_a_manifest_row_of_a_forgotten_slide_whose_file_is_gone_is_told_by_its_line(folder, capsys):
    slides, out = folder / "slides", folder / "named"
    assert forget(folder, "--patient", "p7", "--shards", out) == 0
    for gone in slides.glob("S19-*.tiff"):
        gone.unlink()
    (slides / "m.csv").write_text("slide,mpp,patient\nkept.tiff,0.5,p8\nS19-0044721.tiff,0.5,p7\n")
    assert remake(slides, out, "--patient-key", folder / "key") == 0
    assert "the manifest names 1 slide that was not found: line 3" in capsys.readouterr().out
    assert b"S19-0044721" not in everything(out)


def test_names_go_with_them_and_do_not_come_back(folder, capsys):
    out, names = folder / "private", folder / "names.csv"
    assert names.read_text().count("S19-") == 2
    assert forget(folder, "--patient", "p7", "--shards", out, "--names", names) == 0
    assert names.read_text().count("\n") == 2
    assert "kept.tiff" in names.read_text()
    assert "NAMES still holds" not in capsys.readouterr().out
    private = ("--patient-key", folder / "key", "--private", "--id-key", folder / "key", "--names", names)
    assert remake(folder / "slides", out, *private) == 0
    assert "S19-" not in names.read_text()
    assert [row["status"] for row in rows(out)] == ["ok"]


def test_a_names_file_that_was_left_out_is_told_and_emptied_by_a_second_call(folder, capsys):
    out, names = folder / "private", folder / "names.csv"
    assert forget(folder, "--patient", "p7", "--shards", out) == 0
    said = "note: NAMES still holds their lines and paths: repeat the command with NAMES=file\n"
    assert said in capsys.readouterr().out
    assert names.read_text().count("S19-") == 2
    assert forget(folder, "--patient", "p7", "--shards", out, "--names", names) == 0
    assert names.read_text().count("S19-") == 0
    assert said not in capsys.readouterr().out


def test_one_slide_can_be_forgotten_by_its_id(folder):
    out = folder / "named"
    gone, *left = sorted(row["slide_id"] for row in rows(out))
    assert main(["--slide", gone, "--shards", str(out), "--yes"]) == 0
    assert sorted(row["slide_id"] for row in rows(out)) == left
    assert read_tombstone(open_storage(out)) == Tombstone(frozenset(), frozenset({id_hash(gone)}))


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


@pytest.mark.parametrize("step", ["drop", "table"])
def test_a_call_that_is_killed_is_completed_by_the_same_call(folder, step, monkeypatch):
    out = folder / "named"
    original = getattr(Catalog, step)

    def killed(self, *arguments):
        answer = original(self, *arguments)
        if read_tombstone(open_storage(out)).patients:
            raise Killed
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(catalog_module.Catalog, step, killed)
        with pytest.raises(Killed):
            forget(folder, "--patient", "p7", "--shards", out)
    assert forget(folder, "--patient", "p7", "--shards", out) == 0
    assert b"S19-004472" not in everything(out)


def test_calls_that_cannot_be_done_change_nothing(folder, capsys):
    out = folder / "named"
    before = everything(folder)
    (folder / "other").write_text("another secret that is long enough")
    cases = [
        (["--patient", "nobody", "--shards", out, "--patient-key", folder / "key"], 3, "nobody was found"),
        (["--patient", "p7", "--shards", out, "--patient-key", folder / "other"], 3, "is it the right PATIENT_KEY?"),
        (["--slide", "nothing", "--shards", out], 3, "SLIDE takes slide ids"),
        (["--slide", "kept.tiff", "--shards", out], 3, "files of that name have kept-"),
        (["--shards", out], 2, "nobody is named"),
        (["--patient", "p7", "--shards", out], 2, "PATIENT needs the secret"),
        (["--slide", "x", "--shards", "https://bucket/x"], 2, "of no object store that is known"),
        (["--slide", "x", "--shards", folder / "slides"], 2, "holds no catalog/slides"),
        (["--slide", "x", "--shards", out, "--names", folder / "none.csv"], 2, "does not exist"),
    ]
    (folder / "other").unlink()
    for call, code, said in cases:
        if folder / "other" in call:
            (folder / "other").write_text("another secret that is long enough")
        assert main([str(word) for word in call]) == code
        assert said in capsys.readouterr().err
    (folder / "other").unlink()
    assert everything(folder) == before


def test_a_tombstone_that_cannot_be_read_stops_a_run(folder, capsys):
    out = folder / "named"
    (out / "forgotten.json").write_text("{")
    assert remake(folder / "slides", out, "--patient-key", folder / "key") == 2
    assert "restore it: without it, forgotten slides would be made again" in capsys.readouterr().err


def test_hashes_are_of_the_whole_id_and_the_key():
    assert id_hash("a") != id_hash("b")
    stone = Tombstone().with_more([keyed_patient(KEY, "p7")], ["a"])
    assert stone.has("a")
    assert stone.has("x", keyed_patient(KEY, "p7"))
    assert not stone.has("x", keyed_patient(b"another secret that is long enough", "p7"))
    assert not stone.has("x", None)
