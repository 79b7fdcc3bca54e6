"""What the commands on slides and shards take, but for `shards` itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.calls.base import OfQuestions, OfShards, Option
from wsi_prep.curation.assumptions import Assumptions


@dataclass(frozen=True, kw_only=True)
class SamplesCall:
    """Make the sample slides: three that are drawn, and a real one that is downloaded where the network allows.

    Slides that are there already stay. They come with a manifest.csv.

    Exit codes: 0 they are there; 2 they cannot be made.
    """

    to: Annotated[Path | None, Option("folder", local=True)] = None
    """The folder to make them in; without it, the one of the package."""

    only: Annotated[tuple[str, ...], Option('"he_40x.svs ..."', words=True)] = ()
    """Make only those of these names."""


@dataclass(frozen=True, kw_only=True)
class PlanCall(Assumptions):
    """Estimate what the shards of a whole cohort will take, from what a sample of its slides took.

    Exit codes: 0 estimated; 2 the call is wrong.
    """

    slides: Annotated[str, Option("number")]
    """How many slides the cohort has, and not where they are."""

    sample: Annotated[str, Option("folder")] = "shards"
    """Shards of slides that were drawn from the cohort at random."""

    currency: Annotated[str, Option("EUR")] = ""
    """The currency of the prices; a word that is shown, nothing is converted."""

    to: Annotated[Path | None, Option("plan.json")] = None
    """Write everything to this .json too."""

    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class StatusCall(OfShards):
    """Tell how far shards are: done, failed, running, time and disk left; from any terminal, also while they are made.

    Exit codes: 0 told; 2 the call is wrong.
    """

    json: bool = False
    """One line of JSON for each output, for a dashboard."""

    metrics: Annotated[Path | None, Option("file.prom", local=True)] = None
    """Write the same for Prometheus to this file, which its node exporter's textfile collector reads."""

    rows: int = 5
    """Most slides in each list."""


@dataclass(frozen=True, kw_only=True)
class VerifyCall(OfShards):
    """Verify every row, file and tile of shards, and repair them.

    Exit codes: 0 all is sound; 2 the call is wrong; 3 there are, or were, faults; 130 interrupted, nothing is half
    repaired.
    """

    repair: bool = False
    """Delete broken slides, for shards to make again, and what belongs to no slide."""

    yes: bool = False
    """Repair without a question."""

    workers: int | None = None
    """Worker processes; without it, one a core."""

    take_over: bool = False
    """Take an object store that a run which is gone left locked."""


@dataclass(frozen=True, kw_only=True)
class ForgetCall(OfShards):
    """Delete a patient's slides, or single slides, for good, and do not make them again.

    Exit codes: 0 forgotten, or listed; 2 the call is wrong, nothing was done; 3 nobody was found, nothing was done;
    130 interrupted, the same call goes on.
    """

    patient: Annotated[str | None, Option("id")] = None
    """The patient, as the manifest, barcode or pattern named them."""

    patient_key: Annotated[Path | None, Option("file")] = None
    """A file with the secret that shards was given; or the variable WSI_PREP_PATIENT_KEY holds it."""

    slide: Annotated[tuple[str, ...], Option('"slide_id ..."', words=True)] = ()
    """Slides by their ids."""

    names: Path | None = None
    """The names file of private output, to take their lines out of."""

    dry: bool = False
    """Only list what would be deleted."""

    yes: bool = False
    """Delete without a question."""

    take_over: bool = False
    """Take an object store that a run which is gone left locked."""


@dataclass(frozen=True, kw_only=True)
class AuditCall(OfShards):
    """Show what shards hold, as one HTML page and on the terminal.

    Exit codes: 0 the page is written; 2 the call is wrong; 3 the page is written, but tiles or overlays that the
    catalog names cannot be read.
    """

    to: Annotated[Path, Option("audit.html")] = Path("audit.html")
    """The page."""

    alpha: float = 0.5
    """How training draws strata: 0 evenly, 1 as found."""

    gallery: int = 60
    """Most overlays on the page."""

    tiles: int = 4
    """Tiles of each stratum on the page."""

    seed: int = 0
    """Show other overlays and tiles."""

    tasks: Annotated[tuple[Path, ...], Option('"tiles.parquet ..."', cohort=True)] = ()
    """Tables of labelled tiles: which of their slides and patients are in these shards is said."""

    near: bool = False
    """Say, too, how many of their tiles look like tiles of the shards; each tile of these is read once."""


@dataclass(frozen=True, kw_only=True)
class PrivacyCall(OfShards):
    """List every text and kind of file in shards, to be read before they leave the house.

    Exit codes: 0 nothing is there that does not belong; 2 the call is wrong; 3 something is; 130 interrupted.
    """

    to: Annotated[Path | None, Option("texts.csv")] = None
    """A table of every text, where it stands and how often."""


@dataclass(frozen=True, kw_only=True)
class QueryCall(OfQuestions, OfShards):
    """Ask the catalog a question in SQL.

    The views are slides and tiles. docs/queries.md has questions to begin with.

    Exit codes: 0 answered; 2 the question or the call is wrong.
    """

    sql: Annotated[str, Option('"SELECT ... FROM slides, tiles"', may_be_empty=True)]
    """One SELECT."""

    to: Annotated[Path | None, Option("file.csv|file.parquet")] = None
    """Write all rows to this .csv or .parquet instead of showing some."""

    rows: int = 50
    """Most rows that are shown."""


@dataclass(frozen=True, kw_only=True)
class InterchangeCall(OfQuestions):
    """Write what other tools read: outlines for QuPath, tile places for TRIDENT or CLAM, tiles as tars or tables.

    Exit codes: 0 all is written; 2 the call is wrong; 3 something had to be left out; 130 interrupted.
    """

    kind: Annotated[
        Literal["qupath", "trident", "clam", "webdataset", "parquet"],
        Option("qupath|trident|clam|webdataset|parquet"),
    ]
    """For which tool."""

    shards: Annotated[str, Option("folder")] = "shards"
    """A folder or URL that holds shards."""

    to: Annotated[Path, Option("folder")]
    """Where the files go."""

    where: Annotated[str, Option("\"stain = 'HE'\"")] = "true"
    """Take only what meets this SQL condition on the columns of slides and tiles."""

    file_mb: Annotated[int, Option(formerly="--tar-mb")] = 1000
    """webdataset, parquet: the largest file, in MB."""

    shuffle: int | None = None
    """webdataset, parquet: the seed of a random order. Without it tars are slide by slide, and tables use 0."""
