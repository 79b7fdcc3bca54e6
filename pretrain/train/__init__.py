"""One training run, from recipe to export."""
