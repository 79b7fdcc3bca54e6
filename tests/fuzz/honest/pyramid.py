"""Reduced levels: sound ones of every size, and those that scanners and converters get wrong."""

from dataclasses import replace

import numpy as np

from tests.fuzz.honest.case import Case, chance, pick
from tests.fuzz.honest.painting import STEP, Picture, another_slide, resized
from tests.fuzz.honest.tiff import BLACK, CUT, GARBLED, SPARSE, WHITE, Page

_FACTORS = (
    (4, 16),
    (4, 16),
    (2, 4, 8),
    (2, 4, 8, 16, 32),
    (4,),
    (2, 8),
    (8,),
    (3, 9),
    (3.7, 11.3),
    (2.5, 6.3, 15.7),
    (),
)
ABOUT_LEVEL = r"levels?\b|tiles?\b|reduced|picture|decod|pyramid"


def reduced_levels(rng, picture: Picture) -> list[np.ndarray]:
    """The slide reduced by some factors, finest first."""
    width, height = picture.size
    return [resized(picture.pixels, int(width / f), int(height / f)) for f in pick(rng, _FACTORS)]


def lie_of_levels(rng, case: Case, pages: list[Page]) -> list[Page]:
    """One thing wrong with one or more of the reduced levels."""
    if not pages:
        return pages
    way = pick(
        rng, (_sparse, _sparse, _sparse, _broken, _swapped, _flat, _padded, _cropped, _skewed, _shifted, _foreign)
    )
    which = range(len(pages)) if chance(rng, 0.4) else [int(rng.integers(len(pages)))]
    for number in which:
        way(rng, case, pages[number], f"level {pages[number].pixels.shape[1]} px wide")
    return pages


def twice(rng, case: Case, pages: list[Page]) -> list[Page]:
    """A level that is there two times."""
    if not pages:
        return pages
    number = int(rng.integers(len(pages)))
    case.tell(f"level {pages[number].pixels.shape[1]} px wide twice", warning=ABOUT_LEVEL)
    return [*pages[: number + 1], pages[number], *pages[number + 1 :]]


def shuffled(rng, case: Case, pages: list[Page]) -> list[Page]:
    """Levels in another order."""
    order = rng.permutation(len(pages)).tolist()
    if order != sorted(order):
        case.tell(f"levels in the order {order}", warning=rf"{ABOUT_LEVEL}|OpenSlide reads")
    return [pages[i] for i in order]


def bare_glass_left_out(case: Case, page: Page) -> None:
    """Level 0 without the tiles that show nothing but glass, which reads as white there."""
    pixels, side = case.truth.pixels.copy(), page.tile
    for index in range(_count(page)):
        row, col = divmod(index, page.grid[1])
        y, x = row * side, col * side
        if not case.truth.tissue[y // STEP : (y + side) // STEP + 1, x // STEP : (x + side) // STEP + 1].any():
            page.lies[index] = SPARSE
            pixels[y : y + side, x : x + side] = 255
    case.truth = replace(case.truth, pixels=pixels)
    case.tell(f"level 0 lacks {len(page.lies)} of {_count(page)} tiles, of glass alone", warning=ABOUT_LEVEL)


def _count(page):
    return page.grid[0] * page.grid[1]


def _sparse(rng, case, page, which):
    share = pick(rng, (0.3, 0.5, 0.8, 1.0))
    across = page.grid[1]
    if chance(rng, 0.5):  # what was written last is missing: a half
        gone = [i for i in range(_count(page)) if i % across >= across * (1 - share)]
    else:
        gone = [i for i in range(_count(page)) if rng.random() < share]
    if not gone:
        return
    page.lies.update(dict.fromkeys(gone, SPARSE))
    case.tell(f"{which} lacks {len(gone)} of {_count(page)} tiles", warning=ABOUT_LEVEL)


def _broken(rng, case, page, which):
    way = pick(rng, (GARBLED, CUT))
    gone = rng.permutation(_count(page))[: int(rng.integers(1, 4))].tolist()
    page.lies.update(dict.fromkeys(gone, way))
    case.tell(f"{which} has tiles {gone} {way}", ABOUT_LEVEL, ABOUT_LEVEL)


def _swapped(rng, case, page, which):
    if _count(page) < 2:
        return
    a, b = rng.permutation(_count(page))[:2].tolist()
    page.lies.update({a: b, b: a})
    case.tell(f"{which} has tiles {a} and {b} in each other's place", ABOUT_LEVEL, ABOUT_LEVEL)


def _flat(rng, case, page, which):
    colour = pick(rng, (BLACK, WHITE))
    gone = rng.permutation(_count(page))[: int(rng.integers(1, 3))].tolist()
    page.lies.update(dict.fromkeys(gone, colour))
    case.tell(f"{which} has tiles {gone} {colour}", ABOUT_LEVEL, ABOUT_LEVEL)


def _padded(rng, case, page, which):
    page.pixels = whole_tiles(page.pixels, page.tile, pick(rng, (255, 255, 0, 243)))
    case.tell(f"{which} is padded to whole tiles", warning=ABOUT_LEVEL)


def whole_tiles(pixels: np.ndarray, tile: int, level: int) -> np.ndarray:
    """Padded at the right and below."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=level)


def _cropped(rng, case, page, which):
    height, width = page.pixels.shape[:2]
    keep = 1 - pick(rng, (0.03, 0.07, 0.15))
    both = chance(rng, 0.5)
    page.pixels = np.ascontiguousarray(page.pixels[: int(height * keep) if both else height, : int(width * keep)])
    case.tell(
        f"{which} lacks its {'last rows and ' if both else ''}last columns", ABOUT_LEVEL if both else "", ABOUT_LEVEL
    )


def _skewed(rng, case, page, which):
    height, width = page.pixels.shape[:2]
    by = pick(rng, (0.004, 0.01, 0.03, -0.01, -0.03))
    page.pixels = resized(page.pixels, max(1, round(width * (1 + by))), height)
    case.tell(f"{which} is {by:.1%} too wide", warning=ABOUT_LEVEL)


def _shifted(rng, case, page, which):
    height, width = page.pixels.shape[:2]
    right, down = (int(n * pick(rng, (0.0, 0.01, 0.04, -0.04, 0.1))) for n in (width, height))
    if not right and not down:
        return
    page.pixels = np.roll(page.pixels, (down, right), (0, 1))
    case.tell(f"{which} is shifted by {right}, {down} px", ABOUT_LEVEL, ABOUT_LEVEL)


def _foreign(rng, case, page, which):
    height, width = page.pixels.shape[:2]
    page.pixels = resized(another_slide(case.base), width, height)
    case.tell(f"{which} is of another slide", ABOUT_LEVEL, ABOUT_LEVEL)
