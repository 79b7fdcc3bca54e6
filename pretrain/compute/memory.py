"""Whether what is asked for fits into this machine at all."""

from __future__ import annotations

import os

from wsi_prep.errors import UsageError


def require_memory(nbytes: float, what: str, error: type[UsageError]) -> None:
    """Raise the error unless so many bytes of the machine's memory could hold `what`."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > has:
        raise error(f"{what} takes {nbytes / 1e9:,.0f} GB of memory, and this machine has {has / 1e9:,.0f}")
