"""Whether a store is what it says, file by file and slide by slide."""
