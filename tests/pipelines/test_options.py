"""The commands take what is written in full, once, and ask before they delete for good."""

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.calls.base import Option, declared
from pipelines.calls.shards import ShardsCall
from pipelines.forget import main as forget
from pipelines.options import command_line, read_call
from pipelines.query import main as query
from pipelines.targets import COMMANDS
from pipelines.verify import main as verify
from tests.support.shard_folders import add_slide
from wsi_prep.errors import BadOption


@dataclass(frozen=True, kw_only=True)
class ThingCall:
    """Do a thing."""

    out: Path | None = None
    """Where."""

    shards: tuple[str, ...] = ("shards",)
    """Folders."""

    set: Annotated[tuple[str, ...], Option(words=True, formerly="--change")] = ()
    """Changes."""

    redo: bool = False
    """Again."""

    mags: Annotated[str, Option(words=True)] = ""
    """Words in one text."""

    sql: Annotated[str, Option(may_be_empty=True)] = "x"
    """A question."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--red"], "Unknown option: --red. Did you mean --redo?"),
        (["--o", "x"], "Unknown option: --o"),
        (["--no-redo"], "Unknown option: --no-redo"),
        (["--out", ""], "--out is empty"),
        (["--out="], "--out is empty"),
        (["--out", " "], "--out is empty"),
        (["--out"], "--out requires an argument"),
        (["--out", "a", "--out", "b"], "--out specified multiple times"),
        (["--shards"], "--shards requires at least 1 element"),
        (["--shards", "a", ""], "a is empty"),
        (["x"], "x belongs to no option; did you mean --out x?"),
        (["--redo", "x y"], "x y belongs to no option; did you mean --out 'x y'?"),
        (["--", "x"], "x belongs to no option; did you mean --out x?"),
        (["--out", "a", "b", "c", "--redo"], "b is one word too many: quote the value, as in --out 'a b c'."),
        (["--out=a", "b"], "b is one word too many: quote the value, as in --out 'a b'."),
        (["--mags", "--redo"], "--mags requires an argument"),
        (["--mags", "20x", ""], "20x is empty"),
        (["--mags", "20x", "--mags", "40x"], "--mags specified multiple times"),
        (["--out", "--redo"], "--out requires an argument"),
    ],
)
def test_what_could_be_guessed_is_refused_in_one_line(words, said):
    with pytest.raises(BadOption) as refused:
        read_call(ThingCall, words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Token" not in str(refused.value)


@given(st.lists(st.from_regex(r"[a-z0-9=.>:]{1,6}", fullmatch=True), min_size=1, max_size=4), st.booleans())
def test_a_text_of_words_may_be_written_as_several(words, equals):
    said = [f"--mags={words[0]}", *words[1:]] if equals else ["--mags", *words]
    for line in (["--redo", *said], [*said, "--redo"]):
        assert read_call(ThingCall, line) == ThingCall(mags=" ".join(words), redo=True)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["audit", "shards"], "--shards shards"),
        (["shards", "/data"], "--slides /data"),
        (["query", "SELECT 1"], "--sql 'SELECT 1'"),
        (["embed", "--model", "m", "--redo", "to"], "--to to"),
        (["curves", "run"], "--runs run"),
    ],
)
def test_a_value_without_its_option_is_asked_about(words, meant):
    with pytest.raises(BadOption, match=re.escape(f"belongs to no option; did you mean {meant}?")):
        read_call(COMMANDS[words[0]].call, words[1:])


def test_lists_add_up_and_what_is_not_said_is_as_declared():
    assert read_call(ThingCall, []) == ThingCall()
    found = read_call(ThingCall, ["--shards", "a", "b", "--redo", "--shards=-c", "--set", "x=", "--change=y="])
    assert found == ThingCall(shards=("a", "b", "-c"), set=("x=", "y="), redo=True)
    assert read_call(ThingCall, ["--sql", "", "--out=-b"]) == ThingCall(sql="", out=Path("-b"))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), st.integers())
def test_a_value_arrives_as_it_is(text, number):
    assert read_call(ThingCall, [f"--sql={text}", f"--shards={number}", f"--shards={text}"]) == ThingCall(
        sql=text, shards=(str(number), text)
    )


def test_help_is_the_docstrings_and_does_nothing(capsys):
    assert read_call(ThingCall, ["--help"]) is None
    shown = capsys.readouterr().out
    assert "Do a thing." in shown
    assert "Where." in shown
    assert "[default: shards]" in shown


@pytest.mark.parametrize("target", COMMANDS.values(), ids=COMMANDS)
def test_every_option_of_every_command_has_its_help(target):
    shown = command_line(target.call).assemble_argument_collection(parse_docstring=True)
    said = {each.name: each.parameter.help for each in shown if each.name != "*"}  # that is the record itself
    assert set(said) == {each.option for each in declared(target.call)}
    for option, text in said.items():
        assert str(text).endswith("."), option


@pytest.mark.parametrize("command", [forget, verify])
@pytest.mark.parametrize("mistyped", ["--dry-ru", "--re", "--ye", "--tak"])
def test_a_mistyped_option_deletes_nothing(command, mistyped, tmp_path):
    slide_id = add_slide(tmp_path, 1, {"5x": 1})
    (tmp_path / "stray").write_text("x")
    assert command(["--shards", str(tmp_path), mistyped, *(["--slide", slide_id] if command is forget else [])]) == 2
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
    assert line.startswith("forget: nothing was done: to permanently delete 1 slide of 1 output takes YES=1")
    assert verify(["--shards", str(tmp_path), "--repair", "--workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("verify: nothing was done: to delete what is broken")
    assert (tmp_path / "stores" / f"{slide_id}.zarr").is_dir()


def test_an_empty_question_is_the_commands_own_to_refuse(tmp_path):
    assert query(["--shards", str(tmp_path), "--sql", ""]) == 2


def test_a_value_that_begins_with_a_dash_is_to_be_written_behind_an_equals_sign(capsys):
    assert read_call(ShardsCall, ["--slides=./-x.tiff", "--out", "o"]).slides == "./-x.tiff"
    for words, said in (
        (["--slides", "-x y.tiff", "--out", "o"], "-x y.tiff looks like an option; write '--slides=./-x y.tiff'."),
        (["--out", "o", "--filter", "-pen"], "-pen looks like an option; write --filter=-pen."),
    ):
        with pytest.raises(BadOption) as refusal:
            read_call(ShardsCall, words)
        assert str(refusal.value) == f"{said} --help lists the options."
