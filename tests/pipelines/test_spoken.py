"""`mixmag` speaks of options, make of variables, in one and the same message."""

import pytest

from pipelines.calls.base import declared
from pipelines.mixmag import main as mixmag
from pipelines.query import main as query
from pipelines.shards import main as shards
from pipelines.spoken import by_mixmag, in_callers_words
from pipelines.targets import COMMANDS
from tests.support.shard_folders import add_slide


@pytest.mark.parametrize(
    ("command", "written", "said"),
    [
        ("shards", "PATIENT_KEY=file with a secret", "--patient-key file with a secret"),
        (
            "shards",
            "OUT /a/OUT/x: name it with MANIFEST=, or add REDO=1.",
            "--out /a/OUT/x: name it with --manifest, or add --redo.",
        ),
        ("shards", "give a mask (MASKS=)", "give a mask (--masks)"),
        (
            "shards",
            "CLUSTER=slurm needs sbatch; correct CLUSTER_CONFIG",
            "--cluster slurm needs sbatch; correct --cluster-config",
        ),
        ("shards", "$WSI_PREP_PATIENT_KEY, or ASSUME_MPP", "$WSI_PREP_PATIENT_KEY, or --assume-mpp"),
        ("shards", "it is no PNG; CLASS/SLIDE/*.png, REDO.svs", "it is no PNG; CLASS/SLIDE/*.png, REDO.svs"),
        (
            "verify",
            "REPAIR=1 removes it, and make shards then makes it",
            "--repair removes it, and mixmag shards then makes it",
        ),
        ("verify", "3 files in OUT", "3 files in --shards"),
        ("query", 'at or near "WHERE": a LIKE b TO c WHERE', 'at or near "WHERE": a LIKE b TO c WHERE'),
        ("query", "TO=file.csv takes all", "--to file.csv takes all"),
        ("embed", "try another PX", "try another --px"),
        ("plan", "change these with SLIDE_GB=1.2 and so on", "change these with --slide-gb 1.2 and so on"),
        ("pretrain", "SET=compute.precision=fp32; GPUS=16", "--set compute.precision=fp32; --gpus 16"),
        ("embed", "make evaluate and make embed take it", "mixmag evaluate and mixmag embed take it"),
        ("audit", "make sure that it makes sense", "make sure that it makes sense"),
    ],
)
def test_a_message_is_in_the_words_of_who_called(command, written, said):
    assert in_callers_words(written, command) == written
    with by_mixmag():
        assert in_callers_words(written, command) == said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_both_its_names(name):
    with by_mixmag():
        for option in declared(COMMANDS[name].call):
            value = "1" if option.kind is bool else "x"
            said = option.option if option.kind is bool else f"{option.option} x"
            assert in_callers_words(f"add {option.variable}={value}, please", name) == f"add {said}, please"


@pytest.mark.slow
def test_a_refusal_tells_each_caller_what_to_type(tmp_path, capsys):
    slide = add_slide(tmp_path / "made", 1, {"5x": 1})
    call = ["--slides", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--names", "x.csv"]
    assert shards(call) == 2
    assert capsys.readouterr().err == "shards: ID_KEY and NAMES are for PRIVATE=1; add it, or omit them\n"
    assert mixmag(["shards", *call]) == 2
    assert capsys.readouterr().err == "shards: --id-key and --names are for --private; add it, or omit them\n"
    assert mixmag(["forget", "--slide", slide, "--shards", str(tmp_path / "made"), "--dry"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was deleted: --dry"
    assert mixmag(["verify", "--shards", str(tmp_path / "made"), "--workers", "1"]) == 3
    assert "--repair removes what is damaged, and mixmag shards then makes it again" in capsys.readouterr().out
    question = ["--shards", str(tmp_path / "none"), "--sql", "SELECT 1"]
    assert query(question) == 2
    before = capsys.readouterr().err
    assert "make shards" in before
    assert mixmag(["query", *question]) == 2
    assert capsys.readouterr().err == before.replace("make shards", "mixmag shards").replace("SHARDS ", "--shards ")
