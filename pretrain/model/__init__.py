"""The vision transformer, its heads and its weights."""
