"""lrtrain: pre-train language models whose weights are low-rank from the first step.

The library parts (`lrtrain.linalg`, `lrtrain.nn`, `lrtrain.optim`, `lrtrain.constraints`) need torch alone; the
training program around them is the command `lrtrain`.
"""

__version__ = "0.1.0"
