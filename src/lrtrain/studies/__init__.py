"""Studies of many runs: what a run will take, sweeps, scaling laws, experiments, and runs beside each other."""
