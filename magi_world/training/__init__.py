"""Datasets, objectives and the one loop that trains the parts of a world."""
