"""Scaling laws: isoFLOP grids of decoders, and the laws that their losses follow. Nothing here imports Lightning."""
