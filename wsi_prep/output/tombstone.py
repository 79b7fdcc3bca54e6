"""Who and what an output is to forget: forgotten.json remembers them by hashes, so it tells nobody whom it is about."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.errors import BadOutput
from wsi_prep.output.sealed_json import read_sealed, write_sealed
from wsi_prep.storage.base import Storage

TOMBSTONE = "forgotten.json"


@dataclass(frozen=True)
class Tombstone:
    """Who and what is forgotten: `patients` are keyed hashes, `slides` hashes of ids."""

    patients: frozenset[str] = frozenset()
    slides: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """How many hashes it remembers; they only become more."""
        return len(self.patients) + len(self.slides)

    def has(self, slide_id: str, patient_key: str | None = None) -> bool:
        """Whether a slide of that id, or of that patient, must not be made."""
        return patient_key in self.patients or id_hash(slide_id) in self.slides

    def among(self, slide_ids: pa.ChunkedArray, patient_keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """The same of many slides: a bool for each."""
        of_patient = pc.is_in(patient_keys, pa.array(self.patients, pa.string()))
        if not self.slides:
            return of_patient
        itself = (id_hash(slide_id) in self.slides for chunk in slide_ids.chunks for slide_id in chunk.to_pylist())
        return pc.or_(of_patient, pa.chunked_array([pa.array(itself, pa.bool_())]))

    def with_more(self, patients: Collection[str], slides: Collection[str]) -> Tombstone:
        """The same with more `patients` (keyed hashes) and `slides` (ids)."""
        return Tombstone(self.patients.union(patients), self.slides.union(map(id_hash, slides)))


def id_hash(slide_id: str) -> str:
    """A slide's id as 32 hex digits: an id may hold a part of the file's name."""
    return hashlib.blake2b(slide_id.encode(), digest_size=16, person=b"forgotten").hexdigest()


def read_tombstone(storage: Storage) -> Tombstone:
    """What the output is to forget; BadOutput where the file cannot be understood, since it must not be lost."""
    try:
        return told_by(read_sealed(storage, TOMBSTONE))
    except (FileNotFoundError, NotADirectoryError):
        return Tombstone()
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f" ({error})" if isinstance(error, BadOutput) else ""
        raise BadOutput(
            f"{storage.where}/{TOMBSTONE} cannot be read{why}; restore it: without it, forgotten slides would be made "
            "again (make verify with REPAIR=1 does, from its copy)"
        ) from error


def told_by(document: Mapping[str, object]) -> Tombstone:
    """The tombstone that such a document is. KeyError, TypeError for another."""
    return Tombstone(_hashes(document["patients"]), _hashes(document["slides"]))


def _hashes(told: object) -> frozenset[str]:
    """The texts of a list; TypeError for anything else, which would forget nobody."""
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise TypeError("no list of hashes")
    return frozenset(told)


def write_tombstone(storage: Storage, tombstone: Tombstone) -> None:
    """Replace the tombstone."""
    plain = {"patients": sorted(tombstone.patients), "slides": sorted(tombstone.slides)}
    write_sealed(storage, TOMBSTONE, plain)
