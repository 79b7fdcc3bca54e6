"""What one case is: a slide on disk, what is told of it, and what may truly be said of it."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.honest.painting import Picture
from wsi_prep.run.task import PrepareSettings


@dataclass
class Case:
    """A slide and the truth about it.

    `base`: the painted slide it is made of. `told`: what was done, in words. `refusals`: regular expressions, one of
    which the reason must match where the slide is not made; none: it must be made. `must_refuse`: it must not be made.
    `warnings`: what a warning may say; one that matches none is untrue. `soft`: warnings that excuse an outline and a
    stain that are off. `scenes`: other slides in the file, one of which may be taken where a warning says that there
    are several. `mpp_known`: something in the file says how large a pixel is. `path` is the slide, `given` what is
    asked for (it or its folder), `name` what its row must say.
    """

    truth: Picture
    base: str
    told: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    must_refuse: bool = False
    warnings: list[str] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    scenes: list[Picture] = field(default_factory=list)
    mpp_known: bool = True
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    path: Path = Path()
    given: Path = Path()
    name: str = ""

    def tell(self, text: str, refusal: str = "", warning: str = "", soft: str = "") -> None:
        """Note something that is odd about the slide, and what may be said of it."""
        self.told.append(text)
        for said, where in ((refusal, self.refusals), (warning, self.warnings), (soft, self.soft)):
            if said:
                where.append(said)
        if soft:
            self.warnings.append(soft)

    def no_scale(self, text: str) -> None:
        """Nothing in the file says how large a pixel is."""
        self.mpp_known = False
        self.tell(text, r"micron-per-pixel|mpp|um/px|unit|scale", r"mpp|um/px|unit|scale")

    @property
    def words(self) -> str:
        return "; ".join(self.told) or "plain"


def pick(rng, things):
    """One of the things."""
    return things[int(rng.integers(len(things)))]


def chance(rng, share: float) -> bool:
    """True as often as `share` says."""
    return bool(rng.random() < share)
