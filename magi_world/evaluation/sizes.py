"""How much of everything a report measures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything is measured.

    With the defaults, and whole dreamed episodes beside them, a report on a small world takes about
    an hour on two cores.
    """

    held_out_episodes: int = 96
    training_chunks: int = 12_000
    """real chunks, of training episodes, for the PCA and the inverse model"""
    reconstruction_chunks: int = 2000
    clips: int = 320
    """clips for open-loop prediction under the real actions"""
    prefix: int = 8
    """real chunks given before a dream, at least 2"""
    drawn_clips: int = 320
    """clips driven by drawn actions, once for each wording"""
    drawn_horizon: int = 8
    drawn_hold: int = 4
    """chunks for which a drawn action is held"""
    group: int = 2000
    """most chunks of one group that the inverse model judges, spread over the actions"""
    draws: int = 8
    """dreams of each held-out chunk, whose mean says how likely an end is"""
    histories: int = 1024
    """real histories from which hazard by depth dreams on"""
    moments: int = 300
    """real moments from which every action is held, in the game and in the dream"""
    inverse_epochs: int = 15
    strips: int = 6
    sweep_episodes: int = 100
    film_seconds: float = 20.0
