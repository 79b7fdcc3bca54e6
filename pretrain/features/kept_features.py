"""What the features in a folder are of, so that those of another model, size or filter never lie among them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.compute.plain_files import read_json
from pretrain.data.sources import digest
from pretrain.errors import OtherFeatures
from wsi_prep.errors import first_line
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.storage.atomic import write_json
from wsi_prep.untrusted.below import folder_below

RECORD = "features.json"
TOKENS, POOLED = "class token, then mean of the patch tokens", "what the network hands to its classifier"
_OF, _TILES, _LEFT_OUT = b"made_by", b"tiles", b"left_out"
_CONTENT = ("magnification", "mpp", "x0", "y0", "span0", "row", "col", "crc32")  # of a tile, that features depend on
_SHOWN = 12  # digits of a digest


@dataclass(frozen=True)
class FeatureRecord:
    """What all features of a folder have in common; where two records differ, features cannot be compared.

    `model`: digest of the weights. `px`: side of the middle of a tile that is embedded. `where`: the condition on the
    catalog's columns, None for all tiles. `precision`: of products. `features`: what they are, in order.
    """

    model: str
    px: int
    where: str | None
    precision: str
    features: str = TOKENS
    version: int = 1

    @property
    def digest(self) -> str:
        """Another one for another record."""
        return digest(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class FeatureFolder:
    """Features as `make embed` leaves them, a Parquet file a slide and an h5 file a slide and magnification, and with
    REGIONS=1 one a slide by region.

    A slide is done when its Parquet file, which is written last, says that it was made by `record` of the very tiles
    that the shards hold now.
    """

    path: Path
    record: FeatureRecord

    def claim(self, named: str, redo: bool) -> None:
        """Make the folder this record's; `named` is what people call the model. `redo`: delete what is there first.

        Raises OtherFeatures where it holds features of another record, or of an unknown one, BadOutput where a folder
        in it is a link.
        """
        file = self.path / RECORD
        for folder in ("parquet", "regions", "h5", *(f"h5/{name.name}" for name in MAGNIFICATIONS)):
            folder_below(self.path, folder)
        if redo:
            old = list(self._files())
            if foreign := [one for one in old if not _holds_features(one)]:
                raise OtherFeatures(f"{foreign[0]} holds no features, and is not deleted; name another TO")
            for one in old:
                one.unlink()
        elif self._is_ours(file, named):
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, {**dataclasses.asdict(self.record), "model_name": named})

    def parquet(self, slide_id: str) -> Path:
        """Where a slide's rows are."""
        return self.path / "parquet" / f"{slide_id}.parquet"

    def h5(self, magnification: str, slide_id: str) -> Path:
        """Where a slide's features of one magnification are."""
        return self.path / "h5" / magnification / f"{slide_id}.h5"

    def regions(self, slide_id: str) -> Path:
        """Where a slide's features by region are."""
        return self.path / "regions" / f"{slide_id}.h5"

    def slides(self) -> set[str]:
        """The ids of slides that have a Parquet file, done or not."""
        return {file.name.removesuffix(".parquet") for file in self.path.glob("parquet/[!.]*.parquet")}

    def stamp(self, tiles_stamp: str, left_out: int) -> dict[bytes, bytes]:
        """What a slide's Parquet file has to say: of which record and tiles it is, and how many cannot be read."""
        return {_OF: self.record.digest.encode(), _TILES: tiles_stamp.encode(), _LEFT_OUT: str(left_out).encode()}

    def is_done(self, slide_id: str, tiles_stamp: str, magnifications: Mapping[str, int]) -> bool:
        """Whether all features of a slide are there, whole, of this record, and of these tiles; a count for each name.

        A slide with tiles that could not be read is not done: what failed may have been the way to them.
        """
        if not self.parquet(slide_id).is_file():  # a pipe would be waited for
            return False
        try:
            file = pq.read_metadata(self.parquet(slide_id))
        except (OSError, pa.ArrowInvalid):
            return False
        said = file.metadata or {}
        if {name: said.get(name) for name in (_OF, _TILES, _LEFT_OUT)} != self.stamp(tiles_stamp, 0):
            return False
        return all(_whole(self.h5(name, slide_id), count) for name, count in magnifications.items())

    def remove_h5(self, slide_id: str, other_than: Mapping[str, int]) -> None:
        """Delete what an earlier call left of a slide at magnifications that it has no more."""
        for old in self.path.glob(f"h5/*/{slide_id}.h5"):
            if old.parent.name not in other_than:
                old.unlink()

    def _files(self) -> Iterator[Path]:
        yield from list(self.path.glob("parquet/*.parquet"))
        yield from list(self.path.glob("regions/*.h5"))
        yield from list(self.path.glob("h5/*/*.h5"))

    def _is_ours(self, file: Path, named: str) -> bool:
        """False where nothing is there yet. Raises OtherFeatures."""
        if not file.exists():
            if next(self._files(), None) is not None:
                raise OtherFeatures(
                    f"{self.path} holds features, and no {RECORD} that says of which model, px and filter; name "
                    "another TO, or give REDO=1 to delete them and start again"
                )
            return False
        if differing := self._differences(file, named):
            raise OtherFeatures(
                f"{self.path} has features made with other settings ({'; '.join(differing)}); name another TO, or give "
                "REDO=1 to delete them and start again"
            )
        return True

    def _differences(self, file: Path, named: str) -> list[str]:
        """`name: there -> here` for all that differs."""
        try:
            there = read_json(file)
            before = FeatureRecord(**{f.name: there.get(f.name) for f in dataclasses.fields(FeatureRecord)})
        except (OSError, ValueError, AttributeError) as error:
            return [f"{RECORD} cannot be read: {first_line(error)}"]
        found = []
        for field in dataclasses.fields(FeatureRecord):
            old, new = getattr(before, field.name), getattr(self.record, field.name)
            if old == new:
                continue
            if field.name == "model":
                old, new = _weights(there.get("model_name"), old), _weights(named, new)
            elif field.name == "where":
                old, new = old or "all tiles", new or "all tiles"
            found.append(f"{field.name}: {_one_line(old)} -> {_one_line(new)}")
        return found


def tiles_stamp(tiles: pa.Table, slide: Mapping[str, object]) -> str:
    """Of one slide's tiles, pixels and places, and of what they were made from and how; another one where they differ.

    `slide`: the slide's row of the catalog.
    """
    return digest(
        str(slide.get("fingerprint")), str(slide.get("config_hash")), *(str(tiles[n].to_pylist()) for n in _CONTENT)
    )


def counts(tiles: pa.Table) -> dict[str, int]:
    """How many tiles a slide has at each magnification that it has."""
    return dict(Counter(tiles["magnification"].to_pylist()))


def _whole(file: Path, tiles: int) -> bool:
    if not file.is_file():
        return False
    try:
        with h5py.File(file, "r") as opened:
            return len(opened["features"]) == len(opened["coords"]) == tiles
    except (OSError, KeyError, TypeError):
        return False


def _holds_features(file: Path) -> bool:
    """Whether a Parquet or h5 file was made by `make embed`, as far as its names tell."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        if file.suffix == ".parquet":
            return {"slide_id", "features"} <= set(pq.read_schema(file).names)
        with h5py.File(file, "r") as opened:
            return {"features", "coords"} <= set(opened)
    except (OSError, pa.ArrowInvalid):
        return False


def _weights(name: str | None, digest: str) -> str:
    return f"{name} (weights {str(digest)[:_SHOWN]})"


def _one_line(value: object) -> str:
    """A value that a file of somebody else's may have brought, for a message."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:200])
