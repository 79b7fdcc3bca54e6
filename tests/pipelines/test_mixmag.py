"""`mixmag`, the command: its names, help, completion and versions, and what it says where a package is missing."""

import importlib
import subprocess
import sys
import typing
from dataclasses import replace
from importlib.metadata import version

import pytest

from pipelines.calls.base import declared
from pipelines.calls.shards import ShardsCall
from pipelines.calls.training import EmbedCall, RecipeCall
from pipelines.make import main as make_main
from pipelines.mixmag import command_lines, main
from pipelines.shards import build_request
from pipelines.targets import COMMANDS
from pretrain.train.recipe.recipe import PRECISIONS
from pretrain.train.recipe.recipes import RECIPES
from tests.support.paths import ROOT
from wsi_prep.run.request import RunRequest
from wsi_prep.slides.readers.select import READERS


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help_and_its_module(name, capsys):
    assert main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"Usage: mixmag {name}")
    for option in declared(COMMANDS[name].call):
        assert f" {option.option} " in shown
    assert callable(importlib.import_module(COMMANDS[name].module).main)


def test_help_lists_the_commands_and_make_help_every_option(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in COMMANDS)
    assert make_main(["help"]) == 0
    told = capsys.readouterr().out
    for target in COMMANDS.values():
        part = f"\n{told}".split(f"\n{target.name} ")[1]
        for option in declared(target.call):
            assert f"{option.variable}=" in part, (target.name, option.name)


def test_a_mistyped_command_is_one_line(capsys):
    assert main(["shard"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'Did you mean "shards"?' in line


def test_the_versions_that_a_report_needs(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"mixmag {version('mixed-magnification')}"
    assert lines[1].startswith(f"Python {sys.version.split()[0]}")
    for name in ("openslide-bin", "zarr", "torch"):
        assert f"{name} {version(name)}" in lines
    assert not any(line.startswith("pytest") for line in lines)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(shell):
    script = command_lines().generate_completion(shell=shell)
    assert all(name in script for name in (*COMMANDS, "max-tiles", "assume-mpp"))


def test_what_is_declared_twice_agrees():
    hints = typing.get_type_hints(ShardsCall)
    assert typing.get_args(hints["reader"]) == READERS
    assert typing.get_args(typing.get_type_hints(EmbedCall)["precision"]) == PRECISIONS
    told = {option.name: option for option in declared(RecipeCall)}
    assert told["recipe"].says.example == "debug"
    text = (ROOT / "pipelines/calls/training.py").read_text()
    assert f'"""One of {", ".join(RECIPES)}."""' in text


def test_the_defaults_of_the_command_are_those_of_the_library(tmp_path):
    said, own = build_request(ShardsCall(slides="s", out=str(tmp_path))), RunRequest("s", str(tmp_path))
    assert replace(said, script=None) == own


MISSING = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{gone}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
from pipelines.mixmag import main
sys.exit(main({words}))
"""


@pytest.mark.parametrize(
    ("gone", "words", "said"),
    [
        (
            "torch",
            ["pretrain"],
            "in a clone of the repository, pip install '.[train]'",
        ),
        (
            "dask",
            ["shards", "--slides", "x"],
            "in a clone of the repository, pip install .",
        ),
    ],
)
@pytest.mark.slow
def test_a_package_that_is_missing_is_named_with_what_installs_it(gone, words, said):
    code = MISSING.format(gone=gone, words=words)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == f"mixmag {words[0]} needs {gone}, which is not installed: {said}"
    assert ended.returncode == 2


@pytest.mark.slow
def test_help_needs_neither_torch_nor_dask():
    code = MISSING.format(gone="torch", words=[]).replace('== "torch"', 'in ("torch", "dask", "openslide", "cv2")')
    code = code.replace("sys.exit(main([]))", f"sys.exit(any(main([name, '--help']) for name in {list(COMMANDS)!r}))")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Usage: mixmag ") == len(COMMANDS)
