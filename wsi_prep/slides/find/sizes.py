"""How large slides are."""

from __future__ import annotations

from functools import partial

from wsi_prep.errors import StoreFailed
from wsi_prep.slides.fetch.remote import file_system
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.storage.patience import patiently


def source_bytes(source: SlideSource) -> int | None:
    """Bytes of all files that the slide consists of; None where one of them cannot be asked."""
    total = 0
    try:
        for path in {source.path, *source.files}:
            files, inner = file_system(path)
            total += patiently(partial(files.size, inner))
    except (OSError, TypeError, StoreFailed):  # a server of web pages need not say how long one is
        return None
    return total
