"""What audit, peek and embed say of the same shards is the same: as many tiles, slides and strata, a slide once."""

import re

import duckdb
import pytest
import torch

from pipelines import audit, peek
from pretrain.features.embed import EmbedSettings, FeaturesTo, WantedTiles, embed_shards
from pretrain.features.embedder import Inference, of_backbone
from pretrain.model.backbone import Backbone, BackboneSettings
from tests.support.shard_folders import add_row, add_slide


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two folders with one slide in both, and slides that have no tile."""
    a, b = (tmp_path_factory.mktemp("shards") / name for name in "ab")
    add_slide(a, 1, {"40x": 5, "20x": 2}, stain="HE")
    add_slide(a, 2, {"40x": 3, "10x": 1}, stain="IHC", tissue="Haut_皮膚")
    add_slide(b, 2, {"40x": 3, "10x": 1}, stain="IHC", tissue="Haut_皮膚")
    add_slide(b, 3, {"20x": 4}, stain="HE", patient_key="p")
    add_row(a, "slide3-00000003", status="failed", error="no JPEG")
    add_row(b, "none-1", status="empty", stain="HE")
    return [str(a), str(b)]


def counts(said):
    """Tiles, slides and strata of a line; and slides without a patient's key."""
    of = re.search(r"([\d,]+) tiles of ([\d,]+) slides in ([\d,]+) strata", said.out)
    return [
        *map(int, of.groups()),
        int(re.search(r"(\d+) slides? (?:that (?:is|are) ok )?ha(?:s|ve) no patient_key", said.err)[1]),
    ]


@pytest.mark.slow
def test_audit_peek_and_embed_count_alike(shards, tmp_path, capsys):
    assert audit.main(["--shards", *shards, "--to", str(tmp_path / "audit.html")]) == 3  # there are no overlays
    audited = counts(capsys.readouterr())
    index = ["--index", str(tmp_path / "index")]
    assert peek.main(["--shards", *shards, "--out", str(tmp_path / "sheet.png"), *index]) == 0
    assert counts(capsys.readouterr()) == audited
    embedder = of_backbone(Backbone(BackboneSettings(width=32, depth=1, heads=2, image_px=56)))
    settings = EmbedSettings(Inference(torch.device("cpu"), 8, 1, None), 56)
    done = embed_shards(WantedTiles(shards), embedder, FeaturesTo(tmp_path / "features"), settings)
    assert [done.tiles, done.slides] == audited[:2]
    tiles = [f"{out}/catalog/tiles/*.parquet" for out in shards]
    by_hand = duckdb.execute(
        "SELECT count(DISTINCT (slide_id, magnification, index)), count(DISTINCT slide_id) FROM read_parquet($1)",
        [tiles],
    ).fetchone()
    assert by_hand == tuple(audited[:2]) == (15, 3)
    assert audited[2:] == [4, 2]
