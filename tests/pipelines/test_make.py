"""What is typed to make is what happens: every variable arrives as it is, and what is not understood is refused."""

import re
import signal
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.calls.training import PretrainCall
from pipelines.make import SAMPLES, check, plan, standing
from pipelines.processes import torchrun_words, wants_processes
from pipelines.recipe import main as recipe
from pipelines.spoken import by_mixmag
from pipelines.targets import TARGETS
from pipelines.variables import Call, WrongCall, flag, parse_overrides, read_call, several
from pretrain.train.recipe.recipes import RECIPES
from tests.support.made_calls import ROOT, executed, make, refusal
from tests.support.shard_folders import add_row
from wsi_prep.errors import BadOption

PRINTING = (
    "export CALL_GIVEN := $(MAKEOVERRIDES)\n{}x: ; @{} -c 'import os; print(ascii(os.environ[\"CALL_GIVEN\"]))'\n"
)
HEADER = next(line for line in (ROOT / "Makefile").read_text().splitlines(keepends=True) if "unexport" in line)
typed = st.text(
    st.sampled_from("ab =:\\$'\"`;&|()#%*?~\t\n-{}é,@") | st.characters(exclude_characters="\0"), max_size=20
)
typed = typed.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))


def call(*goals, environment=None, **given):
    return Call(goals, given, environment or {})


def commands(goal, **given):
    """What would be run, without the interpreter."""
    made = call(goal, **given)
    check(made)
    return [command[command.index("-m") + 1 :] for command in plan(made, goal)]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(typed, typed)
def test_make_passes_on_what_was_typed(tmp_path_factory, first, second):
    """Against make itself, which quotes what stands on its command line."""
    makefile = tmp_path_factory.mktemp("make") / "Makefile"
    makefile.write_text(PRINTING.format(HEADER, sys.executable))
    called = make("-f", makefile, f"SLIDES={first}", f"OUT={second}", "x")
    assert called.returncode == 0, called.stderr
    found = parse_overrides(eval(called.stdout))  # noqa: S307 - what ascii() wrote
    # make drops blanks at the beginning of a value
    assert found == {"SLIDES": first.lstrip(" \t\n\v\f\r"), "OUT": second.lstrip(" \t\n\v\f\r")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shards", "SLIDS=x"], "SLIDS is no variable of make shards; did you mean SLIDES?"),
        (["shards", "SLIDE=us", "OUT={out}"], "did you mean SLIDES?"),
        (["shards", "MANIFST=x", "SLIDES=x"], "did you mean MANIFEST?"),
        (["shards", "PRIVAT=1"], "did you mean PRIVATE?"),
        (["shards", "SLIDES=", "OUT={out}"], "SLIDES is empty"),
        (["shards", "SLIDES= ", "OUT={out}"], "SLIDES is empty"),
        (["shards", "MANIFEST=x", "OUT={out}"], "name SLIDES too"),
        (["shards", "PRIVATE=1", "OUT={out}"], "name SLIDES too"),
        (["forget", "SLIDE=x", "SHARDS={out}", "DRYRUN=1"], "did you mean DRY?"),
        (["forget", "SLIDE=x", "SHARDS={out}", "DRY=maybe"], "DRY=maybe is neither on nor off"),
        (["forget", "SLIDE=x", "DRY"], "there is no target 'DRY'"),
        (["shard", "OUT={out}"], "there is no target 'shard'; did you mean make shards?"),
        (["tests"], "there is no target 'tests'; did you mean make test?"),
        (["it's;touch pwned", "OUT={out}"], "there is no target"),
        (["clean", "OUT={out}"], "make clean takes no variable"),
        (["query", "SQL=SELECT 1", "V=1"], "V is no variable of make query; it takes ARGS"),
        (["shards", "verify", "SLIDES=x", "OUT={out}", "REPAIR=perhaps"], "REPAIR=perhaps is neither"),
    ],
)
def test_a_call_that_is_not_understood_is_one_line_and_changes_nothing(words, said, tmp_path):
    out = tmp_path / "out"
    assert said in refusal(*(word.format(out=out) for word in words))
    assert list(tmp_path.iterdir()) == []
    assert executed(tmp_path) == []


