"""Loops over pixels, compiled by numba where no library does the same at speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compile_loop(loop: Callable[..., None], *, reorder: bool = False) -> Callable[..., None]:
    """`loop` compiled when it is first called on a machine, and kept beside its file; it runs without the GIL.

    `reorder`: floating-point sums may be added up in another order, as vector instructions do it.
    """
    import numba  # noqa: PLC0415 - half a second

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if reorder:
        options["fastmath"] = {"reassoc", "nsz", "contract"}
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder to keep it in
        compiled = numba.njit(**options)(loop)
    return compiled
