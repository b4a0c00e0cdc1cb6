"""Many training runs, each a process of its own: jobs, learning-rate searches, and studies over a search space."""

from lrtrain.studies.jobs.launch import Job, Outcome, train, train_all
from lrtrain.studies.jobs.search import around

__all__ = ["Job", "Outcome", "around", "train", "train_all"]
