"""Thrift's compact protocol as trees to change: a struct is {field: (type, value)}, a list (type, values)."""

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 7, 8, 9, 12
I32, I64 = 5, 6
_NUMBERS = (4, I32, I64)
_FIXED = {BYTE: 1, DOUBLE: 8}


def read_struct(data, at=0):
    """The struct that begins there, and where it ends."""
    found, field = {}, 0
    while head := data[at]:
        kind, step, at = head & 15, head >> 4, at + 1
        if step:
            field += step
        else:
            field, at = _signed(data, at)
        value, at = _read(data, at, kind)
        found[field] = kind, value
    return found, at + 1


def write_struct(fields):
    """Bytes of such a struct; a field that is there as a list of pairs is written for each."""
    data = bytearray()
    for field, (kind, value) in fields.items() if isinstance(fields, dict) else fields:
        data += bytes([kind]) + _zigzag(field) + _written(kind, value)
    return bytes(data) + b"\0"


def footer_of(data):
    """What stands before a Parquet file's footer, and the footer."""
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:begin], read_struct(data, begin)[0]


def parquet(body, footer):
    """The file of both."""
    written = write_struct(footer)
    return body + written + len(written).to_bytes(4, "little") + b"PAR1"


def _read(data, at, kind):
    if kind in (TRUE, FALSE):
        return None, at
    if kind in _FIXED:
        return data[at : at + _FIXED[kind]], at + _FIXED[kind]
    if kind in _NUMBERS:
        return _signed(data, at)
    if kind == BINARY:
        length, at = _plain(data, at)
        return data[at : at + length], at + length
    if kind == STRUCT:
        return read_struct(data, at)
    head, at = data[at], at + 1
    count, of = head >> 4, head & 15
    if count == 15:
        count, at = _plain(data, at)
    values = []
    for _ in range(count):
        value, at = (data[at], at + 1) if of in (TRUE, FALSE) else _read(data, at, of)
        values.append(value)
    return (of, values), at


def _written(kind, value):
    if kind in (TRUE, FALSE):
        return b""
    if kind in _FIXED:
        return value
    if kind in _NUMBERS:
        return _zigzag(value)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind == STRUCT:
        return write_struct(value)
    of, values = value
    head = bytes([0xF0 | of]) + _varint(len(values))
    return head + b"".join(bytes([each]) if of in (TRUE, FALSE) else _written(of, each) for each in values)


def _plain(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _signed(data, at):
    value, at = _plain(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(value):
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _zigzag(value):
    return _varint(value * 2 if value >= 0 else -2 * value - 1)
