"""A training run as a process of its own, never done twice, and the search of a learning rate over such runs."""

from lrtrain.studies.jobs.launch import Job, Outcome, train, train_all
from lrtrain.studies.jobs.search import around

__all__ = ["Job", "Outcome", "around", "train", "train_all"]
