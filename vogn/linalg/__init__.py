"""Floor 1: rows, layouts, factorisations and noise."""
