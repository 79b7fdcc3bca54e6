"""Files of models and runs, written whole and read as data."""
