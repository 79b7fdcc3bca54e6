"""The audit as one HTML page that needs no network: numbers, pictures, style and script are inside it.

Whatever a catalog says is text: the template escapes it, the script sets it as text, and the page's own content policy
lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from wsi_prep.curation.audit.concerns import LIMITS, MOST, OF_A_KIND, RULES, Concerns
from wsi_prep.curation.audit.numbers import MPP_BINS_AN_OCTAVE, Audit, Distribution, significant
from wsi_prep.curation.audit.overlap import TaskOverlap
from wsi_prep.curation.audit.pictures import Gallery, Overlay, Picture, TilePicture
from wsi_prep.curation.audit.slides import NAMES, Slide
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.strata import STRATUM_LEVELS

MOST_SLIDES = 20_000
"""Most slides that the page lists; some 350 bytes each."""

_NAMED = 50
_BARS = 12


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its length is `share` of the longest."""

    name: str
    count: int
    share: float


def render_page(
    audited: Audit,
    concerns: Concerns,
    overlays: Gallery[Overlay],
    tiles: Gallery[TilePicture],
    overlaps: Sequence[TaskOverlap] = (),
) -> str:
    """The page as text; `overlaps` with tables of labelled tiles."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsi_prep.curation.audit"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_function"] = _dumped
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"sig": significant, "many": lambda count: f"{count:,}"}
    script, style = (_file(environment, f"audit.{ending}") for ending in ("js", "css"))
    return environment.get_template("audit.html").render(
        audited=audited,
        data=page_data(audited, concerns, overlays, tiles),
        concerns=concerns,
        concerns_most=(MOST, OF_A_KIND),
        rules=RULES,
        carded={picture.slide for picture in overlays.pictures},
        names=[Path(folder).absolute().name for folder in audited.folders],
        levels=STRATUM_LEVELS,
        magnifications=NAMES,
        named_most=_NAMED,
        slides_most=MOST_SLIDES,
        mpp=_mpp_bars(audited.mpp),
        mpp_sources=bars(audited.mpp_sources),
        scanners=bars(audited.scanners),
        quality=_by_quantity(audited),
        limits=LIMITS,
        overlaps=overlaps,
        extent=extent(audited, overlays, tiles),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def page_data(
    audited: Audit, concerns: Concerns, overlays: Gallery[Overlay], tiles: Gallery[TilePicture]
) -> dict[str, object]:
    """What the page's script works on, as it goes into JSON."""
    each = {(s.magnification, *s.name): s.drawn / s.slides for s in audited.strata}
    looked = {concern.slide: concern.reasons for concern in concerns.shown}
    pictured = {picture.slide for picture in (*overlays.pictures, *tiles.pictures)}
    listed = sorted(pictured.union(range(min(MOST_SLIDES, len(audited.slides)))))
    return {
        "magnifications": NAMES,
        "tilesThere": sum(audited.tiles.values()),
        "slides": [{"number": n, **_slide(s, each)} for n, s in zip(listed, audited.slides.some(listed), strict=True)],
        "overlays": [_picture(p) | _panels(p) | {"look": looked.get(p.slide, ())} for p in overlays.pictures],
        "tilePx": tiles.widest_px,
        "tiles": [_picture(p) | _place(p) for p in tiles.pictures],
    }


def extent(audited: Audit, overlays: Gallery[Overlay], tiles: Gallery[TilePicture]) -> list[str]:
    """How much of the shards the page shows, in words."""
    found = []
    if len(audited.slides) > MOST_SLIDES:
        listed = f"{MOST_SLIDES:,} of {len(audited.slides):,} slides, the first by name, and those of its pictures"
        found.append(f"the page lists {listed}; its tables and what the filter changes are of these")
    without = [p for p in overlays.pictures if p.missing and audited.slides[p.slide].status in ("excluded", "failed")]
    shown = sum(not picture.missing for picture in overlays.pictures)
    of = f"{shown:,} of {overlays.available - len(without):,} overlays"
    found.append(f"the page shows {of}; they lie in overlays/ of their shards folder")
    short = any(
        p.panels and sum(map(bool, audited.slides[p.slide].tiles)) + 1 > len(p.panels) > 1 for p in overlays.pictures
    )
    if short:
        found.append("to keep the page small, overlays show the tiles of the coarsest magnification alone")
    stored = "as stored" if tiles.widest_px == TILE_PX else f"made smaller, {tiles.widest_px} px wide"
    found.append(f"the page shows {len(tiles.pictures):,} of {tiles.available:,} tiles drawn for the strata, {stored}")
    return found


def bars(counts: Mapping[str, int]) -> list[Bar]:
    """The largest counts as bars, the others as one."""
    longest = max(counts.values(), default=1)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = [Bar(name, count, count / longest) for name, count in ranked[:_BARS]]
    rest = sum(count for _, count in ranked[_BARS:])
    others = Bar(f"{len(ranked) - _BARS} others", rest, min(1.0, rest / longest))
    return [*found, others] if rest else found


def _slide(slide: Slide, each: Mapping[tuple[str, str, str, str], float]) -> dict[str, object]:
    stratum = slide.stain, slide.institution, slide.tissue
    shares = [each.get((name, *stratum), 0.0) if n else 0.0 for name, n in zip(NAMES, slide.tiles, strict=True)]
    return {
        "file": slide.file,
        "id": slide.slide_id,
        "status": slide.status,
        "stain": slide.stain,
        "sure": slide.stain_confidence,
        "institution": slide.institution,
        "tissue": slide.tissue,
        "mpp": slide.mpp,
        "scanner": slide.scanner,
        "mm2": slide.tissue_mm2,
        "tiles": slide.tiles,
        "drawn": [float(f"{share:.6g}") for share in shares],
        "note": ": ".join(filter(None, (slide.error_type, slide.error or slide.warning))),
    }


def _picture(picture: Picture) -> dict[str, object]:
    return {
        "slide": picture.slide,
        "jpeg": base64.b64encode(picture.jpeg).decode(),
        "missing": picture.missing,
    }


def _panels(overlay: Overlay) -> dict[str, object]:
    return {"px": overlay.size, "panels": overlay.panels}


def _place(tile: TilePicture) -> dict[str, object]:
    return {"magnification": tile.magnification, "index": tile.index, "x0": tile.x0, "y0": tile.y0, "mpp": tile.mpp}


def _by_quantity(audited: Audit) -> dict[str, dict[str, Distribution]]:
    found: dict[str, dict[str, Distribution]] = {}
    for distribution in audited.distributions:
        found.setdefault(distribution.quantity, {})[distribution.magnification] = distribution
    return found


def _mpp_bars(counts: Mapping[int, int]) -> list[Bar]:
    """A bar for every bin from the finest slide to the coarsest, and at least from 40x to 5x; none without slides."""
    longest = max(counts.values(), default=1)
    bins = range(min(*counts, -2), max(*counts, 26) + 1) if counts else ()
    return [
        Bar(significant(0.25 * 2 ** (n / MPP_BINS_AN_OCTAVE)), counts.get(n, 0), counts.get(n, 0) / longest)
        for n in bins
    ]


def _dumped(data: object, **settings: Any) -> str:
    """The data as JSON, which knows no number but a finite one: in place of others, none."""
    try:
        return json.dumps(data, **settings)
    except ValueError:
        return json.dumps(_finite(data), **settings)


def _finite(data: object) -> object:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data if not isinstance(data, float) or math.isfinite(data) else None


def _file(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """For the page's content policy: the one script or style that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
