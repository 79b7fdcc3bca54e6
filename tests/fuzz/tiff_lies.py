"""Ways to break a TIFF: its own small parser finds where each tag says what, and the lies are written over it."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NASTY = (0, 1, 2, 15, 255, 65_535, 65_536, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
WIDTH, LENGTH, BITS, COMPRESSION, DESCRIPTION, SAMPLES, TILE_WIDTH, TILE_LENGTH = 256, 257, 258, 259, 270, 277, 322, 323
OFFSETS, COUNTS, SUB_IFDS, TABLES = (324, 273), (325, 279), 330, 347


@dataclass(frozen=True)
class Entry:
    """A tag: where its entry stands, and where its value does."""

    at: int
    tag: int
    kind: int
    count: int
    value_at: int


@dataclass(frozen=True)
class Directory:
    """An IFD: its place, its entries, and where the pointer to the next one stands."""

    at: int
    entries: tuple[Entry, ...]
    next_at: int


class Layout:
    """Where everything is in a sound TIFF, classic or big, either byte order."""

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self.number = "Q" if self.big else "I"
        self.first_at = 8 if self.big else 4
        self.directories: list[Directory] = []
        at, seen = self.read(data, self.first_at), {0}
        while at not in seen:
            seen.add(at)
            self.directories.append(self._directory(data, at))
            at = self.read(data, self.directories[-1].next_at)

    def read(self, data: bytes, at: int) -> int:
        return struct.unpack_from(self.order + self.number, data, at)[0]

    def write(self, data: bytearray, at: int, value: int, code: str | None = None) -> None:
        code = code or self.number
        size = struct.calcsize(code)
        struct.pack_into(self.order + code, data, at, value % 256**size)

    def _directory(self, data: bytes, at: int) -> Directory:
        counter, width = ("Q", 20) if self.big else ("H", 12)
        count = struct.unpack_from(self.order + counter, data, at)[0]
        begin = at + struct.calcsize(counter)
        return Directory(at, tuple(self._entry(data, begin + width * n) for n in range(count)), begin + width * count)

    def _entry(self, data: bytes, at: int) -> Entry:
        tag, kind, count = struct.unpack_from(self.order + "HH" + self.number, data, at)
        value_at, room = (at + 12, 8) if self.big else (at + 8, 4)
        if SIZES.get(kind, 1) * count > room:
            value_at = self.read(data, value_at)
        return Entry(at, tag, kind, count, value_at)

    def find(self, *tags: int) -> list[Entry]:
        return [entry for directory in self.directories for entry in directory.entries if entry.tag in tags]


def _pick(rng, things):
    return things[int(rng.integers(len(things)))]


def lie_of_a_value(rng, data, layout):
    entry = _pick(rng, _pick(rng, layout.directories).entries)
    code = {2: "H", 4: "I", 8: "Q"}.get(SIZES.get(entry.kind, 4), "B")
    value = _pick(rng, NASTY)
    layout.write(data, entry.value_at, value, code)
    return f"tag {entry.tag} is {value}"


def lie_of_a_count(rng, data, layout):
    entry, value = _pick(rng, _pick(rng, layout.directories).entries), _pick(rng, NASTY)
    layout.write(data, entry.at + 4, value)
    return f"tag {entry.tag} has {value} values"


def lie_of_a_place(rng, data, layout):
    entry = _pick(rng, _pick(rng, layout.directories).entries)
    value = _pick(rng, (*NASTY, len(data), len(data) - 1, entry.at, layout.directories[0].at))
    layout.write(data, entry.at + (12 if layout.big else 8), value)
    return f"tag {entry.tag} lies at {value}"


def lie_of_a_kind(rng, data, layout):
    entry, kind = _pick(rng, _pick(rng, layout.directories).entries), int(rng.integers(0, 20))
    layout.write(data, entry.at + 2, kind, "H")
    return f"tag {entry.tag} is of type {kind}"


def lie_of_a_tag(rng, data, layout):
    entry = _pick(rng, _pick(rng, layout.directories).entries)
    other = _pick(rng, (254, 256, 257, 262, 273, 277, 279, 284, 317, 322, 324, SUB_IFDS, TABLES, 530, 34675, 65420))
    layout.write(data, entry.at, other, "H")
    return f"tag {entry.tag} is called {other}"


def lie_of_dimensions(rng, data, layout):
    told = []
    tags = [(WIDTH, LENGTH), (TILE_WIDTH, TILE_LENGTH), (SAMPLES,), (BITS,), (COMPRESSION,)]
    for tag in _pick(rng, tags):
        for entry in layout.find(tag)[:1]:
            code = "I" if SIZES.get(entry.kind) == 4 else "H"
            value = _pick(rng, (0, 1, 3, 7, 16, 48, 4096, 20_000, 60_000, 65_535, 2**20, 10**6, 2**31 - 1, 2**32 - 1))
            layout.write(data, entry.value_at, value, code)
            told.append(f"{tag} is {value}")
    return "dimensions: " + ", ".join(told)


def loop_of_directories(rng, data, layout):
    directory = _pick(rng, layout.directories)
    target = _pick(rng, (directory.at, layout.directories[0].at, 0, 1, 8, len(data) - 3, len(data) * 2, 2**64 - 8))
    layout.write(data, directory.next_at, target)
    return f"the directory at {directory.at} is followed by the one at {target}"


def loop_of_sub_directories(rng, data, layout):
    directory = _pick(rng, layout.directories)
    entry = _pick(rng, directory.entries)
    layout.write(data, entry.at, SUB_IFDS, "H")
    layout.write(data, entry.at + 2, 16 if layout.big else 4, "H")
    layout.write(data, entry.at + 4, 1)
    layout.write(data, entry.at + (12 if layout.big else 8), directory.at)
    return f"the directory at {directory.at} lies in itself"


def chain_of_directories(rng, data, layout):
    """Thousands of directories, each a copy of the last; the loop at the end is far."""
    last = layout.directories[-1]
    body = bytes(data[last.at : last.next_at])
    step = len(body) + struct.calcsize(layout.number)
    count = int(_pick(rng, (1000, 20_000, 200_000)))
    count = min(count, 60_000_000 // step)
    begin = len(data)
    layout.write(data, last.next_at, begin)
    ends = np.arange(1, count + 1, dtype=np.uint64) * step + begin
    ends[-1] = last.at
    pointers = ends.astype(layout.order + ("u8" if layout.big else "u4")).view(np.uint8).reshape(count, -1)
    data += np.concatenate([np.tile(np.frombuffer(body, np.uint8), (count, 1)), pointers], axis=1).tobytes()
    return f"{count} directories more"


def lie_of_tiles(rng, data, layout):
    """Places and lengths of tiles: some, or all of them."""
    which = _pick(rng, (OFFSETS, COUNTS))
    found = layout.find(*which)
    if not found:
        return lie_of_a_value(rng, data, layout)
    entry = _pick(rng, found)
    size = SIZES[entry.kind]
    code = {2: "H", 4: "I", 8: "Q"}[size]
    value = _pick(rng, (*NASTY, len(data) - 5, 100_000_000))
    places = range(entry.count) if rng.random() < 0.4 else [int(rng.integers(entry.count))]
    for place in places:
        layout.write(data, entry.value_at + place * size, value, code)
    return f"{len(places)} values of tag {entry.tag} are {value}"


def lie_in_a_description(rng, data, layout):
    texts = [e for e in layout.find(DESCRIPTION) if e.count > 40]
    if not texts:
        return lie_of_a_value(rng, data, layout)
    entry = _pick(rng, texts)
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'
    whole = bytes(data[entry.value_at : entry.value_at + entry.count])
    lies = (
        whole.replace(b"0.5", _pick(rng, (b"nan", b"1e9", b"-.5", b"inf", b"0.0", b"1/0"))),
        whole.replace(b"MPP", b"MPQ").replace(b"900", b"999"),
        whole.replace(b"|", b"\0"),
        whole.replace(b" = ", b"==="),
        rng.integers(0, 256, entry.count, dtype=np.uint8).tobytes(),
        whole.replace(b'<?xml version="1.0"?>', bomb + b"&c;")[: entry.count],
        b"<" * entry.count,
        (b'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">' + b"<Image>" * 10_000)[: entry.count],
        whole.replace(b'IFD="0"', b'IFD="9"').replace(b'SizeC="3"', b'SizeC="9"'),
        whole.replace(b'SizeZ="1"', b'SizeZ="9"').replace(b'SizeX="900"', b'SizeX="1e9"'),
    )
    number = int(rng.integers(len(lies)))
    text = lies[number].ljust(entry.count, b" ")[: entry.count]
    data[entry.value_at : entry.value_at + entry.count] = text
    return f"description {number}"


def bomb_in_a_tile(rng, data, layout):
    """Every tile is one that decompresses to half a gigabyte, if it is let; by tag, JPEG or JPEG 2000 header."""
    if not layout.find(*OFFSETS):
        return lie_of_a_value(rng, data, layout)
    compression = layout.find(COMPRESSION)[0]
    kind = int(_pick(rng, (8, 5, 50_000, 34_712, 7)))
    data_of_tile = payload(kind)
    layout.write(data, compression.value_at, kind, "H")
    begin = len(data)
    data += data_of_tile
    for entries, value in ((layout.find(*OFFSETS)[:1], begin), (layout.find(*COUNTS)[:1], len(data_of_tile))):
        for entry in entries:
            size = SIZES[entry.kind]
            for place in range(entry.count):
                layout.write(data, entry.value_at + place * size, value, {2: "H", 4: "I", 8: "Q"}[size])
    return f"a bomb of compression {kind} in every tile"


_made: dict[int, bytes] = {}


def payload(kind: int) -> bytes:
    import imagecodecs

    if kind not in _made:
        if kind == 8:
            squeeze = zlib.compressobj(9)
            chunks = [squeeze.compress(bytes(2**24)) for _ in range(64)]
            _made[kind] = b"".join(chunks) + squeeze.flush()
        elif kind == 5:
            _made[kind] = imagecodecs.lzw_encode(bytes(2**28))
        elif kind == 50_000:
            _made[kind] = imagecodecs.zstd_encode(bytes(2**30))
        else:
            flat = np.zeros((64, 64, 3), np.uint8)
            whole = bytearray(
                imagecodecs.jpeg2k_encode(flat, codecformat="j2k") if kind == 34_712 else imagecodecs.jpeg8_encode(flat)
            )
            if kind == 34_712:  # SIZ: image and tile of 30,000 x 30,000
                for at in (8, 12, 24, 28):
                    struct.pack_into(">I", whole, at, 30_000)
            else:  # SOF0: 65,500 x 65,500
                struct.pack_into(">HH", whole, whole.index(b"\xff\xc0") + 5, 65_500, 65_500)
            _made[kind] = bytes(whole)
    return _made[kind]


LIES = (
    lie_of_a_value,
    lie_of_a_count,
    lie_of_a_place,
    lie_of_a_kind,
    lie_of_a_tag,
    lie_of_dimensions,
    lie_of_dimensions,
    loop_of_directories,
    loop_of_sub_directories,
    chain_of_directories,
    lie_of_tiles,
    lie_of_tiles,
    lie_in_a_description,
    bomb_in_a_tile,
)
"""Each takes a generator, the file as a bytearray to change, and its Layout; returns what it did in words."""
