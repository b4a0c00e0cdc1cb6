"""Lightning callbacks: constraints, checkpoints, throughput, progress, the record of a run."""
