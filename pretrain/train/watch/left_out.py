"""Steps whose loss or gradient was not finite: they change nothing, and a run goes on until there are too many."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LeftOut:
    """At most `most` steps may be left out in any `window` steps. `steps`: those that were, of the last window.

    Every process adds the same steps, since what is not finite in one is not finite in the sum over all.
    """

    most: int
    window: int
    steps: list[int] = field(default_factory=list)

    def add(self, step: int) -> bool:
        """One more; returns whether these are too many."""
        self.steps = [*self._recent(step), step]
        return len(self.steps) > self.most

    def last_was(self, step: int) -> bool:
        """Whether this step was left out, and none since."""
        return self.steps[-1:] == [step]

    def restore(self, saved: object, step: int) -> None:
        """Go on from step `step` with what a checkpoint says, which may say nothing."""
        self.steps = sorted(s for s in saved if type(s) is int and s < step) if isinstance(saved, list) else []
        self.steps = self._recent(step)

    def _recent(self, step: int) -> list[int]:
        return [before for before in self.steps if before > step - self.window]
