"""What a model sees of a tile: crops, colours, masks."""
