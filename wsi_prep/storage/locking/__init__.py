"""How an output is held against a second run, and by whom."""
