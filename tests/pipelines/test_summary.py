"""What a run says at its end."""

import pytest

from pipelines.command import Terminal
from pipelines.console import show_summary
from wsi_prep.run.request import RunSummary


@pytest.mark.parametrize(
    ("magnifications", "said"),
    [
        (("40x", "20x", "10x", "5x"), "7 tiles (5x 0, 10x 0, 20x 7, 40x 0), 0.0 MB"),
        (("20x",), "7 tiles (20x 7), 0.0 MB"),
        (("40x", "20x"), "7 tiles (20x 7, 40x 0), 0.0 MB"),
    ],
)
def test_tiles_are_counted_of_the_magnifications_that_were_asked_for(magnifications, said, capsys):
    summary = RunSummary(found=1, magnifications=magnifications)
    summary.add(
        {
            "slide_id": "a",
            "file": "a.svs",
            "status": "ok",
            "tiles_20x": 7,
            "tiles_filtered": 0,
            "bytes": 0,
            "seconds": 1.0,
        },
        now=True,
    )
    show_summary(Terminal("shards"), "out", summary)
    assert said in capsys.readouterr().out.splitlines()


def row(status="ok", **tiles):
    return {"slide_id": "a", "file": "a.svs", "status": status, "error_type": None, "error": "why", **tiles} | {
        "tiles_filtered": 0,
        "bytes": 0,
        "seconds": 1.0,
    }


def test_what_is_new_and_what_was_there_are_told_apart(capsys):
    summary = RunSummary(found=3, magnifications=("20x", "5x"), done_before=2)
    summary.add(row(tiles_20x=1200, tiles_5x=30), now=False)
    summary.add(row("excluded"), now=False)
    summary.add(row(tiles_20x=7, tiles_5x=1), now=True)
    show_summary(Terminal("shards"), "out", summary)
    slides, tiles, *_ = capsys.readouterr().out.splitlines()
    assert slides == "3 slides, 2 of them done before: 1 excluded, 2 ok"
    assert tiles == "8 new tiles (5x 1, 20x 7), 0.0 MB, with those from before 1,238 tiles"


def test_nothing_to_do_says_how_the_slides_went(capsys):
    summary = RunSummary(found=2, done_before=2)
    summary.add(row(tiles_20x=7), now=False)
    summary.add(row("excluded"), now=False)
    show_summary(Terminal("shards"), "out", summary)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "nothing to do: 2 slides are already done in out: 1 excluded, 1 ok"


def test_what_is_said_of_many_slides_is_said_once(capsys):
    summary = RunSummary(found=2000, warnings=["MASKS gives the tissue of 3 of 2,000 slides"])
    for number in range(2000):
        warning = "no glass" if number < 1500 else "rare" if number < 1503 else f"{number} tiles are missing"
        summary.add(row() | {"file": f"{number}.svs", "warning": warning}, now=True)
    show_summary(Terminal("shards"), "out", summary)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[:3] == [
        "note: MASKS gives the tissue of 3 of 2,000 slides",
        "note: 0.svs: no glass (and so 1,499 more slides: see warning in the catalog's slides)",
        "note: 1500.svs: rare",
    ]
    assert notes[-1] == "note: and 402 more: see warning in the catalog's slides"
    assert len(notes) == 101
    assert len(summary.warnings) == 2001  # run.json keeps them
