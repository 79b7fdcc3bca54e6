"""The output folder: its catalog, what it was made with, and questions to it."""
