"""Where the tissue is: found against the background, or given by people."""

import importlib


def __getattr__(name: str) -> object:
    """`Glass`: the name by which scripts of others know BackgroundModel."""
    if name != "Glass":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("wsi_prep.tissue.background_model").BackgroundModel
