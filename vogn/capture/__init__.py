"""Floor 3: from a model's forward and backward passes to observations of curvature."""
