"""A slide that is in several folders of shards, or in several files of a catalog: which of its rows counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.errors import counted


@dataclass(frozen=True)
class Copies:
    """Whether each of some rows `counts`, and how many slides are `doubled`: have several rows that are ok."""

    counts: pa.BooleanArray
    doubled: int

    @property
    def notes(self) -> list[str]:
        """What a user should know of it: a line, or none."""
        line = f"{counted(self.doubled, 'slide is', 'slides are')} ok in several folders, or files of a catalog"
        return [f"{line}: the first copy of each counts, in the order of SHARDS"] if self.doubled else []


def which_count(slides: pa.Array, ok: pa.BooleanArray) -> Copies:
    """Of each slide one row counts: the first that is ok, or the first if none is.

    `slides` (ids, or hashes of them) and `ok` are of all rows: by the order in which the folders are named, then of
    their files' names, then as they lie in a file.
    """
    if pc.count_distinct(slides, mode="all").as_py() == len(slides):
        return Copies(pa.repeat(pa.scalar(True), len(slides)), 0)
    is_ok = ok.fill_null(False)
    rank = np.arange(len(slides)) + np.where(is_ok.to_numpy(zero_copy_only=False), 0, len(slides))
    best = pa.table({"slide": slides, "rank": rank}).group_by("slide").aggregate([("rank", "min")])["rank_min"]
    counts = pc.is_in(pa.array(rank), best.combine_chunks())
    return Copies(counts, len(slides.filter(pc.and_not(is_ok, counts)).unique()))
