"""Measures of a world against the real game, and the report that holds them.

Nothing here knows Gymnasium, an agent or a game: episodes, policies and games come in as data,
protocols and callables. `report.evaluate_world` runs all measures; each measure is a module that
can be used alone. Importing this package imports nothing heavy.
"""
