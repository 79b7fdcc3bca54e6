"""Ways to break any slide, and those of DICOM and MIRAX in particular. All is decided by one seed."""

import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.fuzz.tiff_lies import LIES, NASTY, Layout

LARGE = 200_000_000  # bytes
_UID_DEFLATED = b"1.2.840.10008.1.2.1.99"


def break_slide(seed: int, corpus: list[Path], folder: Path) -> tuple[Path, str]:
    """Copy a slide of the corpus with all its files into `folder`, and break it; returns its path and what was done."""
    rng = np.random.default_rng(seed)
    original = corpus[int(rng.integers(len(corpus)))]
    shutil.copytree(original.parent, folder)
    path = folder / original.name
    ways = {".mrxs": (_mirax,) * 4, ".dcm": (_dicom,) * 4}.get(path.suffix, (_tiff,) * 6)
    told = []
    for _ in range(int(rng.choice((1, 1, 1, 2)))):
        if path.exists() and path.stat().st_size > LARGE:
            break
        way = _pick(rng, (*ways, _cut, _flip, _flip, _blank, _other_content))
        told.append(way(rng, path))
    return path, f"{original.parent.name}: {'; '.join(told)}"


def _pick(rng, things):
    return things[int(rng.integers(len(things)))]


def _some_file(rng, path):
    """The slide's file, or one beside it."""
    return _pick(rng, sorted(p for p in path.parent.rglob("*") if p.is_file()))


def _cut(rng, path):
    file = _some_file(rng, path)
    size = file.stat().st_size
    length = int(_pick(rng, (0, 1, 7, 100, size - 1, size * rng.random(), size * rng.random())))
    os.truncate(file, max(0, length))
    return f"cut to {length} of {size} bytes"


def _flip(rng, path):
    file = _some_file(rng, path)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    if not len(data):
        return "nothing to flip"
    count = int(_pick(rng, (1, 8, 64, 512)))
    reach = _pick(rng, (64, 4096, len(data)))
    places = rng.integers(0, min(reach, len(data)), count)
    if rng.random() < 0.4:
        places = len(data) - 1 - places
    data[places] ^= np.left_shift(1, rng.integers(0, 8, count)).astype(np.uint8)
    file.write_bytes(data.tobytes())
    return f"{count} bits within {reach} bytes"


def _blank(rng, path):
    file = _some_file(rng, path)
    data = bytearray(file.read_bytes())
    begin, length = int(rng.random() * len(data)), int(_pick(rng, (16, 1000, 100_000)))
    data[begin : begin + length] = bytes(_pick(rng, (b"\0", b"\xff"))) * len(data[begin : begin + length])
    file.write_bytes(data)
    return f"{length} bytes blank at {begin}"


def _other_content(rng, path):
    contents = {
        "nothing": b"",
        "text": b"dear colleague,\n" * 100,
        "noise": rng.integers(0, 256, 50_000, dtype=np.uint8).tobytes(),
        "a TIFF header alone": b"II*\0\x08\0\0\0",
        "a directory of 65,535 tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
        "a big directory of 2^60 tags": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + struct.pack("<Q", 2**60) + bytes(1000),
        "a zip": b"PK\x03\x04" + bytes(1000),
        "a DICOM preamble": bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0\xff\xff\xff\xff",
    }
    name = _pick(rng, sorted(contents))
    path.write_bytes(contents[name])
    if rng.random() < 0.2:
        os.truncate(path, 20 * 2**30)
        name += ", then 20 GiB of holes"
    return f"holds {name}"


def _tiff(rng, path):
    data = bytearray(path.read_bytes())
    try:
        layout = Layout(data)
        told = _pick(rng, LIES)(rng, data, layout)
    except (struct.error, IndexError, ValueError, OverflowError):  # broken once before
        return _flip(rng, path)
    path.write_bytes(data)
    return told


_LONG = {b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"UC", b"UR", b"OD", b"OL", b"OV", b"SV", b"UV"}


