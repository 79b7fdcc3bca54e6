"""Where the tissue is: found against the background, or given by people."""


def __getattr__(name: str) -> object:
    if name != "Glass":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsi_prep.tissue.background_model import BackgroundModel  # the name that scripts of others know it by

    return BackgroundModel
