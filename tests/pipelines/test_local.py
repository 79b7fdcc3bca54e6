"""What the trainer's commands write lies on a disk: a URL, or nothing, is refused and makes no folder."""

import pytest

from pipelines import curves, embed, evaluate, export, peek, train

CALLS = {
    "embed": (embed.main, ["--shards", "s", "--model", "m", "--to"]),
    "evaluate": (evaluate.main, ["--models", "m", "--tasks", "t", "--to"]),
    "train": (train.main, ["--shards", "s", "--folder"]),
    "export": (export.main, ["--folder", "r", "--to"]),
    "peek": (peek.main, ["--shards", "s", "--out"]),
    "curves": (curves.main, ["--runs", "r", "--out"]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("where", "why"), [("s3://bucket/features", "is a URL"), ("", "is empty"), (" ", "is empty")])
def test_a_url_or_nothing_is_no_place_to_write(tmp_path, monkeypatch, capsys, name, where, why):
    monkeypatch.chdir(tmp_path)
    main, call = CALLS[name]
    assert main([*call, where]) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
