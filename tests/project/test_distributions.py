"""What the wheel and the source distribution hold, built from a checkout in which people have worked."""

import email
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import PurePosixPath

import pytest

import wsi_prep
from tests.support.paths import ROOT
from tests.support.tracked import tracked_files

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = {pattern.removesuffix("*") for pattern in SETTINGS["packages"]["find"]["include"]}
READ_BY_CODE = {
    "wsi_prep/stain/stain.safetensors",
    "wsi_prep/curation/audit/templates/audit.html",
    "wsi_prep/curation/audit/templates/audit.css",
    "wsi_prep/curation/audit/templates/audit.js",
    "pretrain/evaluation/templates/evaluation.html",
}
ONLY_IN_THE_REPOSITORY = {
    ".ci",
    ".devcontainer",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "changelog.d",
}
LEFT_BY_PEOPLE = {
    "sample_slides/he_40x.svs",
    "sample_slides/he_40x.mask.png",
    "shards/run.json",
    "docs/notes.parquet",
    "wsi_prep/stain/old.safetensors",
}
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt, as Debian and Google's packages carry it."""

BUILD = """
import sys
from setuptools import build_meta
to = sys.argv[1]  # which building changes
build_meta.build_sdist(to)
build_meta.build_wheel(to)
"""


def run_in(folder, code, argument="", *options):
    command = [sys.executable, *options, "-c", code, argument]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tracked():
    return tracked_files()


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """The folder that holds one wheel and one .tar.gz."""
    checkout, to = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for name in tracked | LEFT_BY_PEOPLE:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes() if name in tracked else b"x")
    said = run_in(checkout, BUILD, str(to), "-Werror")
    assert said.returncode == 0, said.stderr
    return to


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        yield archive


def about(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def top(name):
    return PurePosixPath(name).parts[0]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel, tracked):
    held = {name for name in wheel.namelist() if not top(name).endswith(".dist-info")}
    assert held == {name for name in tracked if top(name) in PACKAGES}
    assert {"wsi_prep", "pretrain", "pipelines"} <= PACKAGES
    assert {*READ_BY_CODE, "wsi_prep/py.typed", "pretrain/py.typed"} <= held


def test_the_source_distribution_holds_the_repository_without_what_serves_it_alone(built, tracked):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in archive.getmembers() if m.isfile()}
    made = {name for name in held if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert held - made == {name for name in tracked if top(name) not in ONLY_IN_THE_REPOSITORY}


def test_the_version_is_said_once(wheel):
    assert about(wheel)["Version"] == wsi_prep.__version__


def test_the_licence_is_apache_2_to_the_letter(wheel):
    assert (about(wheel)["License-Expression"], about(wheel)["License-File"]) == ("Apache-2.0", "LICENSE")
    name = next(name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert hashlib.sha256(wheel.read(name)).hexdigest() == APACHE_2
    assert (ROOT / "LICENSE").read_bytes() == wheel.read(name)


def test_a_wheel_is_usable_without_the_checkout(built, tmp_path):
    shutil.unpack_archive(next(built.glob("*.whl")), tmp_path, "zip")
    code = "from wsi_prep.stain import model; print(model.__file__); model.read_stain_model(model.MODEL_FILE)"
    said = run_in(tmp_path, code)
    assert (said.returncode, said.stdout.strip()) == (0, str(tmp_path / "wsi_prep/stain/model.py")), said.stderr
