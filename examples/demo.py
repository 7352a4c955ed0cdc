"""An agent learns inside a generated Doom and is then scored in the real one.

    python examples/demo.py                 # about eight minutes on two cores, no GPU
    python examples/demo.py --minutes 20    # more practice for the fresh agent

Needs the extras `doom` and `video`. Everything that is written goes to `runs/demo`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

import magi_world
from magi_world.agents import Agent, has_agent, load
from magi_world.agents.evaluation import Row, evaluate_agents, format_table
from magi_world.agents.ppo import Args, train
from magi_world.envs.doom import TakeCoverGame
from magi_world.evaluation.video import side_by_side, write_mp4
from magi_world.world import World

Frames = npt.NDArray[np.uint8]
FILM_SEED = 30_000  # neither scored on nor trained on


def dream_episode(world: World, agent: Agent, seed: int, limit: int) -> Frames:
    """Play one episode in the world, at most `limit` chunks; frames uint8 `[T, H, W, 3]`."""
    rollout = world.rollout(1, seeds=[seed])
    chunk = rollout.reset()
    frames = [chunk.frames[0].cpu().numpy()]
    agent.reset(1, seed=seed)
    while len(frames) < limit and not chunk.terminated[0]:
        action = int(agent.act(chunk.latents)[0])
        chunk = rollout.step([world.card["prompts"][action]])
        frames.append(chunk.frames[0].cpu().numpy())
    return np.concatenate(frames)


def real_episode(world: World, agent: Agent, seed: int, limit: int) -> Frames:
    """Play one episode of the real game in the same way."""
    game = TakeCoverGame()
    chunk = game.reset(seed)
    frames = [chunk.frames]
    agent.reset(1, seed=seed)
    while len(frames) < limit and not (chunk.terminated or chunk.truncated):
        chunk = game.step(int(agent.act(world.encode(chunk.frames[None]))[0]))
        frames.append(chunk.frames)
    game.close()
    return np.concatenate(frames)


def film(
    play: Callable[[World, Agent, int, int], Frames], world: World, agent: Agent, chunks: int
) -> Frames:
    """Play one episode after another until `chunks` chunks are on film."""
    reel: list[Frames] = []
    played = 0
    while played < chunks:
        reel.append(play(world, agent, FILM_SEED + len(reel), chunks - played))
        played += len(reel[-1]) // world.config.chunk_frames
    return np.concatenate(reel)


def has_signal(world: World, name: str) -> bool:
    """Whether the world predicts a signal of that name beside reward and termination."""
    return world.config.outcome is not None and name in world.config.outcome.signals


def verdict(rows: Sequence[Row]) -> str:
    """Say whether the fresh agent beat random play in the real game."""
    random, fresh = rows[:2]
    low, high = fresh["above_random_low"], fresh["above_random_high"]
    numbers = (
        f"{fresh['mean']:.0f} against {random['mean']:.0f} tics, difference "
        f"{fresh['above_random']:+.0f}, 95 % bootstrap interval [{low:+.0f}, {high:+.0f}], "
        f"{fresh['episodes']} episodes each"
    )
    if low > 0:
        return f"The fresh agent beat random play in the real game: {numbers}."
    if high < 0:
        return f"The fresh agent did worse than random play in the real game: {numbers}."
    return f"The fresh agent did not clearly beat random play in the real game: {numbers}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, film."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="doom-take-cover", help="a world's name or folder")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time")
    parser.add_argument("--steps", type=int, help="train for so many chunks instead")
    parser.add_argument("--episodes", type=int, default=30, help="real episodes an agent")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the video")
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    given = parser.parse_args(arguments)
    console = Console()

    world = magi_world.load(given.world)
    console.print(f"1. A fresh agent learns inside the generated world {world.name!r}.")
    args = Args(
        seed=given.seed,
        total_steps=given.steps,
        minutes=None if given.steps else given.minutes,
        # a hit that does not kill is worth avoiding too; it never counts in a score
        signal_weights={"damage": -1.0} if has_signal(world, "damage") else {},
        horizon=2,
    )
    agent = train(world, args, given.out / "agent")

    console.print(f"2. Each agent plays {given.episodes} episodes of the real game.")
    agents: dict[str, Agent] = {"random": load("random", world=world), "fresh agent": agent}
    if has_agent(world):
        agents["shipped agent"] = load(world.name, world=world)
    rows = evaluate_agents(
        world, agents, where=["real"], episodes=given.episodes, make_game=TakeCoverGame
    )
    console.print(format_table(rows))
    console.print(verdict(rows))
    (given.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n")

    console.print("3. The fresh agent is filmed in the dream and in the real game.")
    fps = world.config.fps
    chunks = max(1, round(given.seconds * fps / world.config.chunk_frames))
    pictures = side_by_side(
        film(dream_episode, world, agent, chunks),
        film(real_episode, world, agent, chunks),
        ("dream", "real game"),
        scale=4,
    )
    write_mp4(given.out / "dream_and_real.mp4", pictures, fps)

    tensorboard = Path(sys.executable).with_name("tensorboard")
    console.print(f"Video:       {given.out / 'dream_and_real.mp4'}", soft_wrap=True)
    console.print(f"Agent:       {given.out / 'agent'}", soft_wrap=True)
    console.print(f"Curves:      {tensorboard} --logdir {given.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
