"""What must not be written down: ids under a secret key, the file that leads back from them, errors without names."""

from __future__ import annotations

import contextlib
import csv
import errno
import hmac
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from wsi_prep.errors import BadOption
from wsi_prep.slides.urls import bare_url, without_secrets

_ID_DIGITS, _CHECK_DIGITS, _PATIENT_DIGITS = 24, 16, 32
_HEADER = ["slide_id", "path"]
_MAX_REASON, _SHORTEST_NAME = 160, 3
_QUOTED = re.compile(
    r"""(?<!\w)b?(?:'(?:\\.|[^'\\])*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)|“[^”]*(?:”|$)|‘[^’]*(?:’|$)|`[^`']*(?:[`']|$))"""
)

_BARE_VALUE = re.compile(
    r"(Invalid (?:key|group) name:|Unrecognized image format:|Unsupported associated image format:|unknown image flavor"
    r"|Couldn't parse (?:image dimensions|focal plane indices):|tile ID|Unexpected tile join:"
    r"|photometric interpretation(?! (?:MONOCHROME[12]|PALETTE COLOR|RGB|YBR_\w+) )) .*"
)
"""What OpenSlide, and GLib with which it reads index files, says of a file's values without a quotation mark."""

_UID = re.compile(r"(?<![\w.])\d+(?:\.\d+){2,}(?![\w.]*\w)")
"""DICOM's identifiers (PS3.5, 9), and dates that look like one."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://$")
_PATH_START = re.compile(r"""(?<![^\s(\[{<:='"“‘`|,])(?:[A-Za-z0-9+]+://|/)(?=[^\s/])""")
_PATH_END = re.compile(r"""$|[:,;)\]}'"”’`]|\s|\.(?=\s|$)""")
_NOT_THERE = os.strerror(errno.ENOENT)
_SYSTEM_WORDS = [f": {os.strerror(number)}" for number in errno.errorcode]


def keyed_slide_id(key: bytes, identity: str) -> str:
    """A slide's id, 24 hex digits, that nobody without the key can check a guessed path against."""
    return _keyed(key, b"slide\0", identity)[:_ID_DIGITS]


def keyed_patient(key: bytes, patient: str) -> str:
    """A patient's id as 32 hex digits that tell nothing without the key."""
    return _keyed(key, b"", patient)[:_PATIENT_DIGITS]


def key_check(key: bytes) -> str:
    """A mark by which a key is known again, and from which it cannot be had."""
    return _keyed(key, b"check\0", "")[:_CHECK_DIGITS]


def _keyed(key: bytes, domain: bytes, text: str) -> str:
    """HMAC-SHA-256 (RFC 2104). A domain ends in NUL, which no patient's id holds: one key serves all purposes."""
    return hmac.new(key, domain + os.fsencode(text), "sha256").hexdigest()


def check_names_file(names: Path, out: Path | None) -> None:
    """Raise BadOption for a names file that holds something else, cannot be written, or would lie inside the output."""
    if out is not None and Path(os.path.realpath(names)).is_relative_to(os.path.realpath(out)):
        raise BadOption(f"NAMES {names} lies inside OUT, which is given away; name a file outside of {out}")
    _read_names(names)
    folder = Path(os.path.realpath(names)).parent
    if not os.access(folder, os.W_OK):
        why = os.strerror(errno.EACCES if folder.is_dir() else errno.ENOENT)
        raise BadOption(f"NAMES {names} cannot be written ({why})")


def add_names(names: Path, paths: Mapping[str, str]) -> None:
    """Add slides' ids and paths to the names file, which only its owner may read; what it lists already stays."""
    before = _read_names(names)
    after = {**before, **paths}
    if after != before:
        _write_names(names, after)


def drop_names(names: Path, forgotten: Callable[[str], bool]) -> int:
    """Take the lines of slides whose id is `forgotten` out of the names file; returns how many there were."""
    before = _read_names(names)
    after = {slide_id: path for slide_id, path in before.items() if not forgotten(slide_id)}
    if after != before:
        _write_names(names, after)
    return len(before) - len(after)


def _write_names(names: Path, after: Mapping[str, str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *after.items()])
    target = Path(os.path.realpath(names))
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.fsencode(text.getvalue()))
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BadOption(f"NAMES {names} cannot be written ({error.strerror})") from error


def _read_names(names: Path) -> dict[str, str]:
    try:
        text = os.fsdecode(names.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadOption(f"NAMES {names} cannot be read ({error.strerror})") from error
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows[:1] != [_HEADER] or any(len(row) != len(_HEADER) for row in rows):
        raise BadOption(f"NAMES {names} holds something else than {','.join(_HEADER)}; name another file")
    return dict(rows[1:])


def reason(error: BaseException, path: str) -> str:
    """A library's error as one line: its type, and its text as `bare_text` leaves it."""
    text = bare_text(error, path)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def bare_text(error: BaseException, path: str) -> str:
    """A library's error in one line, without what it quotes and without paths, UIDs, and names of the slide's folder.

    Libraries quote what they could not parse, which may be any tag of the file, and they name files in full. What is
    said after the name of a file stays where it is known where that name ends.
    """
    inner = PurePosixPath(bare_url(path).rpartition("://")[2])
    folder = _one_line(inner.parent)
    text = _one_line(without_secrets(str(error), path))
    text = _without_known_paths(text, _one_line(inner), folder)
    text = _one_line(_QUOTED.sub("...", text))
    text = _without_other_paths(text, folder)
    text = _BARE_VALUE.sub(r"\1 ...", text)
    for word in (_one_line(inner.name), _one_line(inner.stem)):
        text = _without_word(text, word, re.IGNORECASE)
    for word in _names_around(inner):
        text = _without_word(text, word)
    return _UID.sub("...", text)[:_MAX_REASON]


def _without_known_paths(text: str, own: str, folder: str) -> str:
    """Without paths of the slide and of files that are there in its folder: where such a path ends is certain."""
    if text.endswith(_NOT_THERE):
        return text
    at = text.find(f"{folder}/") if len(folder) > 1 else -1
    while at >= 0:
        ends = [end for end in _ends(text[at:]) if _is_file(text[at : at + end], own)]
        if ends:
            text = f"{_SCHEME.sub('', text[:at])}...{text[at + max(ends) :]}"
        at = text.find(f"{folder}/", at + (0 if ends else len(folder)))
    return text


def _is_file(path: str, own: str) -> bool:
    return path == own or (os.path.lexists(path) and not os.path.isdir(path))  # noqa: PTH112 - it raises nothing


def _ends(text: str) -> Iterator[int]:
    """Where a path with which the text begins may end; a space is an end after a name that has an ending."""
    for match in _PATH_END.finditer(text):
        if not match[0].isspace() or PurePosixPath(text[: match.start()]).suffix:
            yield match.start()


def _without_other_paths(text: str, folder: str) -> str:
    """Without any other path: nobody knows where it ends, so of what follows only the system's own words stay."""
    starts = [match.start() for match in _PATH_START.finditer(text)]
    if len(folder) > 1 and folder in text:
        starts.append(text.index(folder))
    if not starts:
        return text
    said = max((words for words in _SYSTEM_WORDS if text.endswith(words)), key=len, default="")
    return f"{text[: min(starts)]}...{said}"


def _names_around(path: PurePosixPath) -> Iterator[str]:
    """Names of the slide's folders and of what lies beside it, but for those that a library may use as a word."""
    yield _one_line(path.parent.name)
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [file.name for file in Path(path.parent).iterdir()] if path.is_absolute() else []
    for name in (*path.parts, *beside, *(PurePosixPath(name).stem for name in beside)):
        if not (name.isalpha() and name.islower()):
            yield _one_line(name)


def _without_word(text: str, word: str, flags: int = 0) -> str:
    if len(word) < _SHORTEST_NAME or (word not in text and not flags):
        return text
    return re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "...", text, flags=flags)


def _one_line(text: object) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))
