"""The commands that a person or the Makefile calls, one short file each."""
