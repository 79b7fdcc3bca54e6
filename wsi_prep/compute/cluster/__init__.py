"""Which cluster does the work, and who gets in."""
