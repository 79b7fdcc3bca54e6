"""Errors of the trainer that a user can meet, each with one line that says what, where and what to do."""

from __future__ import annotations

from wsi_prep.errors import BadTask as BadTask  # noqa: PLC0414 - the slide stage raises it too
from wsi_prep.errors import UsageError, WsiPrepError


class BadShards(UsageError):
    """A folder of shards is missing, empty, of another format version, or contradicts itself."""


class BadFilter(UsageError):
    """A `where` cannot be understood, or leaves nothing."""


class TooManyBadTiles(WsiPrepError, OSError):
    """More tiles cannot be read than the run tolerates."""


class BadRun(UsageError):
    """A RUN folder holds something that this call cannot go on with."""


class BadWeights(UsageError):
    """A file of weights cannot be read, or does not fit the recipe's backbone."""


class OtherFeatures(UsageError):
    """A folder of features holds those of another model, size or filter."""


class CheckpointFailed(WsiPrepError, OSError):
    """A checkpoint cannot be written."""


class NonFinite(WsiPrepError, FloatingPointError):
    """A loss or gradient is not finite more often than allowed; the updates were skipped and the run stops."""


class SimulationFailed(WsiPrepError, RuntimeError):
    """The simulation of a step ended by an error of torch, which no refusal of ours foresaw: there is no plan."""


class ProcessDied(WsiPrepError, OSError):
    """One of several processes that train together was ended from outside, as where memory runs out."""
