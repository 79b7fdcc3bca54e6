"""What `pretrain` offers to everybody: each name has an example, which runs."""

import doctest
import json
import subprocess
import sys

import pytest

import pretrain
from tests.support.released_weights import folder_of, released
from tests.support.training import make_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples run: `shards`, and `model`, a folder of weights."""
    folder = tmp_path_factory.mktemp("examples")
    make_shards(folder / "shards")
    (folder / "model").mkdir()
    arguments = {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    arguments |= {"dynamic_img_size": True}
    config = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "model_args": arguments}
    asked = {"input_size": [3, 56, 56], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    asked |= {"first_conv": "patch_embed.proj", "classifier": "head", "num_classes": 0}
    folder_of(folder / "model", released().state_dict(), {"config.json": config | {"pretrained_cfg": asked}})
    return folder


@pytest.mark.parametrize("name", pretrain.__all__)
def test_the_example_of_each_name_runs(folder, name, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    known = {other: getattr(pretrain, other) for other in pretrain.__all__}
    [test] = doctest.DocTestFinder(recurse=False).find(known[name], name, globs=known)
    found = doctest.DocTestRunner().run(test)
    assert found.attempted > 0, f"{name} has no example"
    assert found.failed == 0, capsys.readouterr().out


def test_importing_it_costs_nothing_until_a_name_is_used():
    code = "import json, sys, pretrain; dir(pretrain); print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    heavy = {"torch", "timm", "numpy", "pyarrow", "duckdb", "imagecodecs"}
    assert not heavy & {name.split(".")[0] for name in json.loads(said.stdout)}


def test_a_name_that_is_not_there_is_said_as_everywhere():
    with pytest.raises(AttributeError, match="module 'pretrain' has no attribute 'nothing'"):
        pretrain.nothing  # noqa: B018 - asked for alone
    assert set(pretrain.__all__) <= set(dir(pretrain))


def test_one_folder_may_be_named_alone_and_the_index_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = make_shards(tmp_path / "shards")
    for shards in (str(out), out, [str(out)], (out,)):
        assert pretrain.open_index(shards).tiles == 54
    assert len(list((tmp_path / "cache/mixed-magnification/index").iterdir())) == 3  # a part a slide
