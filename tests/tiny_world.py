"""A world with random weights and Doom's geometry, small enough for every test."""

from typing import Any

import torch

from magi_world.checkpoints.world_format import Bank
from magi_world.world import World

PROMPTS = ["stand still", "strafe left", "strafe right"]


def tiny_card() -> dict[str, Any]:
    """Card of the tiny world: one layer each, horizon of 12 chunks."""
    return {
        "name": "tiny",
        "game": "VizDoom Take Cover",
        "description": "Random weights, for tests.",
        "prompts": PROMPTS,
        "paraphrases": {prompt: [f"please {prompt}"] for prompt in PROMPTS},
        "held_out_paraphrases": {prompt: [f"now {prompt}"] for prompt in PROMPTS},
        "fps": 35,
        "horizon": 12,
        "reward_range": [0.0, 4.0],
        "sweep_period": 4,
        "config": {
            "height": 64,
            "width": 64,
            "fps": 35,
            "vae": {
                "video_size": 64, "video_length": 4, "patch_size": 8, "patch_length": 4,
                "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0,
                "ln_in_attn": False, "use_final_proj": True,
            },
            "dit": {
                "num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 32,
                "num_attention_heads": 2, "num_query_groups": 1, "kv_channels": 16,
                "caption_channels": 16, "caption_max_length": 257,
                "previous_chunk": True, "predicts": "clean",
            },
            "text": {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1},
            "sampling": {
                "kv_range": 4, "num_steps": 2, "scale_factor": 1.0, "null_prompt_tokens": 4,
            },
            "outcome": {"hidden_size": 32, "num_queries": 2},
        },
    }  # fmt: skip


def make_tiny_world(seed: int = 0, **dit: Any) -> World:
    """Build the tiny world; the same seed gives the same weights. ``dit`` replaces settings."""
    card = tiny_card()
    card["config"]["dit"] |= dit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = World(card)
        for parameter in world.dit.parameters():
            if parameter.ndim < 2:  # zeros and ones would hide mistakes
                parameter.data += 0.1 * torch.randn_like(parameter)
        latents = torch.randn(8, *world.config.latent_shape).bfloat16().float()
    # an opening of one chunk, then clips of three and four
    texts = tuple(PROMPTS[i % 3] for i in range(8))
    world.bank = Bank(
        tuple(latents.split([1, 3, 4])), (texts[:1], texts[1:4], texts[4:8]), num_openings=1
    )
    return world
