"""From YAML, flags and environment to a model, its data and a Trainer over a run directory."""
