"""From tiles to features."""
