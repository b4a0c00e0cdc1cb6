"""A sweep: the points of a search space, each trained once, in a study that any number of workers share."""
