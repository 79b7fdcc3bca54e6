"""How much features keep of the hospital: neighbours, confounded probes, and how well the site is read."""
