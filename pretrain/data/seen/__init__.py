"""What labelled tiles share with the tiles that a model saw."""
