"""From shards to a trained mixed-magnification vision transformer: index, sampler, loader, crops."""
