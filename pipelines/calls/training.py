"""What the trainer's commands take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.calls.base import OfShards, OfTiles, Option
from pretrain.train.planning.assumptions import PlanAssumptions

_SETTINGS = Option('"schedule.rate=0.002 ..."', words=True)
_RUN = Option("folder", local=True, formerly="--folder")
_PNG = Option("file.png", local=True, formerly="--out")
_INDEX = Option("folder", local=True)


@dataclass(frozen=True, kw_only=True)
class PeekCall(OfTiles, OfShards):
    """Draw a contact sheet of what the trainer will see: tiles by magnification and stratum, then their crops.

    Exit codes: 0 the picture is written; 2 the call is wrong; 3 it is written, but some tiles cannot be read.
    """

    png: Annotated[Path, _PNG] = Path("peek.png")
    """The picture."""

    strata: int = 12
    """Most strata of a magnification."""

    alpha: float = 0.5
    """How strata are drawn: 0 evenly, 1 as found."""

    continuous: bool = False
    """Crop at scales up to 1.75 times as coarse as the stored magnifications."""

    any_mpp: bool = False
    """Draw every um/px, as sampling.any_mpp does, and show some."""

    seed: int = 0
    """Draw other tiles and crops."""

    index: Annotated[Path | None, _INDEX] = None
    """Where the index is kept; without it, in the user's cache."""


@dataclass(frozen=True, kw_only=True)
class PretrainCall(OfTiles, OfShards):
    """Pretrain a ViT on shards, or continue the run in RUN.

    Exit codes: 0 done, or STOP_AT reached; 2 the call is wrong; 3 numbers, tiles or a checkpoint went bad; 75 stopped
    by SIGTERM or SIGHUP and saved, repeat the call to continue; 130 the same by Ctrl-C, unless a second one came before
    it saved. With GPUS, 143 or 129 where SIGTERM or SIGHUP ended a process before it could save.
    """

    shards: Annotated[tuple[str, ...], Option('"folder ..."')] = ()
    """Folders or URLs that hold shards; without it, those of the run in RUN, or the folder shards for a new run."""

    recipe: str | None = None
    """The recipe's name, of those that `recipe` shows; without it the run's own, or debug for a new run."""

    run: Annotated[Path | None, _RUN] = None
    """The folder of the run; without it, runs/RECIPE."""

    continue_run: Annotated[str | None, Option("run@step", make="CONTINUE")] = None
    """Begin a new run with network, heads, moving mean and optimizer of this one, at a step of it or its newest."""

    gpus: int | None = None
    """Processes of this machine, one a GPU."""

    nodes: Annotated[int | None, Option(cohort=True)] = None
    """Machines that train together; each makes the same call."""

    head: Annotated[str | None, Option("host:port", cohort=True)] = None
    """Where the machines meet. Whoever reaches that port runs code as you: use a network of your own."""

    stop_at: int | None = None
    """Stop before this step, with a checkpoint."""

    probe: Annotated[tuple[str, ...], Option('"tiles.parquet masks:folder ..."', cohort=True)] = ()
    """Labelled tiles to probe with: tables, folders, data sets or tiles with masks, as evaluate takes them as TASKS."""

    exclude: Annotated[tuple[str, ...], Option('"tiles.parquet ..."', cohort=True)] = ()
    """Tables of labelled tiles: their slides and patients are not trained on."""

    near: bool = False
    """Exclude the slides of tiles that look like tiles of these tables, too; each tile of SHARDS is read once."""

    set: Annotated[tuple[str, ...], _SETTINGS] = ()
    """Changes to the recipe, as in schedule.rate=0.002."""

    index: Annotated[Path | None, _INDEX] = None
    """Where the index is kept; without it, in the user's cache."""

    force: bool = False
    """Try a recipe on GPUs whose memory is too small for it by simulation."""


@dataclass(frozen=True, kw_only=True)
class DistillCall(PretrainCall):
    """Train a small ViT from a frozen one; takes all that pretrain takes.

    Exit codes are those of pretrain.
    """

    teacher: Annotated[str, Option("run|folder", cohort=True)]
    """The frozen ViT: a run, or a folder of weights."""


@dataclass(frozen=True, kw_only=True)
class PlanTrainCall(PlanAssumptions):
    """Plan a training without a GPU: memory, time, money, and the nearest settings that fit.

    A step is simulated, over tensors without numbers. No shards are read. docs/training.md says what is assumed.

    Exit codes: 0 it fits; 2 the call is wrong, or its step cannot be simulated; 3 the recipe does not fit without
    changes.
    """

    recipe: Annotated[str, Option("virchow2")] = "debug"
    """The recipe's name, of those that `recipe` shows."""

    gpus: Annotated[tuple[int, ...], Option('"64 512"', words=True)] = (8,)
    """GPUs in all machines together; several numbers make a table."""

    gpu: Annotated[str, Option("h100")] = "h100"
    """Their kind: a100-40, a100-80, h100, h100-pcie, h200, b200, l40s, l4, rtx4090."""

    set: Annotated[tuple[str, ...], _SETTINGS] = ()
    """Changes to the recipe, as in compute.recompute=lean."""

    to: Annotated[Path | None, Option("plan.json", local=True)] = None
    """Write everything to this .json too."""


@dataclass(frozen=True, kw_only=True)
class RecipeCall:
    """Show a recipe: every setting by the name that SET takes, and what the model costs."""

    recipe: Annotated[str, Option("debug")] = "debug"
    """One of debug, small, vit_s, vit_b_ablation, virchow2, virchow2g, virchow2g_mini."""

    set: Annotated[tuple[str, ...], _SETTINGS] = ()
    """Changes, as in schedule.rate=0.002."""


