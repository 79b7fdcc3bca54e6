"""Where the tissue is: found against the background, or given by people."""
