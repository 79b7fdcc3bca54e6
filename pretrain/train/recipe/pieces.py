"""A run as pieces, each of one recipe: what is computed before its first stage, and in each of them."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.train.recipe.overrides import at_step
from pretrain.train.recipe.recipe import Recipe, differences, flat


@dataclass(frozen=True)
class Piece:
    """Steps `start` up to `stop` of a run, by a `recipe` without stages."""

    start: int
    stop: int
    recipe: Recipe


def pieces(recipe: Recipe) -> list[Piece]:
    """In order; one where there are no stages. Raises BadOption."""
    starts = [0, *(stage.start for stage in recipe.stages)]
    stops = [*starts[1:], recipe.schedule.steps]
    return [Piece(start, stop, at_step(recipe, start)) for start, stop in zip(starts, stops, strict=True)]


def piece_at(recipe: Recipe, step: int) -> Piece:
    """The one that a step is in, or the last for a step beyond."""
    return next((piece for piece in pieces(recipe) if piece.start <= step < piece.stop), pieces(recipe)[-1])


def tiles_drawn(recipe: Recipe, steps: int) -> int:
    """Of all batches in the first so many steps."""
    return sum(max(0, min(piece.stop, steps) - piece.start) * piece.recipe.sampling.batch for piece in pieces(recipe))


def said(recipe: Recipe, start: int) -> str:
    """What changes at a stage's first step, for people."""
    before, now = at_step(recipe, start - 1), at_step(recipe, start)
    free = [
        f"{name}: {flat(before)[name]} -> {value}"
        for name, value in flat(now).items()
        if name.startswith("compute.") and flat(before)[name] != value
    ]
    return f"from step {start:,} on: {', '.join([*differences(now, before), *free])}"
