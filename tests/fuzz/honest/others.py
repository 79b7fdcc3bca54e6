"""DICOM series and MIRAX slides."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames

from tests.fuzz.honest.case import Case, chance, pick
from tests.fuzz.honest.coding import ABOUT_COLOUR, Coding
from tests.fuzz.honest.painting import ABOUT_GLASS, STEP, another_slide, macro, padded, resized
from tests.fuzz.honest.pyramid import ABOUT_LEVEL, reduced_levels, whole_tiles
from tests.support import dicom_wsi
from tests.support.mrxs_wsi import TILE, write_mrxs

_SCALE = r"micron-per-pixel|mpp|um/px|spacing|scale"
_TWO_OF_A_SIZE = r"OpenSlide.*unexpected image"
_DICOM_COLOURS = (
    (Coding(), "YBR_FULL_422", ""),
    (Coding(), "YBR_FULL_422", ""),
    (Coding(photometric="rgb", is_rgb=True, mark="adobe"), "RGB", "RGB JPEG"),
    (Coding(), "RGB", "YCbCr JPEG (JFIF) called RGB"),
    (Coding(mark="adobe"), "RGB", "YCbCr JPEG (Adobe) called RGB"),
    (Coding(mark="", subsampling="420"), "RGB", "4:2:0 JPEG without a mark called RGB"),
    (Coding(is_rgb=True, mark="adobe"), "YBR_FULL_422", "RGB JPEG (Adobe) called YBR_FULL_422"),
)


def dicom(rng, case: Case, folder: Path) -> None:
    """A DICOM series: a file a level, a label, and what converters make of them."""
    if chance(rng, 0.3):
        level = pick(rng, (255, 243))
        (right, below) = (-n % dicom_wsi.TILE for n in case.truth.size)
        case.truth = padded(case.truth, right, below, (level,) * 3)
        case.tell("level 0 is padded to whole tiles", warning=ABOUT_LEVEL)
    truth = case.truth
    levels = reduced_levels(rng, truth)
    true_factors = [truth.size[0] / level.shape[1] for level in levels]
    honest = True
    for _ in range(int(rng.choice((0, 1, 1)))):
        levels, honest = _lie(rng, case, levels)
    files = dicom_wsi.write_dicom_slide(folder / "series", [truth.pixels, *levels], truth.mpp_x)
    *files, label = files
    _edit(rng, case, files, [1.0, *true_factors][: len(files)], honest=honest)
    if chance(rng, 0.2):
        _beside(rng, case, label, folder / "series")
    if chance(rng, 0.2):
        label.unlink()
    if chance(rng, 0.3):  # their names say nothing of their order
        for number, path in zip(rng.permutation(len(files)).tolist(), files, strict=True):
            path.rename(path.with_name(f"{number}x{pick(rng, ('.dcm', '.DCM'))}"))
    left = list((folder / "series").iterdir())
    case.path = left[0] if len(left) == 1 else folder / "series"


def _lie(rng, case, levels):
    """Levels with one thing wrong; and whether their pixel spacing is what it should be."""
    if not levels:
        return levels, True
    way = rng.choice(("padded", "twice", "shifted", "foreign", "cropped"), p=(0.5, 0.1, 0.15, 0.15, 0.1))
    at = int(rng.integers(len(levels)))
    height, width = levels[at].shape[:2]
    if way == "padded":
        honest = chance(rng, 0.6)
        case.tell(
            f"levels are padded to whole tiles, their spacing is {'true' if honest else 'by their width'}",
            "",
            ABOUT_LEVEL,
        )
        case.refusals.append(_TWO_OF_A_SIZE if honest else ABOUT_LEVEL)
        return [whole_tiles(level, dicom_wsi.TILE, 255) for level in levels], honest
    if way == "twice":
        case.tell(f"level {width} px wide twice", _TWO_OF_A_SIZE, ABOUT_LEVEL)
        return [*levels[: at + 1], *levels[at:]], True
    if way == "shifted":
        levels[at] = np.roll(levels[at], (height // 12, -width // 15), (0, 1))
    elif way == "foreign":
        levels[at] = resized(another_slide(case.base), width, height)
    else:
        levels[at] = np.ascontiguousarray(levels[at][:, : int(width * 0.93)])
    case.tell(f"level {width} px wide is {way}", ABOUT_LEVEL, ABOUT_LEVEL)
    return levels, True


def _edit(rng, case, files, factors, *, honest):
    """Spacing and colours as they are to be told."""
    coding, tag, told = pick(rng, _DICOM_COLOURS)
    if told:
        lie = "called" in told
        case.tell(told, ABOUT_COLOUR if lie else "", ABOUT_COLOUR if lie else "")
    no_scale = chance(rng, 0.05)
    if no_scale:
        case.no_scale("no pixel spacing")
        case.refusals.append(_SCALE)
    for path, factor in zip(files, factors, strict=False):
        data = pydicom.dcmread(path)
        measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        if honest or factor == 1.0:
            measures.PixelSpacing = [round(mpp * factor / 1000, 9) for mpp in (case.truth.mpp_y, case.truth.mpp_x)]
        if no_scale:
            del data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
            del data.ImagedVolumeWidth, data.ImagedVolumeHeight
        data.PhotometricInterpretation = tag
        if coding != Coding():
            data.PixelData = encapsulate([coding.encode(_decoded(frame)) for frame in _frames(data)])
            data["PixelData"].is_undefined_length = True
        data.save_as(path)


def _frames(data):
    return generate_frames(data.PixelData, number_of_frames=int(data.NumberOfFrames))


def _decoded(frame):
    return cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def _beside(rng, case, label, folder):
    """An overview or a thumbnail among the files of the series."""
    named = pick(rng, ("OVERVIEW", "THUMBNAIL"))
    like = pydicom.dcmread(label)
    ids = {name: like[name].value for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")}
    width, height = case.truth.size
    small = (
        macro(case.truth, 900, 400) if named == "OVERVIEW" else resized(case.truth.pixels, width // 14, height // 14)
    )
    kind = [
        "ORIGINAL" if named == "OVERVIEW" else "DERIVED",
        "PRIMARY",
        named,
        "NONE" if named == "OVERVIEW" else "RESAMPLED",
    ]
    mpp = 25.0 if named == "OVERVIEW" else case.truth.mpp_x * 14
    dicom_wsi._write(folder / f"{named.lower()}.dcm", small, mpp, kind, ids)
    case.tell(f"with {named}")


def mirax(rng, case: Case, folder: Path) -> None:
    """A MIRAX slide: the scan somewhere on a grid, the rest of one colour."""
    truth = case.truth
    across, down = (n // TILE for n in truth.size)
    left, top, right, below = (int(n) for n in rng.integers(0, 4, 4))
    level = int(pick(rng, (255, 255, 0, 128)))
    shape = ((top + down + below) * TILE, (left + across + right) * TILE)
    pixels = np.full((*shape, 3), level, np.uint8)
    scan = (slice(top * TILE, (top + down) * TILE), slice(left * TILE, (left + across) * TILE))
    pixels[scan] = truth.pixels[: down * TILE, : across * TILE]
    tissue = np.zeros([n // STEP for n in shape], bool)
    part = tissue[scan[0].start // STEP : scan[0].stop // STEP, scan[1].start // STEP : scan[1].stop // STEP]
    part[:] = truth.tissue[: part.shape[0], : part.shape[1]]
    path = folder / "slide.mrxs"
    write_mrxs(path, pixels[scan], truth.mpp_x, left, top, left + across + right, top + down + below)
    ini = folder / "slide/Slidedat.ini"
    text = re.sub(r"(IMAGE_FILL_COLOR_BGR = )\d+", rf"\g<1>{level * 0x010101}", ini.read_text())
    ini.write_text(
        text.replace("MICROMETER_PER_PIXEL_Y = " + str(truth.mpp_x), f"MICROMETER_PER_PIXEL_Y = {truth.mpp_y}")
    )
    case.truth = replace(truth, pixels=pixels, tissue=tissue)
    case.tell(f"MIRAX, {level} fills {left}, {top}, {right}, {below} tiles around", soft=ABOUT_GLASS)
    case.path = path
