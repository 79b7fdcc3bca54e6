"""CITATION.cff says what the package says of itself, and names the paper."""

import re
import tomllib

import pytest
import yaml

import wsi_prep
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_what_format_1_2_0_asks_for_is_there(citation):
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)


def test_it_says_what_the_package_says(citation):
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == wsi_prep.__version__
    assert citation["license"] == about["license"]
    assert citation["authors"] == about["authors"]
    assert citation["abstract"].rstrip(".").replace("vision transformer", "ViT") == about["description"]


def test_the_paper_is_the_one_that_the_readme_names(citation):
    (paper,) = citation["references"]
    assert paper["title"] == "Virchow2: Scaling Self-Supervised Mixed Magnification Models in Pathology"
    assert (paper["year"], paper["authors"][0]["family-names"], len(paper["authors"])) == (2024, "Zimmermann", 14)
    (number,) = re.findall(r"arXiv ([\d.]+)\]\(https", (ROOT / "README.md").read_text())
    assert paper["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]
    assert paper["url"] == f"https://arxiv.org/abs/{number}"
