"""Checkpoints: when they are written, how they stay whole, and how a run goes on from one."""
