"""One run as one page: what it was, what it measured, what it wrote, and what of that is not known."""
