"""docs/licences.md: a row for each library that pyproject names, with what the installed package says of itself."""

import re
import tomllib
from importlib import metadata

import pytest

from tests.support.paths import ROOT
from tests.support.tracked import tracked_files

PAGE = (ROOT / "docs" / "licences.md").read_text()
ROWS = dict(re.findall(r"^\| ([a-z][a-z0-9-]+) \| ([^|]+?) \|", PAGE.split("### OpenSlide")[0], re.MULTILINE))
"""Package: its licence as SPDX has it."""
del ROWS["package"]

LOOKED_AT = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "blessing", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-4.3TAHOE", "BSL-1.0", "CC0-1.0", "CNRI-Python", "IJG", "ISC", "LGPL-2.1-only", "LGPL-2.1-or-later",
    "libpng-2.0", "libtiff", "LicenseRef-Public-Domain", "MIT", "MIT-CMU", "MPL-1.1", "MPL-2.0", "OLDAP-2.8",
    "PSF-2.0", "Zlib",
}  # fmt: skip
"""Licences that forbid nothing that this project or its users do; another is read before it joins."""

WORDS = {
    "Apache 2.0": {"Apache-2.0"},
    "Apache Software License": {"Apache-2.0", "MIT OR Apache-2.0"},
    "BSD": {"BSD-2-Clause", "BSD-3-Clause"},
    "BSD License": {"BSD-2-Clause", "BSD-3-Clause"},
    "New BSD License": {"BSD-3-Clause"},
    "BSD 3-Clause": {"BSD-3-Clause"},
    "MIT License": {"MIT", "MIT OR Apache-2.0"},
    "Python Software Foundation License": {"PSF-2.0"},
    "License agreement for matplotlib versions 1.3.0 and later": {"PSF-2.0"},
    "Files: *": {"BSD-3-Clause"},  # how scikit-image's list of files begins
}
"""What packages say that is no SPDX expression, and what it may mean."""


def named_by_pyproject():
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = said["project"]["optional-dependencies"].values()
    lines = [
        *said["build-system"]["requires"],
        *said["project"]["dependencies"],
        *(r for extra in extras for r in extra),
    ]
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}


def says(package):
    """What its metadata say: one SPDX expression, or words."""
    about = metadata.metadata(package)
    if about.get("License-Expression"):
        return {about["License-Expression"]}
    first_line = (about.get("License") or "").strip().partition("\n")[0].strip()
    classified = {c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License :: OSI")}
    return ({first_line} | classified) - {""}


def takeable(expression):
    """Whether of each part of an SPDX expression one alternative is in the list above."""
    parts = (part.strip("()").split(" OR ") for part in re.split(r" AND (?![^(]*\))", expression))
    return all(LOOKED_AT & set(alternatives) for alternatives in parts)


def test_every_library_has_a_row_and_no_other():
    assert set(ROWS) == named_by_pyproject()


@pytest.mark.parametrize("package", sorted(ROWS))
def test_a_row_says_what_the_package_says(package):
    try:
        said = says(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed here")
    assert said, "its metadata say nothing: read its licence, and add its words here"
    assert all(ROWS[package] in WORDS.get(words, {words}) for words in said), said


@pytest.mark.parametrize("package", sorted(ROWS))
def test_none_forbids_what_we_do(package):
    assert takeable(ROWS[package])


@pytest.mark.parametrize(
    "expression",
    [
        "GPL-3.0-only",
        "AGPL-3.0-or-later",
        "MIT AND CC-BY-NC-4.0",
        "MIT AND (GPL-2.0-only OR SSPL-1.0)",
        "LGPL-3.0-only",
    ],
)
def test_what_would_bind_us_is_seen(expression):
    assert not takeable(expression)


def test_an_offer_of_two_is_taken():
    assert takeable("MIT AND (BSD-3-Clause OR GPL-2.0-only) AND Zlib")


def test_every_picture_and_every_file_of_data_has_a_row():
    files = {
        name for name in tracked_files() if re.search(r"\.(safetensors|jpg|png|xz|parquet|svs|tiff?|npz|pt)$", name)
    }
    assert files == set(re.findall(r"^\| `((?:wsi_prep|docs|tests)/[^`]+)`", PAGE, re.MULTILINE))