def test_the_environment_is_heard_too_but_only_where_it_says_something_known(tmp_path):
    assert "SLIDES is empty" in refusal("shards", SLIDES="", OUT=str(tmp_path / "out"))
    called = make("query", "SQL=SELECT 1", SHARDS="there$HOME", SHARD="x", V="1")
    heard, refused, *_ = called.stderr.splitlines()
    assert heard == "make query: from the environment: SHARDS=there$HOME"
    assert "there$HOME holds no" in refused
    said = call("query", environment={"SHARDS": "that", "V": "1"}, SHARDS="this", SQL="x").said(TARGETS["query"])
    assert said == {"SHARDS": "this", "SQL": "x"}


def test_relative_paths_are_of_the_place_where_the_user_stands(tmp_path):
    add_row(tmp_path / "a folder", "s1", status="failed", file="f")
    (tmp_path / "pipelines").mkdir()  # what is named like this project's own does not come before it
    (tmp_path / "pipelines" / "query.py").write_text("raise SystemExit('another one')")
    answer = "query", "SQL=SELECT slide_id FROM slides", "SHARDS=a folder", "TO=answer.csv"
    called = make("-C", ROOT, *answer, cwd=tmp_path)
    assert called.returncode == 0, called.stderr
    assert (tmp_path / "answer.csv").read_text().replace('"', "").split() == ["slide_id", "s1"]
    assert f"relative paths are taken from {tmp_path}" in called.stderr
    assert not (ROOT / "answer.csv").exists()


def test_where_the_user_stands_is_believed_only_of_make_c(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    told = f"relative paths are taken from {there}"
    for flags, level, wanted in [
        ("w", "1", (there, told)),
        ("kw -j2 -- SLIDES=w", "1", (there, told)),
        ("", "1", (tmp_path, "")),
        ("SLIDES=w", "1", (tmp_path, "")),
        (" -j2 -- SLIDES=w", "1", (tmp_path, "")),
        ("s -- A=b", "1", (tmp_path, f"relative paths are taken from {tmp_path}")),
        (" --no-print-directory", "1", (tmp_path, f"relative paths are taken from {tmp_path}")),
        ("w", "2", (tmp_path, "")),
    ]:
        assert standing({"CALL_FROM": str(there), "MAKEFLAGS": flags, "MAKELEVEL": level}) == wanted, flags
    assert standing({"CALL_FROM": str(tmp_path), "MAKEFLAGS": "w", "MAKELEVEL": "1"}) == (tmp_path, "")
    assert standing({"CALL_FROM": "/no/where", "MAKEFLAGS": "w", "MAKELEVEL": "1"}) == (tmp_path, "")


@pytest.mark.parametrize("word", ["0", "no", "No", "false", "FALSE", "off", "", " "])
def test_a_flag_is_off(word):
    assert flag("REDO", word) is False
    assert commands("verify", SHARDS="x", REPAIR=word) == [["pipelines.verify", "--shards=x"]]


@pytest.mark.parametrize("word", ["1", "yes", "True", "ON"])
def test_a_flag_is_on(word):
    assert flag("REDO", word) is True
    assert commands("verify", SHARDS="x", REPAIR=word) == [["pipelines.verify", "--shards=x", "--repair"]]


@given(st.text())
def test_a_flag_is_one_of_a_few_words(word):
    known = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}
    wanted = {**known, "": False}.get(word.strip().lower())
    if wanted is None:
        with pytest.raises(WrongCall, match="neither on nor off"):
            flag("DRY", word)
    else:
        assert flag("DRY", word) is wanted


