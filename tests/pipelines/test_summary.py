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
