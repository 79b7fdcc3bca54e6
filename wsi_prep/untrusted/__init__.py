"""What somebody else may have made, read as data: in bounds, through no link, by one rule."""
