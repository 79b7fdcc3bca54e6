"""A case from its seed: a painted slide, what glass and camera do to it, a file, and the file's name."""

import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np

from tests.fuzz.honest.case import Case, chance, pick
from tests.fuzz.honest.ome import ome
from tests.fuzz.honest.others import dicom, mirax
from tests.fuzz.honest.painting import ABOUT_GLASS, BASES, base, dimmed, filled, greyed, noisy, stretched, tinted
from tests.fuzz.honest.slides import aperio, generic
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings

_LOOKS = (tinted, tinted, dimmed, dimmed, noisy, filled, filled, greyed)
_NAMES = (
    "slide",
    "slide one",
    "S_x",
    "S-x",
    "S-1",
    "S (1)",
    "S #2",
    "ä ö é",
    unicodedata.normalize("NFD", "Schnitt Ä é"),
    "切片",
    "S%201",
    "S+1&2",
    "it's",
    "S,1;2",
    "S[1]",
    "S.1.2",
    "_S",
    "-S",
    "S ",
    "S'\"x",
    "S=1",
    "CON",
    "a" * 120,
    "S*",
    "S$HOME",
)
_MAGS = ("40x 20x 10x 5x",) * 5 + ("5x 10x", "5x 10x", "10x", "5x", "20x", "20x 10x")
_WRITERS = {"aperio": aperio, "generic": generic, "ome": ome, "dicom": dicom, "mirax": mirax}
_SHARES = (0.27, 0.25, 0.27, 0.16, 0.05)


def make_case(seed: int, folder: Path, bases: tuple[str, ...] = BASES, *, plain: bool = False) -> Case:
    """Write the slide of a seed below `folder`; `plain` ones are sound in every way, in each format."""
    rng = np.random.default_rng((seed, 7))
    name = pick(rng, bases)
    case = Case(base(name), name)
    if not plain:
        _look(rng, case)
    kind = str(rng.choice(list(_WRITERS), p=_SHARES))
    if kind not in ("aperio",) and not plain and chance(rng, 0.08):
        factor = pick(rng, (2.0, 1.25, 0.8, 1.1))
        case.truth = stretched(case.truth, factor)
        case.tell(f"pixels {factor:g} times as high as wide", warning=r"mpp|um/px|square|high|wide")
    folder.mkdir(parents=True)
    _WRITERS[kind](_Sound(rng) if plain else rng, case, folder)
    case.told.insert(0, f"{kind}, {name}")
    mags = _MAGS[0] if plain else pick(rng, _MAGS)
    reader = "openslide" if not plain and kind in ("aperio", "generic") and chance(rng, 0.2) else "auto"
    if reader != "auto":
        case.refusals += [r"OpenSlide", *[r"mpp|scale"] * any(" first, in tiles" in told for told in case.told)]
    case.settings = PrepareSettings(PlanSettings(tuple(mags.split())), reader=reader)
    pictures = (case.truth, *case.scenes)
    if mags != _MAGS[0] and any(_too_coarse(picture, mags) for picture in pictures):
        case.warnings.append(r"cannot be made: the slide's finest is")
    if any(_too_coarse(picture, min(mags.split(), key=_number)) for picture in pictures):
        case.refusals.append(r"can be made: the slide's finest is")
    if not plain and (mags, reader) != (_MAGS[0], "auto"):
        case.told.append(f"mags {mags}, reader {reader}")
    if not plain and chance(rng, 0.3):
        _rename(case, pick(rng, _NAMES))
    case.given = case.path if chance(rng, 0.5) and case.path.is_file() else folder
    case.name = case.path.name
    return case


def _too_coarse(picture, mags):
    """Whether one of the magnifications would have to be upsampled, whose scale is 10 um/px over its number."""
    finest = max(map(_number, mags.split()))
    return max(picture.mpp_x, picture.mpp_y) > 1.05 * 10 / finest


def _number(name):
    return int(name.removesuffix("x"))


class _Sound:
    """A generator of random numbers that takes the first and plainest of each choice, and no chance."""

    def __init__(self, rng):
        self._rng = rng

    def random(self, *shape):
        return self._rng.random(*shape) if shape else 0.999

    def choice(self, things, p=None):
        return things[0]

    def integers(self, low, high=None, size=None):
        return self._rng.integers(low, high, size) if size or high is not None else 0

    def permutation(self, count):
        return self._rng.permutation(count)


def _look(rng, case):
    looks = [pick(rng, _LOOKS) for _ in range(int(rng.choice((0, 0, 0, 1, 1, 2))))]
    for look in sorted(looks, key=lambda one: one is greyed):  # what is without colour gets none later
        case.truth, told = look(case.truth, rng)
        if case.truth.coloured:
            case.tell(told, soft=ABOUT_GLASS)
        else:
            case.tell(told, r"colou?r|grey|gray", soft=r"colou?r|grey|gray|stain")


def _rename(case, name):
    """The slide under an odd name; what belongs to it goes along."""
    ending = "".join(re.findall(r"(?:\.ome)?\.[A-Za-z]+$", case.path.name)) if case.path.is_file() else ""
    new = case.path.with_name(name + ending)
    if case.path.suffix == ".mrxs":
        shutil.move(case.path.with_suffix(""), new.with_suffix(""))
    case.path = case.path.rename(new)
    case.told.append(f"named {new.name!r}")
