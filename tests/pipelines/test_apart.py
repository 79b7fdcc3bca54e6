"""What a command writes is never put over, or among, what make shards has written."""

import pytest

from pipelines import audit, embed, interchange, peek, query, shards
from tests.support.shard_folders import add_overlay, add_slide

PLACES = ("catalog/slides/part-00000.parquet", "run.json", ".run.json", "stores/x.csv", "tissue", "overlays/new/a.png")
CALLS = {
    "audit": (audit.main, ["--to"], ["--shards"]),
    "query": (query.main, ["--sql", "SELECT 1 AS a", "--to"], ["--shards"]),
    "embed": (embed.main, ["--model", "m", "--to"], ["--shards"]),
    "peek": (peek.main, ["--out"], ["--shards"]),
    "qupath": (interchange.main, ["--kind", "qupath", "--to"], ["--shards"]),
    "trident": (interchange.main, ["--kind", "trident", "--to"], ["--shards"]),
    "webdataset": (interchange.main, ["--kind", "webdataset", "--to"], ["--shards"]),
    "shards": (shards.main, ["--log"], ["--out"]),
}


@pytest.fixture
def out(tmp_path):
    add_overlay(tmp_path / "out", add_slide(tmp_path / "out", 1, {"20x": 2}))
    (tmp_path / "out/run.json").write_text("{}")
    return tmp_path / "out"


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("how", ["itself", "by a link", "by a link to a folder in it"])
def test_nothing_is_written_among_shards(tmp_path, out, capsys, name, how):
    main, before, shards_option = CALLS[name]
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "in").symlink_to(out / "catalog")
    given = [*(["--slides", str(out)] if name == "shards" else []), *shards_option, str(out)]
    was = everything(out)
    for place in PLACES:
        to = {"itself": out / place, "by a link": tmp_path / "link" / "x" / ".." / place}.get(
            how, tmp_path / "in/a.csv"
        )
        assert main([*given, *before, str(to)]) == 2
        assert "lies among what make shards has written to" in capsys.readouterr().err
    assert everything(out) == was


def test_a_page_may_lie_at_the_top_of_shards(out):
    assert audit.main(["--shards", str(out), "--to", str(out / "audit.html")]) == 0
    assert (out / "audit.html").read_text().startswith("<!doctype html>")
