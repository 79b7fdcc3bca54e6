"""Every error that a user can meet, each with one line that says what, where and what to do.

A `UsageError` ends the call with exit code 2 before anything is changed. A `SlideError` concerns one slide: it becomes
that slide's row in the catalog (its `status` says which kind) and the run goes on.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class WsiPrepError(Exception):
    """Base of all errors of this package. Its text is one line, meant for the user."""


class UsageError(WsiPrepError, ValueError):
    """The call itself is wrong: a bad option, a missing path, a manifest that cannot be understood.

    >>> raise BadOption("--workers 0 is no whole number of at least 1")
    Traceback (most recent call last):
        ...
    wsi_prep.errors.BadOption: --workers 0 is no whole number of at least 1
    """


class BadOption(UsageError):
    """An option or setting has a value that is not allowed."""


class BadManifest(UsageError):
    """The manifest, or a list of slides, cannot be used as it is."""


class NoSlides(UsageError):
    """What was named holds no slide."""


class BadOutput(UsageError, OSError):
    """The output folder cannot be written, or holds something that this run must not touch."""


class OutputInUse(BadOutput):
    """A run is at work in the output folder."""


class BadCatalog(UsageError):
    """A folder of shards has no catalog, an empty one, or one that cannot be read."""


class OtherConfiguration(BadOutput):
    """The output folder was made with other settings."""


class BadTask(UsageError):
    """A table of labelled tiles cannot be used to judge on."""


class StoreFailed(UsageError):
    """An object store, asked again and again, does not do what is asked of it."""


class FileServerFailed(StoreFailed):
    """A file server, asked again and again, gives errors that pass as a rule (EIO, ESTALE, ...)."""


class BadQuery(UsageError):
    """A question to the catalog cannot be understood, or asks for more than the catalog's rows."""


class WrongVersions(UsageError):
    """A machine of the cluster has other versions than this one, and would make other tiles or none."""


class ClusterLost(WsiPrepError, ConnectionError):
    """The scheduler, or all of SLURM's jobs, went away in the middle of the work; what is done is kept."""


class BadStainModel(WsiPrepError, ValueError):
    """The stain classifier's weights are missing, or do not fit this version of its features."""


class RunReplaced(WsiPrepError, RuntimeError):
    """Another run has taken the output folder over; what this one was doing is abandoned."""


class SlideError(WsiPrepError):
    """One slide cannot be used. `status` is what the catalog row will say."""

    status: ClassVar[str] = "failed"


class UnreadableSlide(SlideError, OSError):
    """The file is no slide that a reader understands, or cannot be opened."""


class DamagedSlide(SlideError, OSError):
    """The file opens, but some of its pixels cannot be decoded."""


class SlideChanged(SlideError, OSError):
    """The slide's files were changed while they were read."""


class BadMask(SlideError, ValueError):
    """The tissue mask that was given for the slide cannot be used."""


class TimedOut(SlideError, TimeoutError):
    """The slide took longer than its time limit."""


class WriteFailed(SlideError, OSError):
    """A slide's output could not be written (disk full, no permission)."""


class NoRoom(SlideError, OSError):
    """A copy of the slide does not fit where workers keep them."""


class SlideExcluded(SlideError):
    """The slide is sound, but policy keeps it out."""

    status = "excluded"


class MissingMpp(SlideExcluded, ValueError):
    """Nothing says how many micrometres a pixel covers."""


class ImplausibleMpp(SlideExcluded, ValueError):
    """A micron-per-pixel value is not a number between the plausible limits."""


class TooCoarse(SlideExcluded):
    """The slide's pixels are coarser than the coarsest magnification."""


class NotBrightField(SlideExcluded):
    """The slide is not a bright-field image (fluorescence, dark field)."""


class Forgotten(SlideExcluded):
    """The slide, or all of its patient's, was deleted on request and is not to come back."""


def refusal(error: OSError) -> str:
    """Why the system refuses to write, for people: what is unlike a full disk is not taken for one."""
    if error.errno == errno.EDQUOT:
        return f"{error.strerror}: yours, your group's or the project's; free some space there or ask for more"
    return error.strerror or " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, for people; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, most: int = 200) -> str:
    """All that an error of a library says, in one line of at most so many letters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def counted(number: int, one: str, several: str = "") -> str:
    """A count with its noun (and verb, if given) in the right number, for people.

    >>> counted(1, "slide"), counted(2048, "tile"), counted(0, "slide has", "slides have")
    ('1 slide', '2,048 tiles', '0 slides have')
    """
    return f"{number:,} {one if number == 1 else several or one + 's'}"
