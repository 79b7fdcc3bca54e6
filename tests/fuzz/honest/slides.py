"""Whole TIFF slides: Aperio's layout and generic pyramids, with the pictures that lie beside the slide."""

from dataclasses import replace
from pathlib import Path

from tests.fuzz.honest.case import Case, chance, pick
from tests.fuzz.honest.coding import ABOUT_COLOUR, LIES, SOUND, Coding
from tests.fuzz.honest.painting import macro, resized, smaller_scene
from tests.fuzz.honest.pyramid import bare_glass_left_out, lie_of_levels, reduced_levels, shuffled, twice
from tests.fuzz.honest.tiff import Page, write_pages

ABOUT_PICTURES = r"OpenSlide reads|levels?\b|picture|image|label|macro|overview|thumbnail|scene|series|first|page"
_INCH, _CM = 2, 3


def aperio(rng, case: Case, folder: Path) -> None:
    """An SVS: level 0, thumbnail, levels, label, macro."""
    width, height = case.truth.size
    level0, levels = pyramid(rng, case, SOUND[:5])
    kind = "RGB" if level0.coding.is_rgb else "YCC"
    about = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/{kind} Q=90"
    told = f"{about}|AppMag = 40|StripeWidth = 2040{_aperio_scale(rng, case)}|Left = 20.1|Top = 10.2"
    level0.description = told
    for level in levels:
        level.description = f"{about} -> {level.pixels.shape[1]}x{level.pixels.shape[0]}|AppMag = 40"
    small = Page(resized(case.truth.pixels, 512, round(512 * height / width)), tile=0, description=f"{about} -> 512x")
    glass = macro(case.truth, 640, 240)
    after = [
        Page(glass[:, :220], tile=0, description="Aperio Image Library v11.2.1 \r\nlabel 220x240", reduced=1),
        Page(glass, tile=0, description="Aperio Image Library v11.2.1 \r\nmacro 640x240", reduced=9),
    ]
    if chance(rng, 0.1):
        after.append(_like_a_level(rng, case, "macro"))
    write_pages(folder / "slide.svs", [level0, small, *levels, *after], rng, big=chance(rng, 0.2))
    case.path = folder / "slide.svs"


def generic(rng, case: Case, folder: Path) -> None:
    """A TIFF pyramid as libvips and others write it; pictures of the whole glass may be anywhere in it."""
    level0, levels = pyramid(rng, case, SOUND)
    level0.resolution, level0.unit = _tiff_scale(rng, case)
    for level in levels:
        level.reduced = 1
        if level0.unit in (_CM, _INCH) and chance(rng, 0.5):
            factor = pick(rng, (level.factor, level0.pixels.shape[1] / level.pixels.shape[1]))
            level.resolution, level.unit = (level0.resolution[0] / factor, level0.resolution[1] / factor), level0.unit
    if chance(rng, 0.2) and levels:  # SubIFDs, as newer libvips writes them
        case.tell("levels in SubIFDs")
        level0.sub, levels = levels, []
    pages = [level0, *levels]
    if chance(rng, 0.1):
        pages = shuffled(rng, case, pages)
    for _ in range(int(rng.choice((0, 0, 0, 1, 2)))):
        _put_beside(rng, case, pages)
    if chance(rng, 0.06):
        _other_scene(rng, case, pages, {"resolution": level0.resolution, "unit": level0.unit})
    ending = pick(rng, (".tif", ".tiff", ".TIF"))
    write_pages(folder / f"slide{ending}", pages, rng, big=chance(rng, 0.3))
    case.path = folder / f"slide{ending}"


def pyramid(rng, case: Case, sound: tuple[Coding, ...]) -> tuple[Page, list[Page]]:
    """Level 0 and the reduced levels, these perhaps with lies; `sound` are the codings to choose from."""
    how, tile = coding(rng, case, sound), int(pick(rng, (256, 256, 240, 512)))
    level0 = Page(case.truth.pixels, how, tile)
    if chance(rng, 0.08) and not any(" fills " in told for told in case.told):  # a writer does one or the other
        bare_glass_left_out(case, level0)
    width = case.truth.size[0]
    levels = [Page(small, how, tile, factor=width / small.shape[1]) for small in reduced_levels(rng, case.truth)]
    for _ in range(int(rng.choice((0, 0, 1, 1, 2)))):
        levels = lie_of_levels(rng, case, levels)
    if chance(rng, 0.06):
        levels = twice(rng, case, levels)
    if chance(rng, 0.06):
        levels = shuffled(rng, case, levels)
    return level0, levels


