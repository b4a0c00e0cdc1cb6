"""The papers' figures and tables as experiments: a file each, trained, drawn, and judged against the claim."""
