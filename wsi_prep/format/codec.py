"""The codec of a tile in the Zarr stores: imagecodecs' own where it is installed, a twin of the same name elsewhere.

Stores name the codec `imagecodecs_jpeg`, which the packages imagecodecs and imagecodecs-zarr bring on Python 3.12 and
later. On Python 3.11 they do not exist, so the class below takes the same name and configuration. Zarr finds it through
this package's entry point, so `zarr.open` needs no import of ours.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from wsi_prep.format.jpeg import CODEC_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer


@dataclass(frozen=True)
class _Jpeg(ArrayBytesCodec):
    """Zarr v3 codec: one chunk, (1, h, w, 3) uint8, is one JPEG. Takes imagecodecs' configuration of the same name."""

    is_fixed_size = False

    level: int | None = None
    colorspace_data: str | None = None
    colorspace_jpeg: str | None = None
    subsampling: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _Jpeg:
        """From Zarr metadata; a key that this twin does not know is refused rather than ignored."""
        configuration = dict(data.get("configuration") or {})
        unknown = set(configuration) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{CODEC_NAME} options {sorted(unknown)} need the package imagecodecs-zarr (Python 3.12)")
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        """As Zarr metadata."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"name": CODEC_NAME, "configuration": {k: v for k, v in fields.items() if v is not None}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(
            imagecodecs.jpeg8_decode,
            chunk_data.to_bytes(),
            colorspace=self.colorspace_jpeg,
            outcolorspace=self.colorspace_data,
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        jpeg = await asyncio.to_thread(
            imagecodecs.jpeg8_encode,
            np.ascontiguousarray(np.squeeze(chunk_data.as_numpy_array())),
            level=self.level,
            colorspace=self.colorspace_data,
            outcolorspace=self.colorspace_jpeg,
            subsampling=self.subsampling,
        )
        return chunk_spec.prototype.buffer.from_bytes(jpeg)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known before encoding."""
        raise NotImplementedError


def _codec_class() -> Any:
    try:
        from imagecodecs.zarr import Jpeg  # noqa: PLC0415 - there on Python 3.12 and later only
    except ImportError:
        return _Jpeg
    return Jpeg


Jpeg = _codec_class()
"""What Zarr's registry gets for `imagecodecs_jpeg`."""