def test_lists_are_words_or_one_path_or_lines_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("it's one", "a", "b", "a b", "c1", "c2"):
        Path(name).mkdir()
    Path("list.txt").write_text("it's one\r\n\n/far away\n", encoding="utf-8")

    def paths(text):
        return several("SHARDS", text, paths=True)

    assert paths("a  b\tx") == ["a", "b", "x"]
    assert paths("it's one") == ["it's one"]
    assert paths("pcam:it's one") == ["pcam:it's one"]
    assert paths("it's one:labels") == ["it's one:labels"]
    assert paths("it's one\ns3://bucket/a b\n") == ["it's one", "s3://bucket/a b"]
    assert paths("@list.txt") == ["it's one", "/far away"]
    assert paths("c* s3://bucket/*") == ["c1", "c2", "s3://bucket/*"]
    assert several("SLIDE", "c* a", paths=False) == ["c*", "a"]
    with pytest.raises(WrongCall, match="one path or 2"):
        paths("a b")
    with pytest.raises(WrongCall, match=r"none\.txt cannot be read: No such file"):
        paths("@none.txt")
    Path("empty.txt").write_text("\n")
    with pytest.raises(WrongCall, match="lists nothing"):
        paths("@empty.txt")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=1), min_size=2))
def test_a_list_of_lines_is_its_lines(values):
    assert several("SLIDE", "\n".join(values), paths=False) == values
    if not values[0].startswith("@"):
        assert several("SLIDE", " ".join(values), paths=False) == " ".join(values).split()


def test_sample_slides_are_for_a_call_that_names_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [["pipelines.samples"], ["pipelines.shards", f"--slides={SAMPLES}", "--out=shards"]]
    found = commands("shards")
    assert [command[: len(wanted)] for command, wanted in zip(found, made, strict=True)] == made
    assert commands("shards", SLIDES="mine", OUT="x") == [["pipelines.shards", "--slides=mine", "--out=x"]]
    assert commands("shards", OUT="x")[1][2] == "--out=x"
    assert [command[0] for command in commands("pretrain")] == [
        "pipelines.samples",
        "pipelines.shards",
        "pipelines.train",
    ]
    add_row(tmp_path / "shards", "s1", status="ok", file="he_40x.svs")
    assert commands("shards") == found
    add_row(tmp_path / "shards", "s2", status="ok", file="S19-1.svs")
    with pytest.raises(WrongCall, match="holds other slides than the samples, 1 of them"):
        commands("shards")
    with pytest.raises(WrongCall, match="object store"):
        commands("shards", OUT="s3://bucket/x")
    with pytest.raises(WrongCall, match="name SHARDS too: PROBE"):
        commands("pretrain", PROBE="x.parquet")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/run.json").write_text("{}")  # which names its shards: no sample slides are made
    assert commands("pretrain", RUN="own") == [["pipelines.train", "--run=own"]]
    (tmp_path / "shards/run.json").write_text("{}")
    run = ["pipelines.train", "--where=a < 1"]
    assert commands("pretrain", WHERE="a < 1") == [run]


