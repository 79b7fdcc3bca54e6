"""A folder for what others must neither read nor put in place of ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wsi_prep.errors import BadOption


def own_folder(parent: Path) -> Path:
    """The folder below `parent` that this user alone may enter, made if need be; the same one each time.

    Raises BadOption where somebody else has taken its name, or none can be made.
    """
    folder = parent / f"wsi-prep-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise BadOption(f"{folder} cannot be made ({error.strerror}); set TMPDIR to a folder of yours") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BadOption(f"{folder} is not closed to others; set TMPDIR to a folder of yours")
    return folder
