"""What `shards` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.calls.base import Option

_OF_YOURS = Option(cohort=True)
_WORDS = Option(words=True)


@dataclass(frozen=True, kw_only=True)
class ShardsCall:
    """Cut slides into tiles: Zarr stores, a Parquet catalog, and overlays to check them by.

    If a run is stopped, repeat the command: it does what is not done yet.

    Exit codes: 0 nothing failed; 2 the call is wrong, nothing was done; 3 some slides failed and the others are done,
    or the cluster's scheduler or SLURM's jobs went away; 130 interrupted.
    """

    slides: str
    """A folder, a slide, a glob, or a .csv with a column 'slide'."""

    out: Annotated[str, Option("shards")] = "shards"
    """Where the stores and the catalog go: a folder, or s3://, gs://, az://."""

    manifest: Annotated[str | None, _OF_YOURS] = None
    """A .csv with the columns slide, mpp, stain, institution, tissue, patient, and any of your own."""

    masks: Annotated[str | None, _OF_YOURS] = None
    """A folder of tissue masks named after their slides, GeoJSON or PNG, used as they are."""

    mags: Annotated[str, _WORDS] = "5x 10x 20x 40x"
    """Magnifications to make."""

    max_tiles: Annotated[str, _WORDS] = ""
    """Most tiles that a slide gives, as in "40x=500 20x=500"."""

    tissue: float = 0.65
    """Least share of a tile that is tissue."""

    filter: Annotated[str, Option('"focus@40x>=0.2 pen<=0.02"', words=True)] = ""
    """Leave out tiles that do not meet these conditions, as in "focus@40x>=0.2 focus@20x:IHC>=0.25 pen<=0.02"."""

    quality: int | None = None
    """JPEG quality of all tiles. Without it 90, or the slide's own where its tiles are kept at their scale."""

    subsampling: str = "420"
    """JPEG chroma subsampling: 420, 422 or 444."""

    assume_mpp: Annotated[float | None, _OF_YOURS] = None
    """Micron per pixel of slides of which neither the manifest nor the file states it."""

    reader: Literal["auto", "tiff", "openslide"] = "auto"
    """Force one reader."""

    workers: int | None = None
    """Worker processes of the local cluster; without it, one a core."""

    scheduler: str | None = None
    """A running Dask scheduler, tcp://host:port or tls://host:port."""

    tls_ca: Path | None = None
    """For tls://: the authority of the cluster's certificates."""

    tls_cert: Path | None = None
    """For tls://: this side's certificate."""

    tls_key: Path | None = None
    """For tls://: the key of this side's certificate."""

    cluster: Annotated[Literal["slurm"] | None, Option("slurm")] = None
    """Start the workers as jobs of SLURM."""

    cluster_config: Path | None = None
    """A .yaml with one job's resources, and how many jobs: docs/cluster.md."""

    dashboard: bool = False
    """Serve Dask's dashboard, and print its link."""

    time_limit: float = 3600.0
    """Most seconds that a slide may take."""

    cache: str | None = None
    """A folder where workers copy slides by URL that only local files will do for."""

    cache_gb: float = 20.0
    """Most that these copies take on a machine, in GB."""

    take_over: bool = False
    """Take an object store that a run which is gone left locked."""

    forgotten_lost: bool = False
    """Go on where forgotten.json is lost: slides that were forgotten are made again."""

    log: Path | None = None
    """Append a JSON line to this file for each slide that begins or ends."""

    check: bool = False
    """Only look for what would keep the run from ending well: open some slides, test OUT, compare sizes."""

    redo: bool = False
    """Do slides again that were made with other settings."""

    id_root: Annotated[str | None, _OF_YOURS] = None
    """Make slide ids from paths relative to this folder, so that it may move."""

    patient_key: Annotated[Path | None, _OF_YOURS] = None
    """A file with the secret for hashing patient ids; or the variable WSI_PREP_PATIENT_KEY holds it."""

    private: Annotated[bool, _OF_YOURS] = False
    """Keep file names out of the output: keyed ids stand in their place."""

    id_key: Annotated[Path | None, _OF_YOURS] = None
    """A file with the secret for the keyed ids; or the variable WSI_PREP_ID_KEY holds it."""

    names: Annotated[Path | None, _OF_YOURS] = None
    """A .csv outside of OUT that leads from keyed ids back to paths."""

    institution_pattern: Annotated[str | None, _OF_YOURS] = None
    """A pattern that finds (?P<institution>...), and perhaps (?P<patient>...), in a slide's path below SLIDES."""
