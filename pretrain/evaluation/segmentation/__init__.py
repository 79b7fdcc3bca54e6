"""How good patch tokens are at telling the class of each pixel."""
