"""Many training runs, each a process of its own: jobs, and the best learning rate of each over seeds."""

from lrtrain.studies.jobs.best_rate import Best, Repeated, best_over_seeds, search_learning_rate, train_best
from lrtrain.studies.jobs.job import Job, Outcome, Resources
from lrtrain.studies.jobs.launch import run_job

__all__ = [
    "Best",
    "Job",
    "Outcome",
    "Repeated",
    "Resources",
    "best_over_seeds",
    "run_job",
    "search_learning_rate",
    "train_best",
]
