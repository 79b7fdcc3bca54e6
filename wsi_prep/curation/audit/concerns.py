"""Which slides to look at first: what the catalog says against each, in words, the worst of every kind in turn.

Excluded slides are none of these: a rule left them out, and the page lists them with their reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from wsi_prep.curation.audit.numbers import significant
from wsi_prep.curation.audit.slides import NAMES, Slides

MOST, OF_A_KIND = 20, 5
"""Most slides that are named, and of those whose worst is of one kind."""

UNSURE = 0.8
"""Confidence in a stain, called from the pixels, below which it wants a look."""

UNCERTAIN = 0.8
"""Certainty of an outline of tissue below which it wants a look."""

LARGE_MM2, LITTLE = 100.0, 0.01
"""Scanned area, in mm2, and the share of it below which tissue is little."""

GREY, GREY_SHARE = 0.03, 0.25
"""Saturation below which a tile is grey, and the share of a slide's tiles from which that is much."""

INK, INK_SHARE = 0.02, 0.1
"""Pen above which a tile is inked, and the share of a slide's tiles from which that is much."""

BLURRED, BLURRED_SHARE = {"40x": {"": 0.18}, "20x": {"HE": 0.35, "SPECIAL": 0.35, "": 0.25}}, 0.5
"""Focus below which a tile is blurred, by magnification and stain ("": any other), as docs/how-it-works.md has it for
filters; and the share of a slide's tiles from which that is much."""

LIMITS = {
    "unsure": f"{UNSURE:g}",
    "grey": f"{GREY:g}",
    "ink": f"{INK:g}",
    "blurred": "0.18 at 40x, 0.35 at 20x (0.25 where the stain is neither HE nor SPECIAL)",
}
"""These limits in words."""

RULES = {
    "failed": "it failed",
    "empty": "no tile was made",
    "stain": f"its stain has a confidence below {UNSURE:g}",
    "outline": f"the outline of its tissue has a certainty below {UNCERTAIN:g}: small changes of the limits move it",
    "tissue": f"{LARGE_MM2:g} mm² or more were scanned, less than {100 * LITTLE:g} % of it tissue",
    "grey": f"{100 * GREY_SHARE:g} % or more of its tiles are grey (saturation below {GREY:g})",
    "ink": f"{100 * INK_SHARE:g} % or more of those of any magnification are inked (pen above {INK:g})",
    "blur": f"{100 * BLURRED_SHARE:g} % or more are blurred (focus below {LIMITS['blurred']})",
    "warning": "it has a warning",
}
"""What is held against a slide, by kind. Tiles are those of the slide's finest magnification; ink is looked for in all,
since marks lie beside tissue, where coarse tiles reach."""


@dataclass(frozen=True)
class Concern:
    """The slide of that number, and all that is held against it, the worst first."""

    slide: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Concerns:
    """The slides to look at, the worst first; of how many slides each of RULES is so, and of how many any."""

    shown: tuple[Concern, ...]
    counts: Mapping[str, int]
    slides: int


def concerns(audited: Slides, connection: duckdb.DuckDBPyConnection) -> Concerns:
    """What speaks against slides of the catalogs that open_catalogs has opened: at most MOST, kinds in turn."""
    connection.execute(_HITS)
    counts = dict(connection.execute("SELECT kind, count(*) FROM hits GROUP BY 1").fetchall())
    (slides,) = connection.execute("SELECT count(DISTINCT slide_id) FROM hits").fetchall()[0]
    rows = connection.execute(_WORST).fetchall()
    shown = _by_slide(rows)
    numbers = audited.numbers_of(list(shown))
    found = [Concern(number, _reasons(hits)) for number, hits in zip(numbers, shown.values(), strict=True)]
    return Concerns(tuple(found), {kind: counts[kind] for kind in RULES if kind in counts}, slides)


def _by_stain(focus: Mapping[str, float]) -> str:
    """In SQL, the limit for `of_stain`."""
    of = "".join(f"WHEN '{stain}' THEN {limit} " for stain, limit in focus.items() if stain)
    return f"(CASE of_stain {of}ELSE {focus['']} END)" if of else str(focus[""])


_EACH = f"""
SELECT slide_id, magnification,
  count_if(isfinite(saturation) AND saturation < {GREY}) / count(*) AS grey,
  count_if(isfinite(pen) AND pen > {INK}) / count(*) AS ink,
  count_if(isfinite(focus) AND focus < CASE magnification
    {" ".join(f"WHEN '{name}' THEN {_by_stain(focus)}" for name, focus in BLURRED.items())} END) / count(*) AS blur
FROM tiles LEFT JOIN (SELECT slide_id, stain AS of_stain FROM slides) USING (slide_id)
WHERE magnification IN {NAMES} GROUP BY slide_id, magnification
"""  # noqa: S608 - from names of columns and numbers alone


