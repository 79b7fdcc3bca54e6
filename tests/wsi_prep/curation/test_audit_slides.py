"""The audit's slides in columns: as a list of objects would have them, in orders that a seed decides."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.curation.audit.slides import NAMES, Slide, Slides, in_turn

WORDS = ("status", "stain", "institution", "tissue", "scanner", "error_type", "error", "warning")
SCHEMA = pa.schema(
    [("slide_id", pa.string()), ("folder", pa.int64()), ("file", pa.string())]
    + [(name, pa.string()) for name in WORDS]
    + [(name, pa.float64()) for name in ("stain_confidence", "mpp", "tissue_mm2")]
    + [(name, pa.int64()) for name in NAMES]
)
one = st.fixed_dictionaries(
    {name: st.sampled_from(["", "a", "b", "é"]) for name in WORDS}
    | {name: st.none() | st.floats(0, 9) for name in ("stain_confidence", "mpp", "tissue_mm2")}
    | {name: st.integers(0, 3) for name in NAMES}
    | {"folder": st.integers(0, 2)}
)
cohorts = st.lists(one, max_size=12).map(
    lambda rows: [row | {"slide_id": f"s{n}", "file": f"{n}.svs"} for n, row in enumerate(rows)]
)


def in_columns(rows, batch):
    return Slides(pa.Table.from_pylist(rows, SCHEMA).to_batches(batch), SCHEMA)


def as_object(row):
    return Slide(**{k: v for k, v in row.items() if k not in NAMES}, tiles=tuple(row[name] for name in NAMES))


@given(cohorts, st.integers(1, 5))
def test_columns_hold_what_the_rows_said(rows, batch):
    slides = in_columns(rows, batch)
    objects = [as_object(row) for row in rows]
    assert (len(slides), list(slides)) == (len(rows), objects)
    assert [slides[number] for number in range(len(rows))] == objects
    assert slides.any_tiles.tolist() == [any(slide.tiles) for slide in objects]
    backwards = list(range(len(rows)))[::-1]
    assert slides.some(backwards) == objects[::-1]
    assert slides.numbers_of([f"s{number}" for number in backwards]) == backwards


@given(cohorts, st.integers(1, 5), st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
def test_a_group_is_of_slides_whose_words_are_equal(rows, batch, names):
    groups = in_columns(rows, batch).groups(names).tolist()
    words = [tuple(row[name] for name in names) for row in rows]
    assert all((groups[a] == groups[b]) == (words[a] == words[b]) for a in range(len(rows)) for b in range(len(rows)))


@given(cohorts, st.integers(0, 3))
def test_every_group_has_its_turn_as_a_plain_loop_gives_it(rows, seed):
    slides = in_columns(rows, 4)
    groups, marks = slides.groups(["stain"]), slides.marks(seed)
    turns, rounds = Counter(), defaultdict(list)
    for number in sorted(range(len(rows)), key=marks.__getitem__):
        rounds[turns[groups[number]]].append(number)
        turns[groups[number]] += 1
    assert in_turn(groups, marks).tolist() == [number for turn in sorted(rounds) for number in rounds[turn]]


def test_the_order_is_the_seeds_and_the_ids_alone():
    rows = [dict.fromkeys(WORDS, "") | dict.fromkeys(NAMES, 0) | {"slide_id": f"s{n}", "folder": 0} for n in range(50)]
    marks = in_columns(rows, 50).marks(1)
    assert len(np.unique(marks)) == 50
    assert in_columns(rows[::-1], 7).marks(1)[::-1].tolist() == marks.tolist()
    assert in_columns(rows, 50).marks(2).tolist() != marks.tolist()
