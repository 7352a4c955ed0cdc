"""CMA-ES in the dream: how the linear agent of `agents/linear.py` learns.

Shape suffixes: K members of a population, E episodes of each, B = K * E slots, A actions, D
features.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from magi_world.agents.checkpoint import read_checkpoint, write_checkpoint
from magi_world.agents.files import describe
from magi_world.agents.linear import History, LinearAgent, build_map
from magi_world.errors import AgentError, ConfigError, missing_package
from magi_world.players import players_of
from magi_world.sampling.rollout import Rollout
from magi_world.world import World

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Settings of one training; a value that cannot work raises `ConfigError`."""

    seed: int = 1
    """seeds the strategy and the dreams"""
    generations: int | None = 200
    """updates of the strategy; None leaves the end to `minutes`"""
    minutes: float | None = None
    """wall-clock time to train, in all runs of a resumed training together; with both budgets the
    first that runs out ends the training"""
    population: int = 32
    """maps that are compared in one generation"""
    episodes: int = 4
    """dreams that each of them plays; all play the same ones, and every generation has new ones"""
    horizon: int = 60
    """chunks after which a dream is cut off"""
    temperature: float = 1.0
    """scale of the world's noise: above 1 the dream is harder to exploit"""
    denoising_steps: int | None = None
    """denoising steps of a chunk; None is the world's own number"""
    starts: Literal["opening", "any"] = "any"
    """where episodes begin: "opening", or "any" clip of the bank"""
    expected_termination: bool = True
    """score the tics that are survived on average, by the probabilities of an end, instead of
    those until the end that was drawn"""
    history: int = 3
    """chunks in view, the newest one included"""
    pool: tuple[int, int] = (1, 8)
    """rows and columns of the grid over which latents are averaged"""
    sigma: float = 0.1
    """standard deviation of the first population's weights"""
    separable: bool = True
    """learn one variance a weight, in time for a few hundred generations. False learns all
    covariances, as in 2018: with a thousand weights that takes thousands of generations, several
    seconds of arithmetic each"""
    save_minutes: float = 2.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        if self.generations is None and self.minutes is None:
            raise ConfigError("generations and minutes are both None: give one budget")
        for name in ("generations", "episodes", "horizon", "history", "denoising_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is below 1")
        if self.population < 4:
            raise ConfigError(f"population {self.population} is below 4")
        if len(self.pool) != 2 or min(self.pool) < 1:
            raise ConfigError(f"pool {self.pool} is not two numbers, rows and columns, from 1 on")
        for name in ("minutes", "sigma"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)} is not above 0")
        if self.starts not in ("opening", "any"):
            raise ConfigError(f"starts {self.starts!r} is not one of ('opening', 'any')")


class Population:
    """Plays all members of a generation side by side in one rollout of K * E slots."""

    def __init__(self, world: World, args: Args) -> None:
        self.args = args
        self.prompts: list[str] = world.card["prompts"]
        self.device = world.device
        self.rollout: Rollout = world.rollout(
            args.population * args.episodes,
            steps=args.denoising_steps,
            temperature=args.temperature,
            starts=args.starts,
        )
        self._steps = 0

    def take_steps(self) -> int:
        """Chunks played since this was asked last, all slots together."""
        steps, self._steps = self._steps, 0
        return steps

    @torch.no_grad()
    def score(self, members_KN: Floats, generation: int) -> Floats:
        """Tics that each member survives, the mean of its episodes, float64 `[K]`.

        Episode e of a generation has the same seed for every member, so that they differ by what
        they do and not by their luck.
        """
        args = self.args
        first = args.seed * 1_000_000_000 + generation * args.episodes
        seeds = [first + e for _ in range(args.population) for e in range(args.episodes)]
        weights_KAD, bias_KA1 = self._maps(members_KN)
        history = History(args.history, args.pool)
        chunk = self.rollout.reset(seeds=seeds)
        alive_B = torch.ones(len(seeds), device=self.device)
        tics_B = torch.zeros(len(seeds), dtype=torch.float64, device=self.device)
        for _ in range(args.horizon):
            seen_KED = history.add(chunk.latents).unflatten(0, (args.population, args.episodes))
            score_KAE = torch.baddbmm(bias_KA1, weights_KAD, seen_KED.mT)
            actions = score_KAE.argmax(1).flatten().tolist()
            chunk = self.rollout.step([self.prompts[action] for action in actions])
            self._steps += len(seeds)
            tics_B += alive_B * chunk.reward
            if args.expected_termination:
                alive_B *= 1.0 - chunk.termination_probability
            else:
                alive_B *= ~chunk.terminated
            if not (alive_B > 1e-3).any():
                break
        mean_K: Floats = tics_B.unflatten(0, (args.population, args.episodes)).mean(1).cpu().numpy()
        return mean_K

    def _maps(self, members_KN: Floats) -> tuple[Tensor, Tensor]:
        """Weights `[K, A, D]` and biases `[K, A, 1]` of the members' N numbers."""
        numbers_KAN = torch.as_tensor(members_KN, dtype=torch.float32, device=self.device)
        numbers_KAN = numbers_KAN.unflatten(1, (len(self.prompts), -1))
        return numbers_KAN[..., :-1], numbers_KAN[..., -1:]


