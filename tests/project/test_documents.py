"""What documents and forms point to is there."""

import json
import re
import textwrap
import tomllib

import pytest
import yaml

from pipelines.targets import TARGETS
from tests.support.paths import ROOT
from tests.support.tracked import tracked_files

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
WITHOUT_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", WITHOUT_CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    found = []
    for name, anchor in LINK.findall(WITHOUT_CODE.sub("", page.read_text())):
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{name}#{anchor}")
    return found


def test_every_link_between_documents_leads_somewhere():
    pages = [ROOT / name for name in sorted(tracked_files()) if name.endswith(".md")]
    assert {str(page.relative_to(ROOT)): broken_links(page) for page in pages if broken_links(page)} == {}


def test_every_test_that_a_document_names_is_there():
    defined = re.compile(r"^ *def (test_\w+)", re.MULTILINE)
    tests = [ROOT / name for name in tracked_files() if name.startswith("tests/") and name.endswith(".py")]
    there = {name for file in tests for name in [file.stem, *defined.findall(file.read_text())]}
    pages = [ROOT / name for name in tracked_files() if name.startswith("docs/") and name.endswith(".md")]
    named = {name for page in pages for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named - there == set()
    assert len(named) > 50


def test_the_readme_is_short_and_leads_to_every_page_for_newcomers():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    wanted = {f"docs/{name}.md" for name in ("tutorial", "index", "troubleshooting", "glossary")}
    wanted |= {str(page.relative_to(ROOT)) for page in (ROOT / "docs/how-to").glob("*.md")}
    assert wanted - {name for name, _ in LINK.findall(text)} == set()


@pytest.mark.parametrize("link", ["[a](none.md)", "[a](page.md#other)", "![a](none.png)", "[a](#other)"])
def test_a_planted_broken_link_is_seen(link, tmp_path):
    (tmp_path / "page.md").write_text(f"# A heading: of `two` words\n[a](page.md#a-heading-of-two-words) {link}\n")
    assert len(broken_links(tmp_path / "page.md")) == 1


def test_the_files_and_targets_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"`((?:tests|docs|wsi_prep|pretrain|pipelines|\.ci)/[\w./-]+)`", text)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert set(re.findall(r"`?make ([a-z-]+)", text.replace("make are", ""))) <= set(TARGETS)


def test_the_how_to_of_slurm_shows_the_settings_that_its_tests_use():
    (shown,) = re.findall(r"^ *```yaml\n(.*?)^ *```", (ROOT / "docs/how-to/slurm.md").read_text(), re.M | re.S)
    assert textwrap.dedent(shown) == (ROOT / "docs/slurm/shards.yaml").read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_a_form_asks_for_what_is_needed_to_help(form):
    said = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert said == {"blank_issues_enabled": False}
        return
    asked = {each["id"]: each["attributes"] for each in said["body"] if each["type"] != "markdown"}
    assert "mixmag --version" in asked["version"]["description"]
    needed = {"bug.yml": {"command", "row"}, "slide.yml": {"format", "scanner", "picture", "row"}}
    assert needed.get(form.name, {"question"}) <= set(asked)


def test_the_container_for_editors_has_the_python_of_the_pins():
    file = ROOT / ".devcontainer" / "devcontainer.json"
    if not file.exists():
        pytest.skip("needs a clone")
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert json.loads(file.read_text())["image"].endswith(f":{least}")
