"""Files of named tensors that others wrote, read from their headers first: .safetensors, and .pth without code in it.

Nothing is built, and no tensor is in memory, before names, shapes and kinds of numbers are known. The header of a
.safetensors file is checked by its library: offsets without gaps or overlaps, shapes that are as long as their bytes.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.compute.plain_files import open_plain
from pretrain.errors import BadWeights
from wsi_prep.errors import first_line

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Kinds of numbers that weights are made of; others are scaled, counts or flags."""
_BY_DTYPE = {dtype: name for name, dtype in FLOATS.items()}
_MOST_HEADER, _LONGEST_NAME = 16 << 20, 300
_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_KNOWN = {  # of a pickle: what stands for a table of tensors, and nothing else
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _STORAGES.split()),
}
_TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_BUILDERS = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "DUP", "PERSID")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: its shape, and its kind of numbers as safetensors names it."""

    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, and a way to read one of them."""

    path: Path
    tensors: dict[str, TensorInfo]
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored. Raises BadWeights for numbers that are no weights: not floats, or not finite."""
        if (kind := self.tensors[name].kind) not in FLOATS:
            raise BadWeights(f"{self.path} holds {name} as {kind}; weights are {', '.join(FLOATS)}")
        found = self._read(name)
        if not torch.isfinite(found).all():
            raise BadWeights(f"{self.path} holds {name} with NaN or infinite numbers, and would give no features")
        return found


def open_tensors(path: Path) -> TensorFile:
    """The file's header. Raises BadWeights where it is no file of tensors, or holds more than these."""
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" else _zipped(path)
    except BadWeights:
        raise
    except zipfile.BadZipFile as error:
        raise BadWeights(f"{path} cannot be read: torch.save has not written it; convert it to .safetensors") from error
    except (OSError, ValueError, SafetensorError, RuntimeError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise BadWeights(f"{path} cannot be read: {reason}") from error
    except Exception as error:  # of torch's reader of pickles, for files that hold more than tensors
        what = f"{path} holds more than tensors ({first_line(error)}) and is not opened; convert it to .safetensors"
        raise BadWeights(what) from error
    if odd := [name for name in found.tensors if not name.isprintable() or len(name) > _LONGEST_NAME]:
        raise BadWeights(f"{path} holds a tensor named {odd[0][:40]!r}, which is no name of a ViT's")
    return found


def check_safetensors(path: Path) -> None:
    """Raise ValueError where the file's own length shows that it is no .safetensors, or its header a flood."""
    with open_plain(path) as opened:
        first = opened.read(8)
        size = opened.seek(0, 2)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= size - 8:
        raise ValueError(f"a header of {length:,} bytes does not fit into {size:,}")
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length:,} bytes is longer than {_MOST_HEADER:,}")


def _safetensors(path: Path) -> TensorFile:
    check_safetensors(path)
    opened: Any = safe_open(path, framework="pt")
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    found = {name: TensorInfo(tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}
    return TensorFile(path, found, opened.get_tensor)


def _zipped(path: Path) -> TensorFile:
    """A file of torch.save, whose tensors stay on the disk until they are asked for."""
    with open_plain(path) as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
        packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if len(set(names)) != len(names) or packed or len(pickles) != 1 or pickles[0].file_size > _MOST_HEADER:
            raise ValueError("it is no file as torch.save writes it")
    _check_pickle(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key in ("model", "state_dict", "teacher"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in found.items()):
        raise BadWeights(f"{path} holds no table of tensors by name")
    for name, value in found.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name} is larger than what is stored of it")
    infos = {n: TensorInfo(tuple(v.shape), _BY_DTYPE.get(v.dtype, str(v.dtype))) for n, v in found.items()}
    return TensorFile(path, infos, lambda name: found[name].detach())


def _check_pickle(pickle: bytes) -> None:
    """Raise TypeError unless the pickle makes tables of tensors by nothing else than what torch.save needs for these.

    It is read, not run. No tuple is used twice: of those, keys are built whose hash takes for ever.
    """
    before, tuples, places = "", set(), 0
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in _BUILDERS or (name == "GLOBAL" and argument not in _KNOWN):
            raise TypeError(str(argument or name))
        if name in _PUTS:
            if before in _TUPLES:
                tuples.add(places if name == "MEMOIZE" else int(argument or 0))
            places += 1
        elif name in _GETS and int(argument or 0) in tuples:
            raise TypeError("a tuple used twice")
        before = name
