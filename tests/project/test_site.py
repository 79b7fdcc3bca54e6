"""The pages that stand beside the code: what they list is what there is."""

import dataclasses
import re
import shlex

import pytest

import pretrain.errors
from pipelines.options import read_call
from pipelines.pages import api_page, options_page, recipes_page
from pipelines.targets import COMMANDS, TARGETS
from pretrain.train.recipe.recipe import flat
from pretrain.train.recipe.recipes import RECIPES, recipe
from tests.support.paths import ROOT
from wsi_prep import __all__ as public
from wsi_prep.compute import jobs
from wsi_prep.errors import SlideError, SlideExcluded, UsageError, WsiPrepError
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA

KINDS = {WsiPrepError, UsageError, SlideError, SlideExcluded}
"""Classes that stand for others."""


def sections(text, mark="##"):
    """What stands below each heading, by the heading."""
    parts = re.split(rf"^{mark} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text):
    """The cells of each table's rows, headings aside."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


def page(name):
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize(("table", "schema"), [("slides", SLIDE_SCHEMA), ("tiles", TILE_SCHEMA)])
def test_every_column_is_told_with_its_type(table, schema):
    told = rows(sections(page("reference/columns.md"))[table])
    assert [(name.strip("`"), kind) for name, kind, _, _ in told] == [(each.name, str(each.type)) for each in schema]
    assert all(meaning for *_, meaning in told)


def test_every_error_that_a_user_can_meet_is_told_and_no_other():
    modules = (pretrain.errors, jobs)
    there = {each for module in modules for each in vars(module).values() if isinstance(each, type)} | of(WsiPrepError)
    names = {each.__name__ for each in there if issubclass(each, WsiPrepError) and each not in KINDS}
    names = {name for name in names if not name.startswith("_")}
    told = set(sections(page("troubleshooting.md"), "###"))
    assert told == names | {"Another name"}


def of(kind):
    """All classes of errors.py below this one."""
    below = [each for each in kind.__subclasses__() if each.__module__ == "wsi_prep.errors"]
    return {*below, *(one for each in below for one in of(each))}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_told_with_its_meaning(name):
    told = rows(sections(options_page())[name])
    assert [option.strip("`") for option, *_ in told] == [
        f"--{each.name.replace('_', '-')}" for each in dataclasses.fields(COMMANDS[name].call)
    ]
    assert all(takes and meaning for _, _, takes, _, meaning in told)


def test_defaults_and_kinds_are_those_of_the_calls():
    told = {name: {row[0].strip("`"): row[1:] for row in rows(text)} for name, text in sections(options_page()).items()}
    assert told["shards"]["--slides"][:3] == ["`SLIDES`", "text", "**must be given**"]
    assert told["shards"]["--tissue"][:3] == ["`TISSUE`", "number", "`0.65`"]
    assert told["shards"]["--reader"][:3] == ["`READER`", "`auto` `tiff` `openslide`", "`auto`"]
    assert told["shards"]["--cluster"][1] == "`slurm`"
    assert told["curves"]["--runs"][:3] == ["`MODEL`", "path, several", "**must be given**"]
    assert told["audit"]["--shards"][:3] == ["`SHARDS`", "text, several", "`shards`"]
    assert told["verify"]["--repair"][1] == "flag"
    assert {f"`make {name}`" for name in TARGETS if name not in COMMANDS} == {
        row[0] for row in rows(options_page()) if row[0].startswith("`make")
    }


@pytest.mark.parametrize("number", range(len(RECIPES)), ids=list(RECIPES))
def test_every_setting_of_a_recipe_is_told(number):
    name = list(RECIPES)[number]
    told = {row[0].strip("`"): row[1 + number].strip("`") for row in rows(recipes_page())}
    wanted = {key: value for key, value in flat(recipe(name)).items() if key != "name"}
    assert set(told) == set(wanted)
    numbers = {key: value for key, value in wanted.items() if type(value) in (int, float)}
    assert len(numbers) > 20
    assert {key: float(told[key]) for key in numbers} == pytest.approx(numbers, rel=1e-5)


def test_every_public_name_has_its_block():
    assert set(re.findall(r"^::: wsi_prep\.(\w+)$", api_page(), re.MULTILINE)) == set(public)


def test_pages_of_the_navigation_are_there():
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = {"contributing.md", "changelog.md", "reporting.md"}
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(there | made)


def test_every_command_that_the_pages_type_is_understood():
    typed = []
    for path in (ROOT / "docs").rglob("*.md"):
        for block in re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            typed += [shlex.split(line, comments=True) for line in lines if line.strip().startswith("mixmag ")]
    assert len(typed) > 30
    assert [words for words in typed if read_call(COMMANDS[words[1]].call, words[2:]) is None] == []
