"""The script that repeats a call: what it hands to the command, where it is kept, and what it does not hold."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.call_script import call_script
from pipelines.calls.shards import ShardsCall
from pipelines.forget import main as forget
from pipelines.options import read_call
from pipelines.privacy import main as privacy
from pipelines.shards import main
from pipelines.verify import main as verify
from wsi_prep.curation.verify.store import OWN_NAMES

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "://" not in text
)


@pytest.fixture(scope="session")
def telling(tmp_path_factory):
    """In place of Python, a command that tells what it was given, and where; in a folder of an odd name."""
    folder = tmp_path_factory.mktemp("it's $HOME here")
    (folder / "python").write_text('#!/bin/sh\npwd > "$OUTPUT.pwd"\nprintf \'%s\\0\' "$@" > "$OUTPUT"\n')
    (folder / "python").chmod(0o755)
    return folder


def handed_on(telling, script):
    """The words that the script hands to its Python, and the folder in which."""
    (telling / "call.sh").write_bytes(script)
    given = {**os.environ, "OUTPUT": str(telling / "words")}
    given.pop("PYTHON", None)
    subprocess.run(["sh", telling / "call.sh"], env=given, cwd="/", check=True)
    words = (telling / "words").read_bytes().split(b"\0")[:-1]
    return [os.fsdecode(word) for word in words], (telling / "words.pwd").read_text().rstrip("\n")


@settings(max_examples=15, deadline=None)
@example(slides="-a", out="-b", text="-", tissue=0.5, private=False)
@given(slides=TEXTS, out=TEXTS, text=TEXTS, tissue=st.floats(0.1, 1), private=st.booleans())
def test_the_same_call_is_handed_to_the_command(telling, slides, out, text, tissue, private):
    call = ShardsCall(
        slides=slides, out=out, manifest=text, filter=text, tissue=tissue, log=Path(text), dashboard=private, workers=3
    )
    words, folder = handed_on(telling, call_script(call, telling, str(telling / "python")))
    assert words[:2] == ["-m", "pipelines.shards"]
    assert read_call(ShardsCall, words[2:]) == call
    assert folder == str(telling)


def test_what_is_for_one_call_alone_and_what_gives_access_is_left_out(telling):
    call = ShardsCall(slides="https://me:secret@host/a.svs?sig=abc", redo=True, take_over=True, forgotten_lost=True)
    script = call_script(call, telling, str(telling / "python"))
    assert handed_on(telling, script)[0] == ["-m", "pipelines.shards", "--slides=https://host/a.svs"]
    assert b"put it back" in script
    assert b"secret" not in script
    assert b"put it back" not in call_script(ShardsCall(slides="s"))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_dask")
class TestInOut:
    """What a run leaves."""

    @pytest.fixture
    def slide(self, tmp_path, nompp_slide):
        """An excluded slide, which is quickly done, in a folder of an odd name."""
        (tmp_path / "a b").mkdir()
        return shutil.copy(nompp_slide, tmp_path / "a b/slide's.tiff")

    def shards(self, slide, out, *more):
        return main(["--slides", str(slide), "--out", str(out), "--workers", "1", *map(str, more)])

    def test_the_last_call_is_kept_and_known_to_those_who_look(self, slide, tmp_path, capsys):
        out = tmp_path / "out"
        assert self.shards(slide, out) == 0
        first = (out / "call.sh").read_text()
        assert shlex.quote(f"--slides={tmp_path}/a b/slide's.tiff") in first
        assert self.shards(slide, out, "--time-limit", "100") == 0
        assert "--time-limit=100.0" in (out / "call.sh").read_text()
        assert "call.sh" in OWN_NAMES
        assert verify(["--shards", str(out), "--workers", "1"]) == 0
        capsys.readouterr()
        assert privacy(["--shards", str(out), "--to", str(tmp_path / "texts.csv")]) == 0
        assert "call.sh" in capsys.readouterr().out
        assert "a b/slide" in (tmp_path / "texts.csv").read_text()

    def test_a_link_in_its_place_is_replaced_and_not_followed(self, slide, tmp_path):
        out = tmp_path / "out"
        assert self.shards(slide, out) == 0
        (tmp_path / "other").write_text("theirs")
        (out / "call.sh").unlink()
        (out / "call.sh").symlink_to(tmp_path / "other")
        code = self.shards(slide, out)
        assert (tmp_path / "other").read_text() == "theirs"
        assert code == 2 or not (out / "call.sh").is_symlink()

    def test_private_output_has_none_and_one_that_is_there_does_not_belong(self, slide, tmp_path, capsys):
        out = tmp_path / "out"
        (tmp_path / "key").write_text("a secret of more than sixteen bytes")
        assert self.shards(slide, out, "--private", "--id-key", tmp_path / "key") == 0
        assert not (out / "call.sh").exists()
        (out / "call.sh").write_text("cd /data/patients")
        assert privacy(["--shards", str(out)]) == 3
        assert "call.sh holds paths" in capsys.readouterr().out

    def test_it_goes_when_a_slide_is_forgotten(self, slide, tmp_path):
        out = tmp_path / "out"
        assert self.shards(slide, out) == 0
        (row,) = pq.read_table(out / "catalog/slides").to_pylist()
        assert forget(["--shards", str(out), "--slide", row["slide_id"], "--yes"]) == 0
        assert not (out / "call.sh").exists()