def _first(by: str) -> str:
    """In SQL, of each slide the magnification that is first `by` that, and then the finest."""
    order = f"{by}list_position({list(NAMES)}, magnification)"
    return f"SELECT * FROM each_one QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY {order}) = 1"  # noqa: S608


def _much(kind: str, share: float, of: str = "finest") -> str:
    """The slides of which `share` of the tiles or more are so; the badness grows from a half to 1."""
    return f"""
    SELECT slide_id, '{kind}', 0.5 + 0.5 * ({kind} - {share}) / (1 - {share}), {kind}, NULL, magnification
    FROM {of} WHERE {kind} >= {share}"""  # noqa: S608


_AREA = "width * height * mpp_x * mpp_y / 1e6"
_HITS = f"""
CREATE OR REPLACE TABLE hits AS WITH each_one AS ({_EACH}), finest AS ({_first("")}), inked AS ({_first("ink DESC, ")})
SELECT slide_id, 'failed' AS kind, 2.0::DOUBLE AS badness, NULL::DOUBLE AS value, NULL::DOUBLE AS area,
  concat_ws(': ', nullif(error_type, ''), nullif(error, '')) AS said FROM slides WHERE status = 'failed'
UNION ALL
SELECT slide_id, 'empty', 0.8, NULL, NULL, coalesce(error, '') FROM slides WHERE status = 'empty'
UNION ALL
SELECT slide_id, 'stain', 1 - 0.5 * stain_confidence / {UNSURE}, stain_confidence, NULL, stain FROM slides
WHERE status = 'ok' AND isfinite(stain_confidence) AND stain_confidence < {UNSURE}
UNION ALL
SELECT slide_id, 'outline', 1 - 0.5 * tissue_certainty / {UNCERTAIN}, tissue_certainty, NULL, NULL FROM slides
WHERE status IN ('ok', 'empty') AND isfinite(tissue_certainty) AND tissue_certainty < {UNCERTAIN}
UNION ALL
SELECT slide_id, 'tissue', 1 - 0.5 * tissue_mm2 / ({_AREA}) / {LITTLE}, tissue_mm2 / ({_AREA}), {_AREA}, NULL
FROM slides WHERE status IN ('ok', 'empty') AND isfinite(tissue_mm2) AND isfinite({_AREA}) AND {_AREA} >= {LARGE_MM2}
  AND tissue_mm2 / ({_AREA}) < {LITTLE}
UNION ALL {_much("grey", GREY_SHARE)}
UNION ALL {_much("ink", INK_SHARE, "inked")}
UNION ALL {_much("blur", BLURRED_SHARE)}
UNION ALL
SELECT slide_id, 'warning', 0.5, NULL, NULL, warning FROM slides
WHERE status IS DISTINCT FROM 'excluded' AND warning != ''
"""  # noqa: S608
_WORST = f"""
WITH worst AS (
  SELECT slide_id, kind, badness FROM hits
  QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY badness DESC, kind) = 1
), chosen AS (
  SELECT slide_id, badness AS most, row_number() OVER (PARTITION BY kind ORDER BY badness DESC, slide_id) AS turn
  FROM worst QUALIFY turn <= {OF_A_KIND} ORDER BY turn, badness DESC, kind LIMIT {MOST}
)
SELECT slide_id, kind, value, area, said FROM hits JOIN chosen USING (slide_id)
ORDER BY most DESC, slide_id, badness DESC, kind
"""  # noqa: S608


def _by_slide(rows: Sequence[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for slide_id, *hit in rows:
        found[slide_id].append(tuple(hit))
    return found


def _reasons(hits: Sequence[tuple[Any, ...]]) -> tuple[str, ...]:
    return tuple(_words(*hit) for hit in hits)


def _words(kind: str, value: float | None, area: float | None, said: str | None) -> str:
    """One thing that is held against a slide, for people."""
    share = f"{significant(100 * value)} %" if value is not None else ""
    match kind:
        case "failed" | "empty":
            what = {"failed": "failed", "empty": "no tile"}[kind]
            return f"{what}: {said}" if said else what
        case "stain":
            doubt = f"the stain may not be {said}: confidence {significant(value)}"
            return "its stain cannot be told from the pixels" if said == "UNKNOWN" else doubt
        case "outline":
            return f"the outline of its tissue may be wrong: certainty {significant(value)}"
        case "tissue":
            return f"only {share} of {significant(area)} mm² is tissue"
        case "grey" | "ink" | "blur":
            how = {"grey": "grey", "ink": "inked", "blur": "blurred"}[kind]
            return f"{share} of its {said} tiles are {how}"
    return said or ""