def test_processes_of_training(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    run = ["--shards=s", "--run=r"]
    assert commands("pretrain", SHARDS="s", RUN="r", GPUS="2") == [["pipelines.train", *run, "--gpus=2"]]
    assert not wants_processes(PretrainCall())

    def started(**given):
        call = PretrainCall(**given)
        assert wants_processes(call)
        return torchrun_words(call, Path("r"), "pipelines.train", run)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    near = started(gpus=2)
    start, file, name, *rest = near[:3], near[3], near[4], *near[5:]
    assert start == [
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
    ]
    assert Path(file.removeprefix("--rdzv-endpoint=")).parent.stat().st_mode & 0o777 == 0o700
    assert file.endswith(name.removeprefix("--rdzv-id="))
    ignored = "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert ignored in started(gpus=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ignored not in near
    assert rest == ["-m", "--", "pipelines.train", *run]
    with by_mixmag():  # each process speaks of options, too
        assert started(gpus=2)[-6:] == ["-m", "--", "pipelines.mixmag", "pretrain", *run]
    far = started(nodes=4, gpus=8, head="h:1")
    meeting = ["--nproc-per-node=8", "--rdzv-backend=c10d", "--nnodes=4", "--rdzv-endpoint=h:1", "--rdzv-id=r"]
    assert far == [*meeting, "-m", "--", "pipelines.train", *run]
    for wrong, why in (
        ({"nodes": 4}, "needs --head"),
        ({"gpus": 0}, "--gpus 0"),
        ({"head": "h:1", "nodes": -1}, "--nodes -1"),
    ):
        with pytest.raises(BadOption, match=why):
            started(**wrong)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r")
    assert not wants_processes(PretrainCall(gpus=2))


def test_what_contradicts_itself_or_lacks_something_is_refused():
    for wrong in (call("verify", SHARDS="a", OUT="b"), call("evaluate", MODEL="x"), call("query", SQL="x", ARGS="'a")):
        with pytest.raises(WrongCall, match=r"OUT both|TASKS= is missing|no closing quotation"):
            check(wrong)
    check(call("shards", "verify", SLIDES="x", SHARDS="a", OUT="b"))
    check(call("test", PYTHON="python3.12", VENV="/venv"))
    assert read_call({"CALL_GOALS": "", "CALL_GIVEN": ""}) == call(
        "help", environment={"CALL_GOALS": "", "CALL_GIVEN": ""}
    )


def test_the_fast_tests_leave_out_every_marker_and_all_others_none():
    pytest_ini = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = [line.partition(":")[0] for line in pytest_ini["markers"]]
    ([_, _m, module, *fast],) = plan(call("test-fast", ARGS="-x"), "test-fast")
    assert module == "pytest"
    assert fast[fast.index("-m") + 1] == f"not ({' or '.join(markers)})"
    assert fast[-1] == "-x"
    for target, chosen in (("test", "not long"), ("test-long", "long")):
        ([_, _m, module, *words],) = plan(call(target), target)
        assert (module, words[words.index("-m") + 1]) == ("pytest", chosen)


def test_a_soak_is_told_how_long_and_where():
    words = ["tests.soak", "--hours=0.5", "--seed=7", "--workers=2", "--out=a folder", "--keep"]
    assert commands("soak", HOURS="0.5", SEED="7", WORKERS="2", OUT="a folder", ARGS="--keep") == [words]
    assert commands("soak") == [["tests.soak"]]


def test_outlines_and_ink_are_judged_on_the_same_pictures():
    given = call("evaluate-tissue", PICTURES="my overviews", ARGS="--quick")
    outlines, ink = plan(given, "evaluate-tissue")
    assert [command[2] for command in (outlines, ink)] == ["tests.benchmarks.tissue", "tests.benchmarks.ink"]
    assert all(find_spec(command[2]) for command in (outlines, ink))
    assert outlines[3:] == ["--pictures=my overviews", "--quick"]
    assert ink[3:] == ["--pictures=my overviews"]


def test_the_makefile_has_the_targets_of_the_table():
    text = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z][a-z -]*): ", text, re.MULTILINE)
    named = {name for rule in rules for name in rule.split()} | {"help", "clean"}
    assert named == set(TARGETS)
    assert sorted(
        re.search(r"^TARGETS := ((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", "").split()
    ) == sorted([*(named - {"help", "clean"}), "$(BARE)"])
    shown = make("help").stdout
    for target in TARGETS.values():
        assert re.search(rf"^{target.name} +{re.escape(target.about.split(',')[0][:30])}", shown, re.MULTILINE), target


def test_what_the_documents_type_is_understood():
    calls = 0
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for goal, words in re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b([^`\n]*)", page.read_text(), re.MULTILINE):
            target = TARGETS[goal]
            names = re.findall(r"(?:^| )([A-Z_]{2,})=", re.sub(r'"[^"]*"|\'[^\']*\'|#.*', "x", words))
            assert {name for name in names if not target.variable(name)} == set(), (page.name, goal, words)
            calls += 1
    assert calls > 40


@pytest.mark.parametrize("mark", ["'", '"'])
def test_quotation_marks_in_a_list_of_paths_are_told_to_mean_nothing(mark, tmp_path):
    there = tmp_path / f"{mark}a"
    with pytest.raises(WrongCall, match=r"SHARDS: ['\"]/a begins with a quotation mark.*write one path a line"):
        several("SHARDS", f"{mark}/a b{mark} ../c", paths=True)
    assert several("SHARDS", "/a b\n../c", paths=True) == ["/a b", "../c"]
    there.mkdir()
    assert several("SHARDS", f"{there} /c", paths=True) == [str(there), "/c"]


def test_a_recipe_tells_the_names_of_the_others(capsys):
    assert recipe([]) == 0
    assert f"# recipes: {' '.join(RECIPES)}; RECIPE=name shows one\n" in capsys.readouterr().out
