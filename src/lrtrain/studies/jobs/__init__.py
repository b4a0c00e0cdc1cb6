"""Many training runs, each a process of its own: jobs, and the best learning rate of each over seeds."""

from lrtrain.studies.jobs.best_rate import Repeated, train_best
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import train
from lrtrain.studies.jobs.search import Best, around, best_over_seeds

__all__ = ["Best", "Job", "Outcome", "Repeated", "around", "best_over_seeds", "train", "train_best"]
