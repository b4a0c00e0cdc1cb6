"""What every part stands on: the error that a user reads, files written whole, text tables, and the ranks of a run."""
