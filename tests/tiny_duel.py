"""A world with two players, random weights and Pong's geometry, small enough for every test."""

from typing import Any

import torch

from magi_world.checkpoints.world_format import Bank
from magi_world.envs.pong import CARD
from magi_world.players import chunk_prompts
from magi_world.world import World
from tests.tiny_world import tiny_card

PLAYERS: list[str] = CARD["players"]


def duel_card() -> dict[str, Any]:
    """Card of the tiny duel: the tiny world's sizes, Pong's players, a horizon of 12 chunks."""
    card = tiny_card()
    del card["sweep_period"]
    card["config"]["fps"] = 60
    card["config"]["outcome"]["rewards"] = PLAYERS
    return {
        **card,
        **CARD,
        "name": "pong-duel",
        "game": "Atari Pong, two players",
        "fps": 60,
        "paraphrases": {"stay": ["wait"], "up": ["go up"], "down": ["go down"]},
        "held_out_paraphrases": {"up": ["climb"]},
        "terminates": False,
        "reward_range": [-1.0, 1.0],
    }


def make_tiny_duel(seed: int = 0) -> World:
    """Build the tiny duel; the same seed gives the same weights."""
    card = duel_card()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = World(card)
        for module in (world.dit, world.outcome):
            assert module is not None
            for parameter in module.parameters():
                if parameter.ndim < 2:  # zeros and ones would hide mistakes
                    parameter.data += 0.1 * torch.randn_like(parameter)
        latents = torch.randn(8, *world.config.latent_shape).bfloat16().float()
    texts = tuple(chunk_prompts(card)[i] for i in range(8))
    # two openings of one chunk, then clips of three
    world.bank = Bank(
        tuple(latents.split([1, 1, 3, 3])),
        (texts[:1], texts[1:2], texts[2:5], texts[5:8]),
        num_openings=2,
    )
    return world
