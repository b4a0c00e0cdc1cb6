"""Downstream tasks of lm-eval's harness on a checkpoint, on an exported folder, and during training."""

from lrtrain.studies.evaluation.during_training import Evaluation

__all__ = ["Evaluation"]
