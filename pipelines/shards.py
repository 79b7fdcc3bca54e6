"""Whole-slide images to Zarr tile stores, a Parquet catalog, and pictures to check them by."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    PATIENT_KEY_VARIABLE,
    Terminal,
    read_key,
    require_apart,
    run_command,
)
from pipelines.console import SlideProgress, show_summary
from pipelines.options import Options
from wsi_prep.compute.cluster.options import ClusterOptions, read_slurm_config, tls_files
from wsi_prep.errors import BadOption, ClusterLost
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.magnifications import parse_magnifications
from wsi_prep.run.call import run_shards
from wsi_prep.run.request import RunRequest
from wsi_prep.run.task import DEFAULT_TIME_LIMIT, PrepareSettings
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.institution import InstitutionPattern
from wsi_prep.slides.readers.select import READERS
from wsi_prep.storage.select import local_folder
from wsi_prep.tiles.filters import parse_filters
from wsi_prep.tiles.plan import PlanSettings

ID_KEY_VARIABLE = "WSI_PREP_ID_KEY"

EPILOG = """exit codes: 0 nothing failed; 2 the call is wrong, nothing was done; 3 some slides failed and the others
are done, or the cluster's scheduler went away; 130 interrupted. The same call goes on: it does what is not done yet."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    goes_on = "interrupted; what is done is kept, and the same call goes on from here"
    return run_command(build_parser(), _work, arguments, goes_on)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    request = build_request(options)
    if request.log is not None:
        require_apart("LOG", request.log, [request.out])
    try:
        with SlideProgress(terminal, link=options.dashboard) as progress:
            summary = run_shards(request, progress)
    except ClusterLost as error:
        terminal.warn(str(error))
        return EXIT_NOT_ALL
    show_summary(terminal, request.out, summary)
    return EXIT_NOT_ALL if summary.failed else EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.shards", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--slides", required=True, metavar="WHERE", help="a folder, a slide, a glob, or a .csv with a column 'slide'")
    add(
        "--out",
        required=True,
        metavar="WHERE",
        help="where the stores and the catalog go: a folder, or s3://, gs://, az://",
    )
    add("--manifest", metavar="CSV", help="columns slide, mpp, stain, institution, tissue, patient")
    add("--masks", metavar="FOLDER", help="tissue masks named after their slides, GeoJSON or PNG, used as they are")
    add("--mags", default="5x 10x 20x 40x", metavar="NAMES", help="magnifications to make (default: %(default)s)")
    add("--max-tiles", default="", metavar="LIMITS", help='most tiles a slide gives, as in "40x=500 20x=500"')
    add(
        "--tissue",
        type=float,
        default=PlanSettings().tissue_threshold,
        metavar="SHARE",
        help="least share of tissue (default: %(default)s)",
    )
    add("--filter", default="", metavar="CONDITIONS", help='leave out tiles, as in "focus@40x>=0.2 pen<=0.02"')
    add("--quality", type=int, default=90, metavar="Q", help="JPEG quality of the tiles (default: %(default)s)")
    add("--subsampling", default="420", metavar="S", help="JPEG chroma: 420, 422 or 444 (default: %(default)s)")
    add("--assume-mpp", type=float, metavar="UM", help="um/px for slides of which neither manifest nor file states it")
    add("--reader", default="auto", choices=READERS, help="force one reader (default: %(default)s)")
    add("--workers", type=int, metavar="N", help="worker processes of the local cluster (default: one a core)")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="a running Dask scheduler, tcp://host:port or tls://host:port",
    )
    add("--tls-ca", type=Path, metavar="PEM", help="for tls://: the authority of the cluster's certificates")
    add("--tls-cert", type=Path, metavar="PEM", help="for tls://: this side's certificate")
    add("--tls-key", type=Path, metavar="PEM", help="for tls://: the key of this side's certificate")
    add("--cluster", choices=("slurm",), metavar="slurm", help="start the workers as jobs of SLURM")
    add("--cluster-config", type=Path, metavar="YAML", help="one job's resources, and how many: docs/cluster.md")
    add(
        "--dashboard",
        action="store_true",
        help="serve Dask's dashboard, and print its link",
    )
    add(
        "--time-limit",
        type=float,
        default=DEFAULT_TIME_LIMIT,
        metavar="S",
        help="seconds a slide may take (default: %(default)g)",
    )
    add("--cache", metavar="FOLDER", help="where workers copy slides by URL that only local files will do for")
    add(
        "--cache-gb",
        type=float,
        default=CacheSettings.gigabytes,
        metavar="N",
        help="most that these copies take on a machine, in GB (default: %(default)g)",
    )
    add("--take-over", action="store_true", help="take an object store that a run which is gone left locked")
    add("--forgotten-lost", action="store_true", help="go on where forgotten.json is lost: its slides are made again")
    add("--log", type=Path, metavar="JSONL", help="append a JSON line for each slide that begins or ends")
    add("--redo", action="store_true", help="do slides again that were made with other settings")
    add("--id-root", metavar="FOLDER", help="make slide ids from paths relative to this folder, so that it may move")
    add("--patient-key", type=Path, metavar="FILE", help=f"secret for hashing patient ids (or ${PATIENT_KEY_VARIABLE})")
    add("--private", action="store_true", help="no file name in the output: keyed ids in their place")
    add("--id-key", type=Path, metavar="FILE", help=f"secret for the keyed ids (or ${ID_KEY_VARIABLE})")
    add("--names", type=Path, metavar="CSV", help="file outside of OUT that leads from keyed ids back to paths")
    add(
        "--institution-pattern",
        metavar="REGEX",
        help="finds (?P<institution>...), and (?P<patient>...) if it names one, in a slide's path below SLIDES",
    )
    return parser


