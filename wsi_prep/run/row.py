"""A slide's row of the catalog, from what is known before it is opened to how its work went."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import cast

from wsi_prep import __version__
from wsi_prep.errors import SlideError, SlideExcluded
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA, SlideRow, warned
from wsi_prep.run.task import SlideTask
from wsi_prep.slides.base import SlideInfo
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.institution import UNKNOWN
from wsi_prep.slides.private import bare_text
from wsi_prep.slides.urls import without_secrets
from wsi_prep.stain.classify import StainCall, stain_columns
from wsi_prep.storage.digests import NO_DIGESTS
from wsi_prep.storage.patience import passes, server_failed
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.plan import PlanSettings, TilePlan

_NO_ROOM = {
    errno.ENOSPC: "the disk of the output folder is full; free some space and repeat the command",
    errno.EDQUOT: "the quota of the output folder's disk is used up, which may be yours, your group's or the "
    "project's; free some space there or ask for more, and repeat the command",
}


def blank_row(task: SlideTask) -> SlideRow:
    """A slide's row as far as it is known before the file is opened."""
    row = cast("SlideRow", dict.fromkeys(SLIDE_SCHEMA.names))
    known: SlideRow = {
        "slide_id": task.source.slide_id,
        "file": task.source.name,
        "tiles_5x": 0,
        "tiles_10x": 0,
        "tiles_20x": 0,
        "tiles_40x": 0,
        "tiles_filtered": 0,
        "config_hash": task.config_hash,
        "version": __version__,
        "seconds": 0.0,
        "bytes": 0,
        "files": 0,
        "digests": NO_DIGESTS,
    }
    row.update(known)
    row.update(manifest_columns(task, row))
    return row


def manifest_columns(task: SlideTask, row: SlideRow) -> SlideRow:
    """What the manifest and the slide's name decide of its `row`; changing it redoes no tile."""
    manifest = task.manifest
    seen = StainCall(row["stain_pixels"], row["stain_pixels_confidence"] or 0.0) if row["stain_pixels"] else None
    return {
        "institution": manifest.institution or UNKNOWN,
        "institution_source": task.institution_source,
        "tissue": manifest.tissue or "unknown",
        "patient_key": task.patient_key,
        "file_folder": task.file_folder
        or row["file_folder"],  # once told apart, though the others are not in SLIDES now
        "manifest": manifest.more,
        **stain_columns(manifest.stain, seen, row["warning"]),
    }


def failure(error: BaseException, source: SlideSource) -> SlideRow:
    """The columns that say how a slide failed or why it is excluded, in one line."""
    if isinstance(error, SlideError):
        status, kind, text = (
            error.status,
            type(error).__name__,
            without_secrets(" ".join(str(error).split()), source.path),
        )
    elif isinstance(error, OSError) and error.errno in _NO_ROOM:
        status, kind, text = "failed", "WriteFailed", _NO_ROOM[error.errno]
    elif isinstance(error, OSError) and passes(error):
        status, kind, text = "failed", "FileServerFailed", str(server_failed(error))
    else:
        status, kind, text = "failed", type(error).__name__, bare_text(error, source.path)
    columns: SlideRow = {"status": status, "error_type": kind, "error": text[:500] or "no reason given"}
    return {**columns, "digests": NO_DIGESTS} if status == "failed" else columns  # what it left is swept


def tile_columns(plan: TilePlan, filtered: int) -> SlideRow:
    """How many tiles the slide has at each magnification; `filtered` more are left out by the filter."""
    m40, m20, m10, m5 = map(plan.count, MAGNIFICATIONS)
    return {"tiles_5x": m5, "tiles_10x": m10, "tiles_20x": m20, "tiles_40x": m40, "tiles_filtered": filtered}


def verdict(row: SlideRow, plan: TilePlan, settings: PlanSettings, lost: str, no_tissue: str) -> SlideRow:
    """How the slide went; `lost` says what the filter left out, where it did, and `no_tissue` why there may be none."""
    if lost and not len(plan):
        return {"status": "empty", "error": lost}
    if (row["tiles_filtered"] or 0) > len(plan):
        row["warning"] = warned(row["warning"], lost)
    finest, there = plan.grid.base.name, {m.name for m in plan.grid.magnifications}
    wanted = there.intersection(settings.magnifications)
    missing = [name for name in settings.magnifications if name not in there]
    chosen = len(set(settings.magnifications)) < len(MAGNIFICATIONS)  # all of them means what the slide has
    if wanted and missing and chosen:
        row["warning"] = warned(row["warning"], f"{' '.join(missing)} cannot be made: the slide's finest is {finest}")
    if len(plan):
        return {"status": "ok"}
    if not wanted:
        reason = f"none of {' '.join(settings.magnifications)} can be made: the slide's finest is {finest}"
        return {"status": SlideExcluded.status, "error_type": "TooCoarse", "error": reason}
    if small := _too_small(plan.grid, wanted):
        return {"status": "empty", "error": small}
    if not row["tissue_mm2"]:
        return {"status": "empty", "error": no_tissue}
    return {"status": "empty", "error": f"no tile inside the slide has {settings.tissue_threshold:.0%} tissue"}


def _too_small(grid: Grid, wanted: Collection[str]) -> str:
    """That the scan is smaller than one tile of the finest of these magnifications, or an empty text."""
    finest = next(mag for mag in grid.magnifications if mag.name in wanted)
    if min(grid.shape(finest)) > 0:
        return ""
    side = TILE_PX * grid.mpp(finest)
    width, height = (
        side * side0 / span0
        for side0, span0 in ((grid.width0, grid.span_x0(finest)), (grid.height0, grid.span_y0(finest)))
    )
    return f"the scan, {width:,.0f} x {height:,.0f} um, is smaller than one {finest.name} tile, {side:,.0f} um"


def facts(info: SlideInfo) -> SlideRow:
    """The columns that the slide file itself tells."""
    return {
        "reader": info.reader,
        "vendor": info.vendor,
        "scanner": info.scanner,
        "mpp_x": info.mpp_x,
        "mpp_y": info.mpp_y,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
        "width": info.width0,
        "height": info.height0,
        "bounds_x0": info.bounds_x0,
        "bounds_y0": info.bounds_y0,
        "icc_profile": info.icc_profile,
    }
