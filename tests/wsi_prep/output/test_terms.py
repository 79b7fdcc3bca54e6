"""A call that is refused for what OUT was made with, or for who is at work there, changes neither OUT nor NAMES."""

import shutil
from functools import partial

import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from sample_slides.make import make_synthetic, nompp_tiff
from tests.support.command_words import changed_call
from wsi_prep.errors import OtherConfiguration
from wsi_prep.output.folder import begin, held_output, read_run, write_run
from wsi_prep.output.terms import Terms
from wsi_prep.slides.private import keyed_patient
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.local import LocalStorage

pytestmark = pytest.mark.usefixtures("shared_dask")

PATTERN = ("--institution-pattern", "(?P<institution>[a-z]+)")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with private shards of one slide in it, made with all there is, and a second slide beside the first."""
    here = tmp_path_factory.mktemp("private")
    (here / "slides").mkdir()
    (here / "masks").mkdir()
    make_synthetic(here / "slides/one.tiff", partial(nompp_tiff, width=600, height=700))
    (here / "manifest.csv").write_text("slide,stain,patient\none.tiff,HE,p1\ntwo.tiff,HE,p1\n")
    for name in ("key", "other", "patients"):
        (here / name).write_text(f"a secret that is long enough: {name}")
    assert call(here) == 0
    assert len((here / "names.csv").read_text().splitlines()) == 2
    shutil.copy(here / "slides/one.tiff", here / "slides/two.tiff")
    return here


def call(here, *more, without=()):
    options = {
        "--manifest": (here / "manifest.csv",),
        "--masks": (here / "masks",),
        PATTERN[0]: PATTERN[1:],
        "--private": (),
        "--id-key": (here / "key",),
        "--names": (here / "names.csv",),
        "--patient-key": (here / "patients",),
    }
    given = [text for name, values in options.items() if name not in without for text in (name, *values)]
    fixed = [
        "--slides",
        here / "slides",
        "--out",
        here / "out",
        "--mags",
        "20x",
        "--assume-mpp",
        "0.5",
        "--workers",
        "1",
    ]
    return main(changed_call([*fixed, *given], more))


def copied(made, here):
    for name in ("slides", "out", "masks"):
        shutil.copytree(made / name, here / name)
    for name in ("names.csv", "key", "manifest.csv", "patients"):
        shutil.copy(made / name, here / name)


def contents(here):
    """Every file of OUT, and NAMES, by path; the lock, which says who looked last, aside."""
    files = [path for path in (here / "out").rglob("*") if path.is_file() and path.name != LOCK]
    return {path: path.read_bytes() for path in [*files, here / "names.csv"]}


@pytest.mark.parametrize(
    ("more", "without", "says"),
    [
        (["--id-key", "{here}/other"], [], "made with another ID_KEY"),
        ([], ["--private", "--id-key", "--names"], "made with PRIVATE=1"),
        ([], ["--manifest"], "made with a manifest"),
        ([], ["--patient-key"], "made with PATIENT_KEY; give it again, with the same secret"),
        (["--redo"], ["--patient-key"], "made with PATIENT_KEY; give it again"),
        (["--patient-key", "{here}/other"], [], "made with another PATIENT_KEY; name that one"),
        ([], ["--masks"], "made with masks"),
        ([], ["--institution-pattern"], "made with an institution pattern"),
        (["--quality", "70"], [], "made with other settings"),
        (["--id-root", "{here}"], [], "ids_below_root was False, now True"),
        (["--names", "{here}/out/names.csv"], [], "lies inside OUT"),
        (["--names", "{here}/manifest.csv"], [], "holds something else"),
        (["--log", "{here}/out"], [], "LOG="),
    ],
)
def test_a_refused_call_changes_nothing(made, capsys, more, without, says):
    before = contents(made)
    assert call(made, *(text.format(here=made) for text in more), without=without) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert contents(made) == before
    assert (made / "manifest.csv").read_text().startswith("slide,stain")


def test_patients_of_a_folder_that_has_no_mark_of_their_key_keep_it(made, tmp_path, capsys):
    copied(made, tmp_path)
    storage = LocalStorage(tmp_path / "out")
    run = read_run(storage)
    assert run.pop("patient_key")
    write_run(storage, run)  # as earlier versions wrote it
    before = contents(tmp_path)
    assert call(tmp_path, without=["--patient-key"]) == 2
    assert "made with PATIENT_KEY; give it again, with the same secret" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert call(tmp_path) == 0
    secret = (tmp_path / "patients").read_bytes()
    rows = pq.read_table(tmp_path / "out/catalog/slides").select(["patient_key"]).to_pylist()
    assert {row["patient_key"] for row in rows} == {keyed_patient(secret, "p1")}
    assert secret not in (tmp_path / "out/run.json").read_bytes()


def test_a_key_that_no_patient_needed_may_be_left_out(tmp_path):
    storage = LocalStorage(tmp_path)
    keyed, bare = (Terms({}, {}, redo=False, patient_key=mark) for mark in ("mark", None))
    for terms in (keyed, bare, keyed):
        with held_output(storage, terms, "token"):
            begin(storage, terms, patients=False)
    assert "patient_key" not in read_run(storage)


def test_a_call_while_another_run_works_changes_nothing(made, capsys):
    before = contents(made) | {made / "out" / LOCK: b"of the other run"}
    with LocalStorage(made / "out").locked("of the other run", take_over=False):
        assert call(made) == 2
    assert "another run is writing" in capsys.readouterr().err
    assert contents(made) | {made / "out" / LOCK: (made / "out" / LOCK).read_bytes()} == before


def test_a_tombstone_that_cannot_be_read_is_found_before_anything_is_written(made, tmp_path, capsys):
    copied(made, tmp_path)
    (tmp_path / "out/forgotten.json").write_text("{")
    before = contents(tmp_path)
    assert call(tmp_path) == 2
    assert "forgotten.json cannot be read" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_an_output_whose_names_cannot_be_kept_is_not_begun(made, capsys):
    out, names = made / "new", made / "nowhere" / "names.csv"
    assert call(made, "--out", out, "--names", names) == 2
    assert "names.csv cannot be written" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "named", "says"),
    [({"quality": 70}, True, "quality was 90, now 70"), ({"quality": 90}, False, "a manifest"), ({}, True, "settings")],
)
def test_what_another_call_made_meanwhile_is_seen_under_the_lock(tmp_path, settings, named, says):
    storage = LocalStorage(tmp_path)
    storage.write("run.json", b'{"settings": {"quality": 90}, "manifest": true}')
    terms = Terms(settings, {"manifest": named}, redo=False)
    with pytest.raises(OtherConfiguration, match=says), held_output(storage, terms, "token"):
        pytest.fail("it is held on other terms")
    assert read_run(storage) == {"settings": {"quality": 90}, "manifest": True}


def test_what_is_assumed_later_is_better_said_of_single_slides():
    before = {"settings": {"assume_mpp": None, "jpeg": {"quality": 90}}}
    later = {"assume_mpp": 0.5, "jpeg": {"quality": 90}}
    with pytest.raises(OtherConfiguration, match="in the manifest: those alone are made then"):
        Terms(later, {}, redo=False).require_kept("out", before)
    with pytest.raises(OtherConfiguration, match=r"the new ones$"):
        Terms({**later, "assume_mpp": 0.25}, {}, redo=False).require_kept("out", {"settings": later})