def build_request(options: argparse.Namespace) -> RunRequest:
    """The call's options, checked; raises BadOption."""
    magnifications = tuple(m.name for m in parse_magnifications(options.mags))
    settings = PrepareSettings(
        plan=PlanSettings(magnifications, options.tissue, parse_max_tiles(options.max_tiles)),
        jpeg=JpegSettings(options.quality, options.subsampling),
        filters=parse_filters(options.filter),
        reader=options.reader,
        assume_mpp=options.assume_mpp,
    )
    if not options.time_limit > 0:
        raise BadOption(f"time limit {options.time_limit:g} is not a number of seconds above 0")
    pattern = options.institution_pattern
    return RunRequest(
        slides=options.slides,
        out=str(local_folder(options.out) or options.out.rstrip("/")),
        manifest=options.manifest,
        masks=options.masks,
        settings=settings,
        cluster=cluster_options(options),
        redo=options.redo,
        id_root=options.id_root,
        patient_key=read_key("patient key", options.patient_key, PATIENT_KEY_VARIABLE),
        time_limit=options.time_limit,
        id_key=read_id_key(options),
        names=options.names,
        institution_pattern=InstitutionPattern(pattern) if pattern else None,
        cache=CacheSettings(options.cache and os.path.abspath(options.cache), options.cache_gb),  # noqa: PTH100
        take_over=options.take_over,
        forgotten_lost=options.forgotten_lost,
        log=options.log,
    )


def cluster_options(options: argparse.Namespace) -> ClusterOptions:
    """The cluster that the call names; BadOption where its parts do not fit each other."""
    if (options.cluster is None) != (options.cluster_config is None):
        raise BadOption("CLUSTER=slurm and CLUSTER_CONFIG=file.yaml need each other")
    if options.cluster is not None and options.workers is not None:
        raise BadOption("WORKERS is for a local cluster; CLUSTER_CONFIG's cores and jobs say how many workers")
    return ClusterOptions(
        workers=options.workers,
        scheduler=options.scheduler,
        tls=tls_files(options.tls_ca, options.tls_cert, options.tls_key),
        slurm=read_slurm_config(options.cluster_config) if options.cluster_config is not None else None,
        dashboard=options.dashboard,
    )


def parse_max_tiles(text: str) -> tuple[tuple[str, int], ...]:
    """Pairs from text such as "40x=500 20x=300"; BadOption for anything else."""
    pairs = []
    for word in text.replace(",", " ").split():
        name, _, count = word.partition("=")
        if not count.isdecimal():
            raise BadOption(f"max tiles {word!r} is not understood; write a magnification and a count, as in 40x=500")
        pairs.append((parse_magnifications(name)[0].name, int(count)))
    return tuple(pairs)


def read_id_key(options: argparse.Namespace) -> bytes | None:
    """The secret for slides' ids, with --private; BadOption for a part of --private without the rest."""
    if not options.private:
        if options.id_key or options.names:
            raise BadOption("ID_KEY and NAMES are for PRIVATE=1; add it, or leave them away")
        return None
    key = read_key("id key", options.id_key, ID_KEY_VARIABLE)
    if key is None:
        raise BadOption(f"PRIVATE=1 needs a secret: ID_KEY=file, or ${ID_KEY_VARIABLE}; PATIENT_KEY's file will do")
    return key


if __name__ == "__main__":
    sys.exit(main())
