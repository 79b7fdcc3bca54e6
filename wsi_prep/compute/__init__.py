"""The cluster and a worker's own means: threads, memory, versions, time limit, compiled loops."""