@dataclass(frozen=True, kw_only=True)
class CurvesCall:
    """Draw the curves of runs as one picture."""

    runs: Annotated[tuple[Path, ...], Option('"run ..."', make="MODEL")]
    """Folders of runs."""

    png: Annotated[Path, _PNG] = Path("curves.png")
    """The picture."""


@dataclass(frozen=True, kw_only=True)
class EvaluateCall:
    """Evaluate models on labelled tiles, beside untrained networks and colour statistics.

    TASKS are data sets as NAME:FOLDER, tables as file.parquet or file.parquet:labels, or folders of CLASS/*.png or
    CLASS/SLIDE/*.png. docs/evaluation.md has the names, and says where each data set comes from.
    """

    model: Annotated[tuple[str, ...], Option('"run, folder of weights, or timm\'s name ..."', formerly="--models")]
    """Runs, folders of weights, or names of timm."""

    tasks: Annotated[tuple[str, ...], Option('"pcam:/data/pcam tiles.parquet:labels ..."')]
    """Data sets, tables or folders."""

    shards: Annotated[tuple[str, ...], Option('"folder ..."')] = ()
    """Folders or URLs that a model was trained on: which slides and patients of the tables are in them is said."""

    near: bool = False
    """Say, too, how many tiles of TASKS look like tiles in SHARDS; each tile of these is read once."""

    like: Annotated[str | None, Option("model")] = None
    """Show how far each model sees the same tiles as neighbours as this one does."""

    group_pattern: str | None = None
    """The slides of tiles in folders, by their paths, as (?P<group>[^/]+)_x\\d+."""

    site: Annotated[tuple[str, ...], Option('"scanner ..."', words=True)] = ()
    """Columns of tables that say where a tile is from, for robustness; without it, institution, scanner and site."""

    to: Annotated[Path | None, Option("folder", local=True)] = None
    """Write figures.parquet and figures.html here."""

    limit: int = 0
    """Most tiles on either side of a task; 0 takes all."""

    px: int = 0
    """Resize tiles of tables and folders to so many px a side; 0 leaves them as they are."""

    cache: Annotated[Path | None, Option("folder", local=True)] = None
    """Where features are kept; without it, in the user's cache."""

    batch: int = 64
    """Tiles at once."""

    threads: int = 2
    """Threads that read and decode."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSlidesCall:
    """Evaluate features on labelled slides, by attention over their tiles and by the mean of them.

    Patients are never divided. docs/evaluation.md says how to make the features, and those of the colours alone and of
    an untrained network to compare with.
    """

    labels: Annotated[Path, Option("labels.csv", local=True)]
    """A CSV file with the columns slide, label and patient."""

    features: Annotated[tuple[Path, ...], Option('"folder ..."', local=True)]
    """Folders that embed has filled, one for each model."""

    to: Annotated[Path | None, Option("folder", local=True)] = None
    """Write slides.parquet here."""

    magnification: Annotated[str, Option("20x")] = ""
    """Whose tiles count, where the features are of several."""

    folds: int = 5
    """Parts that patients are divided into, each of which is judged once."""

    limit: int = 2000
    """Most tiles of a slide, drawn by chance; 0 takes all."""


@dataclass(frozen=True, kw_only=True)
class ExportCall:
    """Write a run's backbone as a folder that timm loads, with a model card."""

    run: Annotated[Path, _RUN]
    """The folder of the run."""

    to: Annotated[Path, Option("folder", local=True)]
    """A new folder."""

    licence: str = "unknown"
    """The licence that the model card names."""

    step: int | None = None
    """Which checkpoint; without it, the newest."""


@dataclass(frozen=True, kw_only=True)
class EmbedCall(OfTiles, OfShards):
    """Write the features of every tile, as Parquet and as h5. Slides that are done stay.

    Exit codes: 0 all is written; 2 the call is wrong; 3 it is written, but some tiles cannot be read.
    """

    model: Annotated[str, Option('"run, folder of weights, or timm\'s name"')]
    """A run, a folder of weights, or a name of timm: hf-hub:owner/name, local-dir:folder. To compare with them,
    untrained:RUN is a run's network before its first step, and colours the colours alone."""

    to: Annotated[Path, Option("folder", local=True)]
    """Where the features go."""

    px: int = 0
    """Embed the middle of a tile, so many px a side; 0 takes all of it."""

    regions: bool = False
    """Write features by region, too: what lies under a 5x tile at all magnifications, (regions, 85, features)."""

    redo: bool = False
    """Delete the features that are there, and make all anew."""

    batch: int = 64
    """Tiles at once."""

    threads: int = 4
    """Threads that read and decode."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the products."""


@dataclass(frozen=True, kw_only=True)
class FitStainCall:
    """Fit the stain classifier anew, and tell how well it does on cases that it was not fitted on."""

    tiles: Annotated[tuple[Path, ...], Option('"tiles.parquet ..."')] = ()
    """Tables of image, group, mpp, slide, stain."""

    slides: Annotated[tuple[Path, ...], Option('"folder ..."')] = ()
    """Folders of slides, or of pictures of slides, beside a manifest.csv: slide, mpp, stain, patient."""

    to: Annotated[Path | None, Option("file")] = None
    """The weights; without it, those of the package."""

    examples: int = 12000
    """Pictures in other dyes, and as many in their own."""

    evaluate: bool = False
    """Tell how well it does, and write no weights."""

    unseen: Annotated[tuple[str, ...], Option('"stain ..."', words=True)] = ()
    """Recipes to judge as stains that were never seen."""

    seed: int = 0
    """Seed of the pictures and the fit."""
