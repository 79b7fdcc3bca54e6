"""Paths that a command writes to on a disk."""

from __future__ import annotations

import argparse
from pathlib import Path


def local_path(text: str) -> Path:
    """The path that an option names, for argparse; a URL would become a folder of that name here."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; name a file or folder on a disk")
    return Path(text)
