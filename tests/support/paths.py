"""Where the checkout is, and what may lie beside it: real slides that are not part of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
REAL = SHARED / "slides"
