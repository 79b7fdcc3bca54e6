"""One slide's work: what it depends on, where it is, and where its result goes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsi_prep.errors import BadOption
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.records import FORMAT_VERSION
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.found import SlideSource, Sources
from wsi_prep.slides.find.institution import UNKNOWN
from wsi_prep.slides.find.manifest import ManifestRow
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


class Marks:
    """`config_hash` of settings by what the manifest says and the given mask, each computed once."""

    def __init__(self, settings: PrepareSettings) -> None:
        self._settings = settings
        self._known: dict[tuple[float | None, str | None, str | None], str] = {}

    def mark(self, mpp: float | None, digest: str | None, stain: str | None) -> str:
        """The settings' `config_hash`."""
        key = mpp, digest, stain
        if key not in self._known:
            self._known[key] = self._settings.config_hash(mpp, digest, stain)
        return self._known[key]


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


Told = dict[str, Any]
"""A row of the table of `Asked`."""

TOLD = ("config_hash", "institution", "institution_source", "tissue", "patient_key", "file_folder", "stain", "manifest")
"""What a task says of its slide beside the id: null where it says nothing, `stain` where the manifest does not."""


class Words:
    """A column of texts, few of which differ, or None."""

    def __init__(self) -> None:
        self._numbers, self._words = array("i"), dict[str | None, int]()

    def add(self, word: str | None) -> None:
        """The next one."""
        self._numbers.append(self._words.setdefault(word, len(self._words)))

    def all(self, word: str, rows: int) -> None:
        """The same so many times."""
        self._words[word] = 0
        self._numbers = array("i", bytes(4 * rows))

    def column(self, rows: int) -> pa.DictionaryArray:
        """All of them; nulls where none was added."""
        numbers = np.frombuffer(self._numbers, np.int32) if self._numbers else np.zeros(rows, np.int32)
        none = self._words.get(None, 0 if not self._numbers else -1)
        words = pa.array([word or "" for word in self._words] or [""], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=numbers == none), words)


@dataclass(frozen=True)
class Asked(Sequence[SlideTask]):
    """The tasks of many slides, each made by `make` when it is asked for.

    `table` has a row a task: the `number` of its slide among `sources`, its `slide_id`, and TOLD.
    `private`: the output tells nothing of when a slide's files were written.
    """

    table: pa.Table
    make: Callable[[Told], SlideTask]
    sources: Sources
    private: bool = False

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, at: int) -> SlideTask: ...

    @overload
    def __getitem__(self, at: slice) -> list[SlideTask]: ...

    def __getitem__(self, at: int | slice) -> SlideTask | list[SlideTask]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self.make(self.table.slice(at, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[SlideTask]:
        for batch in self.table.to_batches(max_chunksize=1000):
            yield from map(self.make, batch.to_pylist())

    @property
    def ids(self) -> pa.StringArray:
        """The slides' ids."""
        return self.table["slide_id"].combine_chunks()

    @property
    def patients(self) -> bool:
        """Whether any slide's patient gets a key."""
        return bool(self.table["patient_key"].null_count < len(self))

    def where(self, chosen: NDArray[np.bool_]) -> Asked:
        """Those of the tasks that are `chosen` (len(self),)."""
        return self if chosen.all() else replace(self, table=self.table.filter(pa.array(chosen)))

    def formerly(self, known: Callable[[str], bool]) -> pa.StringArray:
        """The earlier ids, of slides that have another one than now, that are `known`; null for all others."""
        renamed = {number: was for number, was in self.sources.renamed().items() if known(was)}
        numbers = self.table["number"].to_numpy()
        found = np.full(len(self), None, object)
        for at in np.flatnonzero(np.isin(numbers, list(renamed))):
            found[at] = renamed[numbers[at]]
        return pa.array(found, pa.string())

    def by_id(self) -> Asked:
        """The same in the order of their ids."""
        return replace(self, table=self.table.sort_by("slide_id"))

    def called(self, ids: pa.StringArray) -> Asked:
        """The same slides by other ids."""
        return replace(self, table=self.table.set_column(self.table.column_names.index("slide_id"), "slide_id", ids))
