"""Where slides are and where the output goes: a folder, or a bucket; and what a run was told of the slides."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import boto3

from tests.soak.plan import FAR
from tests.soak.slides import BROKEN, POISON, SOUND, Slide, encoded
from tests.support.object_server import BUCKET

_PIECES, _PAUSE_S = 5, 0.05
_KINDS = ("svs", "jpeg", "deflate", "dicom", "svs", "jpeg", "svs", "jpeg", "dicom", "large")


def cohort(seed: int, count: int) -> list[Slide]:
    """So many slides, each kind of broken and poisonous one among them."""
    odd = [*BROKEN, *POISON]
    usual = [_KINDS[number % len(_KINDS)] for number in range(max(len(SOUND), count - len(odd)))]
    step = max(1, len(usual) // len(odd))
    for number, kind in enumerate(odd):
        usual.insert(number * (step + 1), kind)
    return [Slide.of(number, kind, seed) for number, kind in enumerate(usual)]


class World:
    """Slides with their versions, and one output that calls fill.

    `slides` and `out` are what a call is told; `versions` says which version of each slide is there now.
    """

    def __init__(self, name: str, folder: Path, slides: list[Slide], url: str = "") -> None:
        self.name, self.folder = name, folder
        self.cohort = slides
        self.by_name = {slide.name: slide for slide in slides}
        self.versions = dict.fromkeys(self.by_name, 0)
        self.labels = dict.fromkeys(self.by_name, 0)
        self.quality = 90
        folder.mkdir(parents=True)
        self._client = None
        if name == FAR:
            keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
            self._client = boto3.client("s3", endpoint_url=url, **keys)
            self.slides, self.out = f"s3://{BUCKET}/slides", f"s3://{BUCKET}/out"
        else:
            (folder / "slides").mkdir()
            self.slides, self.out = str(folder / "slides"), str(folder / "out")
        for slide in slides:
            self.replace(slide, "renamed")
        self.write_manifest()

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.csv"

    def replace(self, slide: Slide, how: str) -> None:
        """Put the next version of a slide in the place of the one that is there."""
        self.versions[slide.name] += 1
        data = encoded(slide, self.versions[slide.name])
        if self._client is not None:
            _patiently(lambda: self._client.put_object(Bucket=BUCKET, Key=f"slides/{slide.name}", Body=data))
            return
        path = Path(self.slides) / slide.name
        if how == "renamed":
            aside = self.folder / "aside"
            aside.write_bytes(data)
            aside.rename(path)
            return
        with path.open("wb") as file:  # as cp does, and slowly
            for number in range(_PIECES):
                file.write(data[len(data) * number // _PIECES : len(data) * (number + 1) // _PIECES])
                file.flush()
                time.sleep(_PAUSE_S)

    def described(self, slide: Slide) -> dict[str, str]:
        """What the manifest says of a slide."""
        number = self.cohort.index(slide)
        return {
            "slide": slide.name,
            "institution": f"hospital {number % 7}",
            "tissue": f"organ {self.labels[slide.name]}",
            "patient": f"patient {number // 3}",
            "batch": f"b{number % 5}",
        }

    def write_manifest(self) -> None:
        rows = [self.described(slide) for slide in self.cohort]
        aside = self.manifest.with_suffix(".new")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        aside.rename(self.manifest)

    def relabel(self, slide: Slide) -> None:
        """Let the manifest say something else of a slide from now on."""
        self.labels[slide.name] += 1
        self.write_manifest()

    def fetched(self) -> Path:
        """A folder with all that the output holds; of a bucket, a copy."""
        if self._client is None:
            return Path(self.out)
        to = self.folder / f"copy-{time.monotonic_ns()}"
        to.mkdir()
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="out/")
        for key in [found["Key"] for page in pages for found in page.get("Contents", [])]:
            path = to / key.removeprefix("out/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        return to


def _patiently(work: object) -> None:
    """Until the store does it, whatever the weather."""
    from botocore.exceptions import BotoCoreError, ClientError

    for _ in range(50):
        try:
            work()
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the store takes no slide")