class Strategy:
    """The evolution strategy of the package `cmaes`, told scores where more is better."""

    def __init__(self, numbers: int, args: Args) -> None:
        try:
            import cmaes
        except ImportError as error:
            raise missing_package("cmaes", "rl", "training a linear agent") from error
        make = cmaes.SepCMA if args.separable else cmaes.CMA
        self._cma: Any = make(
            mean=np.zeros(numbers), sigma=args.sigma, seed=args.seed,
            population_size=args.population,
        )  # fmt: skip

    @property
    def mean(self) -> Floats:
        """Centre of the population: the agent that is saved, float64 `[N]`."""
        return np.array(self._cma.mean)

    def update(self, score: Callable[[Floats], Floats]) -> Floats:
        """One generation: draw the members `[K, N]`, have them scored `[K]`, move."""
        members = [self._cma.ask() for _ in range(self._cma.population_size)]
        scores = score(np.stack(members))
        self._cma.tell([(m, -float(s)) for m, s in zip(members, scores, strict=True)])
        return scores


class Training:
    """A strategy, and the scores of all its generations, which are enough to repeat it."""

    def __init__(self, description: dict[str, Any], args: Args) -> None:
        self.args = args
        self.description = description | {"args": asdict(args)}
        self.agent_map = build_map(description)
        self.numbers = sum(parameter.numel() for parameter in self.agent_map.parameters())
        self.strategy = Strategy(self.numbers, args)
        self.scores: list[Floats] = []
        self.steps = 0
        self.seconds = 0.0

    @property
    def trained(self) -> dict[str, Any]:
        """What `agent.json` says about the training."""
        return {
            "steps": self.steps, "generations": len(self.scores), "parameters": self.numbers,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip

    @property
    def progress(self) -> float:
        """The share of the budget that is used, 1 at the end."""
        args = self.args
        return max(
            len(self.scores) / args.generations if args.generations else 0.0,
            self.seconds / (60 * args.minutes) if args.minutes else 0.0,
        )

    def save(self, out: Path) -> None:
        """Write the agent at the strategy's centre, and the checkpoint; each whole or not."""
        mean = torch.as_tensor(self.strategy.mean)
        mean_AN = mean.float().unflatten(0, (len(self.description["prompts"]), -1))
        with torch.no_grad():
            self.agent_map.weight.copy_(mean_AN[:, :-1])
            self.agent_map.bias.copy_(mean_AN[:, -1])
        LinearAgent(self.agent_map, self.description | {"trained": self.trained}).save(out)
        tensors = {"scores": torch.as_tensor(np.array(self.scores)), "mean": mean}
        write_checkpoint(out, tensors, self.description, steps=self.steps, seconds=self.seconds)

    def resume(self, out: Path) -> None:
        """Go on from the checkpoint in a folder: its generations are repeated by their scores.

        Raises:
            AgentError: as `read_checkpoint`, or the strategy does not arrive where it was.
        """
        tensors, about = read_checkpoint(out, self.description)
        for scores in tensors["scores"].numpy():
            self.scores.append(self.strategy.update(partial(_told, scores)))
        if not np.allclose(self.strategy.mean, tensors["mean"].numpy(), rtol=1e-6, atol=1e-9):
            raise AgentError(f"the training in {out} cannot be repeated with this machine's numpy")
        self.steps, self.seconds = about["steps"], about["seconds"]


def _told(scores: Floats, members: Floats) -> Floats:
    """Scores of members that were scored before."""
    return scores


def train(
    world: World, args: Args, out: str | Path, *, resume: bool = False, show: bool = True
) -> LinearAgent:
    """Train a linear agent inside a world and leave it in the folder `out`.

    The folder gets `agent.json`, `agent.safetensors` and the checkpoint `training.safetensors`
    every `save_minutes` and at the end, and the TensorBoard log under `tensorboard/`. What is saved
    is the centre of the population. With `generations` alone two runs of the same world and `Args`
    on one machine give the same agent, stopped and resumed or not.

    Args:
        world: what is dreamed in.
        args: the settings.
        out: a folder.
        resume: go on from the checkpoint in `out`.
        show: draw a progress line on stderr, and print one a generation where that is no terminal.

    Raises:
        AgentError: the world has no outcome heads to learn from, or has players, or there is
            nothing to resume.
        MissingPackage: `cmaes` is absent.
    """
    if world.config.outcome is None:
        raise AgentError(f"the world {world.name!r} has no outcome heads: nothing to learn from")
    if players_of(world.card):
        raise AgentError(f"the world {world.name!r} has players: train them by self-play")
    from torch.utils.tensorboard import SummaryWriter

    out = Path(out)
    description = describe(world, "linear", "dream") | {
        "history": args.history,
        "pool": list(args.pool),
    }
    training = Training(description, args)
    if resume:
        training.resume(out)
        if training.progress >= 1.0:
            return LinearAgent.load(out, device=world.device)
    begin = saved = time.monotonic()
    seconds_before = training.seconds
    console = Console(stderr=True)
    population = Population(world, args)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with (
        SummaryWriter(str(out / "tensorboard"), purge_step=len(training.scores)) as writer,
        Progress(*columns, console=console, disable=not show) as bar,
    ):
        task = bar.add_task("first generation", total=1.0)
        while training.progress < 1.0:
            generation = len(training.scores)
            scores = training.strategy.update(partial(population.score, generation=generation))
            training.scores.append(scores)
            now = time.monotonic()
            training.steps += population.take_steps()
            training.seconds = seconds_before + now - begin
            writer.add_scalar("charts/mean_tics", scores.mean(), generation)
            writer.add_scalar("charts/best_tics", scores.max(), generation)
            words = (
                f"generation {generation + 1}, {training.steps:,} steps: "
                f"{scores.mean():.0f} tics on average, {scores.max():.0f} the best"
            )
            bar.update(task, completed=min(training.progress, 1.0), description=words)
            if show and not console.is_terminal:
                console.print(words, soft_wrap=True)
            if now - saved > 60 * args.save_minutes:
                training.save(out)
                saved = now
        training.save(out)
    return LinearAgent.load(out, device=world.device)
