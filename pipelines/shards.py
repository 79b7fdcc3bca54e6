"""Whole-slide images to Zarr tile stores, a Parquet catalog, and pictures to check them by."""

from __future__ import annotations

import os
import sys

from pipelines.call_script import call_script
from pipelines.calls.shards import ShardsCall
from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    PATIENT_KEY_VARIABLE,
    Terminal,
    read_key,
    require_apart,
    run_command,
)
from pipelines.console import SlideProgress, show_before, show_summary
from wsi_prep.compute.cluster.options import ClusterOptions, read_slurm_config, tls_files
from wsi_prep.errors import BadOption, ClusterLost
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.magnifications import parse_magnifications
from wsi_prep.run.before import look_before
from wsi_prep.run.call import run_shards
from wsi_prep.run.request import RunRequest
from wsi_prep.run.task import PrepareSettings
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.institution import InstitutionPattern
from wsi_prep.tiles.filters import parse_filters
from wsi_prep.tiles.plan import PlanSettings

ID_KEY_VARIABLE = "WSI_PREP_ID_KEY"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    goes_on = "interrupted; finished slides are kept: repeat the command to resume"
    return run_command(ShardsCall, _work, arguments, goes_on)


def _work(call: ShardsCall, terminal: Terminal) -> int:
    request = build_request(call)
    if request.log is not None:
        require_apart("LOG", request.log, [request.out])
    if call.check:
        before = look_before(request)
        show_before(terminal, before)
        return EXIT_NOT_ALL if before.faults else EXIT_OK
    try:
        with SlideProgress(terminal, link=call.dashboard) as progress:
            summary = run_shards(request, progress)
    except ClusterLost as error:
        terminal.warn(str(error))
        return EXIT_NOT_ALL
    show_summary(terminal, request.out, summary)
    return EXIT_NOT_ALL if summary.failed else EXIT_OK


def build_request(call: ShardsCall) -> RunRequest:
    """The call's options, checked; raises BadOption."""
    magnifications = tuple(m.name for m in parse_magnifications(call.mags))
    settings = PrepareSettings(
        plan=PlanSettings(magnifications, call.tissue, parse_max_tiles(call.max_tiles)),
        jpeg=JpegSettings(JpegSettings.quality if call.quality is None else call.quality, call.subsampling),
        own_quality=call.quality is None,
        filters=parse_filters(call.filter),
        reader=call.reader,
        assume_mpp=call.assume_mpp,
    )
    if not call.time_limit > 0:
        raise BadOption(f"time limit {call.time_limit:g} is not a number of seconds above 0")
    pattern = call.institution_pattern
    return RunRequest(
        slides=call.slides,
        out=call.out,
        manifest=call.manifest,
        masks=call.masks,
        settings=settings,
        cluster=cluster_options(call),
        redo=call.redo,
        id_root=call.id_root,
        patient_key=read_key("patient key", call.patient_key, PATIENT_KEY_VARIABLE),
        time_limit=call.time_limit,
        id_key=read_id_key(call),
        names=call.names,
        institution_pattern=InstitutionPattern(pattern) if pattern else None,
        cache=CacheSettings(call.cache and os.path.abspath(call.cache), call.cache_gb),  # noqa: PTH100
        take_over=call.take_over,
        forgotten_lost=call.forgotten_lost,
        log=call.log,
        script=None if call.private else call_script(call),
    )


def cluster_options(call: ShardsCall) -> ClusterOptions:
    """The cluster that the call names; BadOption where its parts do not fit each other."""
    if (call.cluster is None) != (call.cluster_config is None):
        raise BadOption("CLUSTER=slurm and CLUSTER_CONFIG=file.yaml need each other")
    if call.cluster is not None and call.workers is not None:
        raise BadOption("WORKERS is for a local cluster; CLUSTER_CONFIG's cores and jobs say how many workers")
    return ClusterOptions(
        workers=call.workers,
        scheduler=call.scheduler,
        tls=tls_files(call.tls_ca, call.tls_cert, call.tls_key),
        slurm=read_slurm_config(call.cluster_config) if call.cluster_config is not None else None,
        dashboard=call.dashboard,
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


def read_id_key(call: ShardsCall) -> bytes | None:
    """The secret for slides' ids, with --private; BadOption for a part of --private without the rest."""
    if not call.private:
        if call.id_key or call.names:
            raise BadOption("ID_KEY and NAMES are for PRIVATE=1; add it, or omit them")
        return None
    key = read_key("id key", call.id_key, ID_KEY_VARIABLE)
    if key is None:
        raise BadOption(f"PRIVATE=1 needs a secret: ID_KEY=file, or ${ID_KEY_VARIABLE}; PATIENT_KEY's file will do")
    return key


if __name__ == "__main__":
    sys.exit(main())
