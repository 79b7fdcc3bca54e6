"""The recipes of images: what they copy and start, and their commands, done in a fresh virtual environment.

No image is built here. Lines that install Python packages run as they stand, where MIXMAG_TEST_CONTAINERS=1 asks for it
(minutes, and a package index); lines of the system (useradd, dnf) are only read by sh -n.
"""

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CONTAINERS = ROOT / "containers"
NAMES = ("Dockerfile", "Dockerfile.train", "mixmag.def")
ABOUT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_A_SLIM_IMAGE = {
    "ld-linux-x86-64.so.2", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libmvec.so.1", "libpthread.so.0",
    "librt.so.1", "libstdc++.so.6", "libutil.so.1", "libz.so.1",
}  # fmt: skip
"""Libraries of the system that python:3.11-slim has."""
OPTIONAL = {"libtbb.so.12", "libgomp.so.1.0.0"}
"""What numba's threads may use; where it is not there, numba has a pool of its own."""


@dataclass(frozen=True)
class Image:
    base: str
    copied: dict[str, str]
    commands: list[str]
    start: str


def read(name):
    text = (CONTAINERS / name).read_text()
    return read_apptainer(text) if name.endswith(".def") else read_dockerfile(text)


def read_dockerfile(text):
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    said = [line.split(maxsplit=1) for line in lines]
    copied = {}
    for words in (rest.split() for word, rest in said if word == "COPY"):
        for source in words[:-1]:
            copied[source] = source if words[-1] == "./" else words[-1]
    (base,) = (rest.removeprefix("BASE=") for word, rest in said if word == "ARG")
    (start,) = re.findall(r'^ENTRYPOINT \["([^"]+)"\]$', text, re.MULTILINE)
    return Image(base, copied, [rest for word, rest in said if word == "RUN"], start)


def read_apptainer(text):
    sections = dict(re.findall(r"^%(\w+)\n((?:    .*\n|\n)*)", text, re.MULTILINE))
    copied = dict(line.split() for line in sections["files"].splitlines() if line.strip())
    (base,) = re.findall(r"^From: (.+)$", text, re.MULTILINE)
    (start,) = re.findall(r'exec (\S+) "\$@"', sections["runscript"])
    return Image(base, {a: b.removeprefix("/src/") for a, b in copied.items()}, [sections["post"]], start)


@pytest.fixture(params=NAMES)
def image(request):
    return read(request.param)


def test_all_that_the_build_needs_is_copied_and_let_into_the_context(image):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert set(image.copied) == {line[1:].split("/")[0] for line in lines if line.startswith("!")}
    assert image.copied == {name: name for name in image.copied}
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "wsi_prep", "pretrain", "pipelines"}
    assert needed <= set(image.copied)


def test_its_commands_are_shell(image):
    for command in image.commands:
        subprocess.run(["sh", "-n"], input=command, text=True, check=True)


def test_what_it_starts_is_a_command_of_the_package(image):
    assert image.start in ABOUT["scripts"]


def test_the_extras_that_it_installs_are_there(image):
    asked = re.findall(r"'\.\[([\w,]+)\]'", " ".join(image.commands))
    assert {extra for names in asked for extra in names.split(",")} <= set(ABOUT["optional-dependencies"])


def test_images_do_not_run_as_root():
    for name in ("Dockerfile", "Dockerfile.train"):
        assert re.findall(r"^USER (\d+)$", (CONTAINERS / name).read_text(), re.MULTILINE) == ["1000"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.train"])
def test_hadolint_finds_nothing(name):
    if not shutil.which("hadolint"):
        pytest.skip("needs hadolint")
    found = subprocess.run(["hadolint", CONTAINERS / name], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def built_of(image, folder):
    """The virtual environment that the image's Python would be, after all of its commands that install packages."""
    source, python = folder / "src", shutil.which("python3.11")
    if python is None:
        pytest.skip("needs Python 3.11, as the images have")
    for name, to in image.copied.items():
        (source / to).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / to, ignore=shutil.ignore_patterns("*.svs", "*.tiff", "*.png"))
        else:
            shutil.copy(ROOT / name, source / to)
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    surrounding = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    surrounding["PATH"] = f"{folder / 'venv' / 'bin'}:{Path(python).parent}:{os.environ['PATH']}"
    for command in image.commands:
        if " pip " in command:
            here = command.replace("/opt/venv", str(folder / "venv")).replace("/src", str(source))
            subprocess.run(["sh", "-euc", here], cwd=source, env=surrounding, check=True)
    shutil.rmtree(source)
    return folder / "venv"


def wanted_of_the_system(venv):
    """Shared libraries that what is installed asks for and does not bring."""
    files = [file for file in venv.rglob("*.so*") if file.is_file()]
    read = subprocess.run(["readelf", "-d", *files], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", read)) - {file.name for file in files}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("MIXMAG_TEST_CONTAINERS") != "1", reason="minutes: MIXMAG_TEST_CONTAINERS=1 asks")
@pytest.mark.parametrize("name", NAMES)
def test_its_commands_make_an_environment_that_works(name, nompp_slide, tmp_path):
    image, elsewhere = read(name), tmp_path / "data"
    venv = built_of(image, tmp_path)
    elsewhere.mkdir()
    try:
        if name == "Dockerfile.train":  # torch may be built for another machine than this
            subprocess.run([venv / "bin" / image.start, "pretrain", "--help"], cwd=elsewhere, check=True)
            return
        assert wanted_of_the_system(venv) - OPTIONAL <= IN_A_SLIM_IMAGE
        call = ["--slides", nompp_slide, "--out", "shards", "--assume-mpp", "0.5", "--workers", "1"]
        subprocess.run([venv / "bin" / image.start, "shards", *call], cwd=elsewhere, check=True)
        assert len(list((elsewhere / "shards" / "stores").glob("nompp-*.zarr"))) == 1
    finally:
        shutil.rmtree(venv)
