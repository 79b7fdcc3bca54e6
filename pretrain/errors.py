"""Errors of the trainer that a user can meet, each with one line that says what, where and what to do."""

from __future__ import annotations

from wsi_prep.errors import UsageError, WsiPrepError


class BadShards(UsageError):
    """A folder of shards is missing, empty, of another format version, or contradicts itself."""


class BadFilter(UsageError):
    """A `where` cannot be understood, or leaves nothing."""


class TooManyBadTiles(WsiPrepError, OSError):
    """More tiles cannot be read than the run tolerates."""
