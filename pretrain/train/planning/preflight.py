"""Before a run on GPUs: whether its step can fit into their memory at all."""

from __future__ import annotations

from pretrain.train.learner import require_division
from pretrain.train.planning.assumptions import PlanAssumptions
from pretrain.train.planning.plan import changes, nearest, needed_gb
from pretrain.train.planning.simulate import Simulated, simulate
from pretrain.train.recipe.pieces import Piece, pieces
from pretrain.train.recipe.recipe import Recipe
from wsi_prep.errors import BadOption, UsageError, first_line

_CONTEXT = 0.5e9  # bytes that CUDA takes at least
_COMPILED = 0.85  # of what is counted, at least, is held by blocks that are compiled; not measured yet


def require_fit(recipe: Recipe, processes: int, memory: int) -> str:
    """Raise BadOption where a step of one of so many processes cannot fit into a GPU of `memory` bytes, in any stage.

    Returns a line where it may not fit, or where that cannot be told; else an empty one.
    """
    parts = pieces(recipe)
    for piece in parts:
        require_division(piece.recipe, processes, piece.start)
    lines = [_fit(piece, processes, memory) for piece in parts]
    return next(filter(None, lines), "")


def _fit(piece: Piece, processes: int, memory: int) -> str:
    recipe = piece.recipe
    step = f"a step from {piece.start:,} on" if piece.start else "a step"
    try:
        seen = simulate(recipe, processes)
        refusal = _refusal(piece, processes, seen, memory) if _least(recipe, seen) > memory else ""
    except UsageError:
        raise
    except Exception as error:  # of torch: a check must not stop what it only looks at
        why = first_line(error.__cause__ or error)
        return f"whether {step} fits into the GPU's memory is seen when it is tried ({why})"
    if refusal:
        raise BadOption(f"{step} {refusal}")
    needed = needed_gb(seen, PlanAssumptions())
    if needed * 1e9 > memory:
        return (
            f"{step} may not fit: by simulation it needs some {needed:.0f} GB, and this GPU has {memory / 1e9:.0f}; "
            "make plan-train shows what for"
        )
    return ""


def _least(recipe: Recipe, seen: Simulated) -> float:
    return seen.peak * (_COMPILED if recipe.compute.compile else 1.0) + _CONTEXT


def _refusal(piece: Piece, processes: int, seen: Simulated, memory: int) -> str:
    found = nearest(piece.recipe, processes, lambda other: needed_gb(other, PlanAssumptions()) * 1e9 <= memory)
    advice = "take more GPUs, or a smaller sampling.batch"
    if found is not None:
        advice = f'SET="{changes(piece.recipe, found[0], piece.start)}" fits'
    return (
        f"holds {seen.peak / 1e9:,.0f} GB by simulation, and this GPU has {memory / 1e9:,.0f}: {advice}; "
        "FORCE=1 tries it as it is"
    )
