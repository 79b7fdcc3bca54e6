"""How good features are at telling slides, by their tiles: attention, and means."""
