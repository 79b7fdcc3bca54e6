"""The commands take what is written in full, once, and ask before they delete for good."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.forget import main as forget
from pipelines.options import Options
from pipelines.query import main as query
from pipelines.verify import main as verify
from tests.support.paths import ROOT
from tests.support.shard_folders import add_slide

SOURCES = [p for name in ("pipelines", "sample_slides", "tests") for p in (ROOT / name).rglob("*.py")]


def parser():
    parser = Options(prog="python -m pipelines.thing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shards", nargs="+")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--redo", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--red"], "unrecognized arguments: --red"),
        (["--o", "x"], "unrecognized arguments: --o x"),
        (["--out", ""], "--out is empty"),
        (["--out="], "--out is empty"),
        (["--shards", "a", ""], "a is empty"),
    ],
)
def test_what_could_be_guessed_is_refused_in_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"thing: {said}")


def test_lists_add_up_and_of_others_the_last_counts():
    assert parser().parse_args(["--out", "a", "--out=b"]).out == Path("b")
    found = parser().parse_args(["--shards", "a", "b", "--redo", "--shards=-c", "--redo", "--set", "x=", "--set=y="])
    assert vars(found) == {"out": None, "shards": ["a", "b", "-c"], "set": ["x=", "y="], "redo": True}
    assert parser().parse_args([]).set == []
    assert parser().parse_args(["--set", "a"]).set == ["a"]
    assert parser().parse_args([]).set == []


def test_no_command_guesses_options_from_their_beginnings():
    own = [p for p in SOURCES if p.name not in ("options.py", "test_options.py")]
    parsers = [p for p in own if "ArgumentParser(" in p.read_text()]
    assert [p.name for p in parsers if "allow_abbrev=False" not in p.read_text()] == []


@pytest.mark.parametrize("command", [forget, verify])
@pytest.mark.parametrize("mistyped", ["--dry-ru", "--re", "--ye", "--tak"])
def test_a_mistyped_option_deletes_nothing(command, mistyped, tmp_path):
    slide_id = add_slide(tmp_path, 1, {"5x": 1})
    (tmp_path / "stray").write_text("x")
    with pytest.raises(SystemExit):
        command(["--shards", str(tmp_path), mistyped, *(["--slide", slide_id] if command is forget else [])])
    assert (tmp_path / "stores" / f"{slide_id}.zarr").is_dir()
    assert (tmp_path / "stray").exists()


@contextmanager
def terminal(answer):
    """A real terminal in place of stdin and stderr, into which somebody types the answer."""
    ours, theirs = os.openpty()
    with (
        os.fdopen(os.dup(theirs), "r") as stdin,
        os.fdopen(theirs, "w") as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", stdin)
        patch.setattr("sys.stderr", stderr)
        os.write(ours, answer.encode() + b"\n")
        yield
    os.close(ours)


@pytest.mark.parametrize(
    ("answer", "kept"), [("", True), ("n", True), ("no", True), ("x", True), ("y", False), ("YES", False)]
)
def test_forget_does_as_the_terminal_answers(answer, kept, tmp_path):
    slide_id = add_slide(tmp_path, 1, {"5x": 1})
    with terminal(answer):
        assert forget(["--shards", str(tmp_path), "--slide", slide_id]) == (2 if kept else 0)
    assert (tmp_path / "stores" / f"{slide_id}.zarr").is_dir() == kept


def test_a_repair_does_as_the_terminal_answers(tmp_path):
    slide_id = add_slide(tmp_path, 1, {"5x": 1})  # without overlay and outline: it has faults
    call = ["--shards", str(tmp_path), "--workers", "1"]
    with terminal("n"):
        assert verify([*call, "--repair"]) == 2
    assert (tmp_path / "stores" / f"{slide_id}.zarr").is_dir()


def test_nobody_to_ask_is_one_line_and_changes_nothing(tmp_path, capsys):
    slide_id = add_slide(tmp_path, 1, {"5x": 1})
    assert forget(["--shards", str(tmp_path), "--slide", slide_id]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("forget: nothing was done: to delete 1 slides of 1 outputs for good takes YES=1")
    assert verify(["--shards", str(tmp_path), "--repair", "--workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("verify: nothing was done: to delete what is broken")
    assert (tmp_path / "stores" / f"{slide_id}.zarr").is_dir()


def test_an_empty_question_is_the_commands_own_to_refuse(tmp_path):
    assert query(["--shards", str(tmp_path), "--sql", ""]) == 2
