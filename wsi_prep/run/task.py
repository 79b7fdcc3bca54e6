"""One slide's work: what it depends on, where it is, and where its result goes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from wsi_prep.errors import BadOption
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.records import FORMAT_VERSION
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.institution import UNKNOWN
from wsi_prep.slides.find.manifest import ManifestRow
from wsi_prep.slides.find.sources import SlideSource
from wsi_prep.slides.readers.select import READERS
from wsi_prep.slides.scale import check_assumed_mpp
from wsi_prep.tiles.filters import TileFilter
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.tissue.detect import TissueSettings
from wsi_prep.tissue.masks import MaskFile

DEFAULT_TIME_LIMIT = 3600.0
"""Seconds on one worker after which a slide is taken to hang."""


@dataclass(frozen=True)
class PrepareSettings:
    """Every setting that a slide's tiles depend on.

    A tile is made when it passes all `filters`; `assume_mpp` is for slides of which nothing states one. `own_quality`:
    see `TileSettings`.
    """

    plan: PlanSettings = field(default_factory=PlanSettings)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    jpeg: JpegSettings = field(default_factory=JpegSettings)
    filters: tuple[TileFilter, ...] = ()
    reader: str = "auto"
    assume_mpp: float | None = None
    own_quality: bool = True

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise BadOption(f"reader {self.reader!r} is not known; choose from {' '.join(READERS)}")
        if self.assume_mpp is not None:
            check_assumed_mpp(self.assume_mpp)

    def as_dict(self) -> dict[str, object]:
        """Plain values, as JSON gives them back; without filters they are not mentioned."""
        settings = {"format": FORMAT_VERSION, **asdict(self)}
        del settings["filters"]
        if self.filters:
            settings["filters"] = " ".join(sorted(map(str, self.filters)))
        plain: dict[str, object] = json.loads(json.dumps(settings))
        return plain

    def config_hash(
        self, manifest_mpp: float | None, mask_digest: str | None = None, manifest_stain: str | None = None
    ) -> str:
        """Mark of the settings, and of the manifest's values and the given mask, that the tiles depend on: of the stain
        where a filter asks for one.
        """
        given = [repr(manifest_mpp)] if mask_digest is None else [repr(manifest_mpp), mask_digest]
        if any(each.stain for each in self.filters):
            given.append(f"stain {manifest_stain}")
        text = json.dumps([self.as_dict(), *given], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class SlideTask:
    """One slide's work: where it is, what the manifest says of it, where the result goes, and a mask if one is given.

    `run_token` names the run: when the output folder's lock holds another, this work is nobody's any more. After
    `time_limit` seconds the worker process ends itself, and the slide fails when it is tried again. `out` is a path or
    an object store's URL; `cache` is where the worker may copy the slide to. `made_at` is the time that all its files
    get, or None for their own. `file_folder` is what tells the slide from others of its name.
    """

    source: SlideSource
    manifest: ManifestRow
    patient_key: str | None
    settings: PrepareSettings
    out: str
    run_token: str
    time_limit: float = DEFAULT_TIME_LIMIT
    institution_source: str = UNKNOWN
    mask: MaskFile | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    threads: int = 1
    made_at: float | None = None
    file_folder: str | None = None

    @property
    def config_hash(self) -> str:
        """What the slide's row must bear for its tiles to stand."""
        digest = self.mask.digest if self.mask else None
        return self.settings.config_hash(self.manifest.mpp, digest, self.manifest.stain)
