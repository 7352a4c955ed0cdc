"""What the VAE's loss weighs: rare colours are found wherever they are."""

import torch

from magi_world.training.vae_stage import _colours, colour_rarity


def test_a_colour_is_rarer_the_less_of_it_there_is() -> None:
    frames = torch.full((4, 4, 16, 16, 3), 90, dtype=torch.uint8)
    frames[:, :, :4] = torch.tensor([20, 40, 200], dtype=torch.uint8)  # a quarter
    frames[1, 2, 8, 8] = torch.tensor([250, 230, 150], dtype=torch.uint8)  # one pixel of 4096
    rarity = colour_rarity(frames)
    plain, quarter, pixel = rarity[_colours(frames)][1, 2, [9, 0, 8], [0, 0, 8]].tolist()
    assert 0 < plain < quarter < pixel <= 1
    assert pixel > 0.95 and plain < 0.2
    never = rarity[_colours(torch.tensor([0, 255, 0], dtype=torch.uint8))]
    assert never >= pixel


def test_neighbouring_colours_are_nearly_as_usual() -> None:
    frames = torch.full((2, 4, 8, 8, 3), 120, dtype=torch.uint8)
    beside = torch.tensor([104, 120, 120], dtype=torch.uint8)  # one level darker
    far = torch.tensor([8, 120, 120], dtype=torch.uint8)
    rarity = colour_rarity(frames)
    assert rarity[_colours(beside)] < 0.6 < rarity[_colours(far)]
