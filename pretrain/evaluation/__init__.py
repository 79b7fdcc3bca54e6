"""How good features are: tasks, probes, scores, report."""