def _elements(data: bytes) -> list[tuple[int, bytes, int, int]]:
    """(place of the length, VR, width of the length, place of the value) of the top elements, in explicit VRs."""
    found, at = [], 132
    while at + 8 <= len(data):
        vr = data[at + 4 : at + 6]
        wide = vr in _LONG
        length_at = at + (8 if wide else 6)
        length = int.from_bytes(data[length_at : length_at + (4 if wide else 2)], "little")
        value_at = length_at + (4 if wide else 2)
        found.append((length_at, vr, 4 if wide else 2, value_at))
        if length == 0xFFFFFFFF:
            end = data.find(b"\xfe\xff\xdd\xe0", value_at)
            if end < 0:
                break
            at = end + 8
        else:
            at = value_at + length
    return found


def _dicom(rng, path):
    file = _pick(rng, sorted(path.parent.glob("*.dcm")))
    data = bytearray(file.read_bytes())
    elements = _elements(bytes(data))
    way = int(rng.integers(5))
    if not elements or len(data) < 200:
        return _flip(rng, path)
    length_at, vr, width, value_at = _pick(rng, elements)
    if way == 0:
        value = _pick(rng, NASTY) % 256**width
        data[length_at : length_at + width] = value.to_bytes(width, "little")
        told = f"an element {vr} of {value} bytes"
    elif way == 1:
        numbers = [e for e in elements if e[1] in (b"US", b"UL", b"IS", b"DS", b"FD", b"FL")]
        length_at, vr, width, value_at = _pick(rng, numbers or elements)
        value = _pick(rng, NASTY)
        size = {b"US": 2, b"UL": 4}.get(vr)
        length = int.from_bytes(data[length_at : length_at + width], "little")
        text = value.to_bytes(8, "little")[:size] if size else str(value).encode()
        data[value_at : value_at + len(text[:length])] = text[:length]
        told = f"an element {vr} is {value}"
    elif way == 2:
        depth = int(_pick(rng, (100, 5000, 200_000)))
        nest = b"\x48\0\x05\x01SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * depth
        data[elements[-1][0] - 8 : elements[-1][0] - 8] = nest
        told = f"sequences {depth} deep"
    elif way == 3:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = b"".join(squeeze.compress(bytes(2**24)) for _ in range(120)) + squeeze.flush()
        uid = _UID_DEFLATED
        meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
        data[:] = bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta)) + meta + body
        told = "deflated, 2 GB of it"
    else:
        count = int(_pick(rng, (1000, 300_000)))
        data[elements[-1][0] - 8 : elements[-1][0] - 8] = b"\x09\0\x10\0LO\x02\0xx" * count
        told = f"{count} elements more"
    file.write_bytes(data)
    return told


def _mirax(rng, path):
    folder = path.with_suffix("")
    ini, index = folder / "Slidedat.ini", folder / "Index.dat"
    if not (ini.is_file() and index.is_file()):  # broken once before
        return _cut(rng, path)
    way = int(rng.integers(6))
    if way <= 2:
        lines = ini.read_bytes().decode("latin-1").split("\n")
        keyed = [number for number, line in enumerate(lines) if "=" in line]
        number = _pick(rng, keyed or [0])
        names = ("../../../../etc/passwd", "/dev/zero", "x" * 100_000, "nan", "-1", "1e400", "0,5", "%s%s%n", "")
        value = str(_pick(rng, (*NASTY, 10**5, 30_000, *names)))
        lines[number] = re.sub(r"=.*", lambda _: f"= {value}", lines[number])
        told = f"{lines[number][:80]!r}"
        if way == 2:
            lines[number : number + 1] = [] if rng.random() < 0.5 else [lines[number]] * int(_pick(rng, (2, 50_000)))
            told = f"{told}, gone or many times"
        ini.write_bytes("\n".join(lines).encode("latin-1"))
    elif way <= 4:
        data = bytearray(index.read_bytes())
        if len(data) < 40:
            return _flip(rng, path)
        at = int(rng.integers(21, min(len(data) - 4, 21 + int(_pick(rng, (40, 100_000))))))
        value = int(_pick(rng, (*NASTY, 37, 41, 45, 49, len(data))))
        struct.pack_into("<I", data, at, value % 2**32)
        index.write_bytes(data)
        told = f"the index has {value} at {at}"
    else:
        file = _pick(rng, sorted(p for p in folder.iterdir() if p.is_file()))
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
        told = f"{file.name} is gone, or a folder"
    return told
