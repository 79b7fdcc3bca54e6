"""Lists of slides, and folders of them, that somebody else made: their names are names, and nothing is waited for."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import main
from tests.support.paths import ROOT
from wsi_prep.errors import BadManifest, NoSlides
from wsi_prep.slides.fetch.remote import file_system
from wsi_prep.slides.find.manifest import read_manifest
from wsi_prep.slides.find.sources import find_slides, look_for_slides

COMPUTE = ("reference", "dask", "generic", "dvc", "git", "jupyter", "dir", "asyncwrapper", "data")
LOOK = "import sys; from wsi_prep.slides.find.sources import find_slides; print(len(find_slides(sys.argv[1])))"


def listed(tmp_path, text, name="list.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_list_cannot_have_a_template_filled_in_with_what_the_environment_holds(tmp_path, monkeypatch, capsys):
    """fsspec's reference:// formats URLs by objects of its own, from which a text leads to os.environ."""
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "s3Cr3T")
    leak = f"{tmp_path}/{{{{u.__globals__[fsspec].implementations.local.os.environ[SECRET_OF_THE_CALLER]}}}}"
    told = {"version": 1, "templates": {"u": "{{c}}"}, "refs": {"x.svs": [f"file://{leak}", 0, 9]}}
    (tmp_path / "refs.json").write_text(json.dumps(told))
    (tmp_path / "s3Cr3T").write_bytes(b"was asked for")
    slides = listed(tmp_path, f"slide\nreference://x.svs::file://{tmp_path}/refs.json\n")
    assert main(["--slides", slides, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "(reference:// is no place of files; name a disk, an object store or a server)" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@given(computes=st.sampled_from(COMPUTE), before=st.booleans(), after=st.booleans(), short=st.booleans())
def test_no_part_of_a_chain_of_urls_computes(computes, before, after, short):
    part = computes if short and (before or after) else f"{computes}://x"
    chain = "::".join([*(["simplecache"] if before else []), part, *(["file:///nowhere"] if after else [])])
    with pytest.raises(ValueError, match=f"{computes}:// is no place of files"):
        file_system(chain)


@pytest.mark.parametrize("path", ["/a/reference", "data/git", "memory://git/x", "file:///dask"])
def test_what_is_named_like_it_is_a_path(path):
    assert file_system(path)[1].endswith(path.rpartition("://")[2])


def test_a_user_in_the_url_of_an_object_store_is_refused_and_not_shown(tmp_path):
    with pytest.raises(NoSlides, match="has no user or password; credentials come from the environment") as refusal:
        find_slides(listed(tmp_path, "slide\ns3://me:s3Cr3T@bucket/a.svs\n"))
    assert "s3Cr3T" not in str(refusal.value)


@pytest.mark.parametrize("read", [read_manifest, look_for_slides])
def test_a_list_with_a_cell_that_never_ends_is_one_line(tmp_path, read):
    with pytest.raises(BadManifest, match=r"list\.csv, line \d+: a cell is too long .*; is a quotation mark missing"):
        read(listed(tmp_path, "slide,stain\na.svs,HE\n" + '"b' + "b" * 140_000 + ",HE\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('slide,tissue\na.svs,"colon\nb.svs,liver\n', r"list\.csv, line 2: a quotation mark is never closed"),
        ('slide,tissue\na.svs,"colon\nb.svs,liver"\n', r"list\.csv, line 2: a cell takes in .* have swallowed rows"),
        ('slide\n"a.svs\nb.svs"\n', r"list\.csv, line 2: the cell of column slide has a line break"),
    ],
)
def test_a_list_loses_no_slide_to_a_quotation_mark(tmp_path, text, said):
    for name in ("a.svs", "b.svs"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadManifest, match=said) as error:
        look_for_slides(listed(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_manifest, look_for_slides])
@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_list_that_is_no_file_or_has_no_end_is_one_line(tmp_path, read, kind):
    path = tmp_path / "list.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(BadManifest, match=r"cannot be read \(it (is no file but|has 1,099,511,627,776 bytes)"):
        read(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a.dcm pipe", "a.vms pipe", "a.vms device", "a.vms huge"])
def test_a_slide_that_is_no_file_keeps_no_call_waiting(tmp_path, what):
    """It is found, so that it fails alone."""
    name, kind = what.split()
    (tmp_path / "b.svs").write_bytes(b"no slide")
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "device":
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    call = [sys.executable, "-c", LOOK, str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