def coding(rng, case: Case, sound: tuple[Coding, ...]) -> Coding:
    """How tiles are stored: soundly, or with tags that say otherwise."""
    how = pick(rng, LIES) if chance(rng, 0.08) else pick(rng, sound)
    if how.lie:
        case.tell(how.told, ABOUT_COLOUR, ABOUT_COLOUR)
    elif how.told:
        case.tell(how.told, warning=ABOUT_COLOUR if "tagged" in how.told else "")
    return how


def _aperio_scale(rng, case):
    mpp = case.truth.mpp_x
    way = rng.choice(("point", "comma", "zero", "none"), p=(0.84, 0.08, 0.04, 0.04))
    if way == "point":
        return f"|MPP = {mpp:.4f}"
    if way == "comma":
        case.tell("MPP with a comma", r"micron-per-pixel|mpp|um/px", r"mpp|um/px|comma")
        return f"|MPP = {mpp:.4f}".replace(".", ",")
    case.no_scale("MPP = 0" if way == "zero" else "no MPP")
    return "|MPP = 0" if way == "zero" else ""


def _tiff_scale(rng, case):
    """Pixels per unit in x and y, and the unit's number (TIFF 6.0, ResolutionUnit)."""
    x, y = (1e4 / mpp for mpp in (case.truth.mpp_x, case.truth.mpp_y))
    way = rng.choice(("cm", "inch", "none", "dpi"), p=(0.6, 0.26, 0.06, 0.08))
    if way == "cm":
        return (x, y), _CM
    if way == "inch":
        case.tell("resolution by the inch")
        return (x * 2.54, y * 2.54), _INCH
    if way == "none":
        case.no_scale("resolution without a unit")
        return (x, y), 1
    dpi = float(pick(rng, (72, 96, 300)))
    case.no_scale(f"{dpi:g} dpi")
    return (dpi, dpi), _INCH


def _like_a_level(rng, case, named):
    """A picture of the whole glass that has the slide's proportions and tiles."""
    width, height = case.truth.size
    factor = pick(rng, (6, 8, 12, 20))
    case.tell(f"{named} in tiles, of the slide's proportions, 1/{factor} of its size", "", ABOUT_PICTURES)
    picture = macro(case.truth, width // factor, height // factor)
    return Page(picture, description=f"{named}", reduced=int(pick(rng, (0, 1))))


def _other_scene(rng, case, pages, scale):
    """Another piece of tissue, scanned by itself, with a level of its own."""
    part = smaller_scene(case.base, case.truth)
    width, height = part.size
    scene = [Page(part.pixels, **scale), Page(resized(part.pixels, width // 4, height // 4), reduced=1)]
    first = chance(rng, 0.4)
    case.tell(f"another scene {'first' if first else 'last'}", ABOUT_PICTURES, ABOUT_PICTURES)
    case.scenes.append(part)
    pages[:] = [*scene, *pages] if first else [*pages, *scene]


def _put_beside(rng, case, pages):
    """A label, macro, overview or thumbnail first, between or last."""
    named = pick(rng, ("label", "macro", "overview", "thumbnail", ""))
    tile = int(pick(rng, (0, 256)))
    if chance(rng, 0.4):
        page = replace(
            _like_a_level(rng, case, named or "a picture without a name"), description=named or None, tile=tile
        )
    else:
        page = Page(macro(case.truth, 900, 400), tile=tile, description=named or None, reduced=int(pick(rng, (0, 1))))
    if chance(rng, 0.5):  # its scale is not the slide's
        page.resolution, page.unit = (1e4 / 20, 1e4 / 20), _CM
    at = int(pick(rng, (0, len(pages) // 2, len(pages), len(pages))))
    where = "first" if at == 0 else "last" if at == len(pages) else "between"
    told = f"{named or 'a picture without a name'} {where}, {'in tiles' if tile else 'in strips'}"
    case.tell(told, ABOUT_PICTURES if at == 0 else "", ABOUT_PICTURES)
    pages.insert(at, page)
