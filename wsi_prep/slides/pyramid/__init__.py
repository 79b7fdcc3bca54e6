"""Levels of a slide: made of finer ones, compared, and trusted as far as they agree."""
