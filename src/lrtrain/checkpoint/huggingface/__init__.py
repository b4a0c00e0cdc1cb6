"""Checkpoints as folders that transformers, and what reads its format, load unaided."""
