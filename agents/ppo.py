"""PPO inside a dream: it learns from the latents of a batched rollout and never leaves torch.

After each chunk the world says how probable an end was; by default the agent learns from that
probability and not from the world's draw, see :func:`advantages`. What is saved is a running
average of the weights: two neighbouring updates of one run can play very differently, their
average does not. `agents/ppo_actor.py` plays the dream during training, `agents/ppo_agent.py`
holds the network and the agent that is saved.

Shape suffixes: T chunks of one update, B slots, N samples (T * B or a part of them), A actions,
C channels of a stack (chunks in view times channels of one chunk, c), Z latent channels, P latent
frames of a chunk, h and w the latent grid.
"""

import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from magi_world.agents.ppo_actor import Actor, Samples
from magi_world.agents.ppo_agent import Network, PPOAgent, build_network
from magi_world.errors import AgentError, ConfigError
from magi_world.world import World


@dataclass(frozen=True, kw_only=True)
class Args:
    """Settings of one training; a value that cannot work raises `ConfigError`."""

    seed: int = 1
    """seeds the weights, the sampled actions, the order of samples and the slots of the dream"""
    total_steps: int | None = 200_000
    """chunks to play, all slots together; None leaves the end to `minutes`"""
    minutes: float | None = None
    """wall-clock time to train; with both budgets the first that runs out ends the training"""
    num_slots: int = 32
    """independent rollouts stepped together"""
    num_steps: int = 32
    """chunks every slot plays between two updates"""
    temperature: float = 1.0
    """scale of the world's noise: above 1 the dream is harder to exploit"""
    denoising_steps: int | None = None
    """denoising steps of a chunk; None is the world's own number"""
    starts: Literal["opening", "any"] = "any"
    """where episodes begin: "opening", or "any" clip of the bank"""
    horizon: int | None = 8
    """chunks after which a slot is cut off and reset, with its value behind the cut counted; short,
    because what was not in the clip fades from a dream. None is the card's horizon"""
    reward: Literal["penalty", "survival"] = "penalty"
    """what is learned from: "penalty" is -1 at the end, "survival" the share of a chunk survived"""
    expected_termination: bool = True
    """learn from the probability of an end instead of the draw that was made with it"""
    signal_weights: dict[str, float] = field(default_factory=dict)
    """added to the reward: weight times the world's signal of that name, e.g. {"damage": -0.01}"""
    history: int = 4
    """chunks that the agent sees, the newest one included"""
    channels: tuple[int, int] = (48, 32)
    """widths of the two convolutions"""
    hidden: int = 192
    """width of the layer that policy and value share"""
    observation_noise: float = 0.1
    """standard deviation of noise added to the latents, so that small errors of the dream and of
    the encoder do not matter"""
    gamma: float = 0.95
    """discount of one chunk"""
    gae_lambda: float = 0.9
    """weight of long returns against the value function"""
    epochs: int = 3
    """passes over the samples of one update"""
    minibatches: int = 4
    """parts that the samples are cut into, in each pass anew"""
    learning_rate: float = 5e-4
    """of Adam, at the start"""
    anneal: bool = True
    """lower the learning rate to a tenth along the budget"""
    clip: float = 0.2
    """how far the probability of an action may move in one update, as a ratio"""
    entropy: float = 0.01
    """weight of the entropy bonus"""
    value_weight: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """longest gradient; longer ones are scaled down"""
    average: float = 0.95
    """decay of the running average of the weights, per update; young averages decay faster"""
    greedy: bool = False
    """how the saved agent plays unless told otherwise: the most probable action, or sampled. Where
    nothing threatens all actions are equally good, and an agent that then always takes the same one
    is an easy aim"""
    save_minutes: float = 2.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        if self.total_steps is None and self.minutes is None:
            raise ConfigError("total_steps and minutes are both None: give one budget")
        counts = ("num_slots", "num_steps", "history", "hidden", "epochs", "minibatches")
        for name in (*counts, "total_steps", "horizon", "denoising_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is below 1")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes {self.minutes} is not above 0")
        for name in ("gamma", "gae_lambda", "average"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [0, 1]")
        for name, words in (
            ("reward", ("penalty", "survival")), ("starts", ("opening", "any")),
        ):  # fmt: skip
            if getattr(self, name) not in words:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {words}")
        if self.num_slots * self.num_steps < self.minibatches:
            raise ConfigError(
                f"{self.num_slots} slots x {self.num_steps} steps give fewer samples than "
                f"minibatches ({self.minibatches})"
            )


def advantages(
    reward_TB: Tensor,
    value_TB: Tensor,
    next_value_TB: Tensor,
    continue_TB: Tensor,
    cut_TB: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates `[T, B]`.

    `next_value` is the value of the chunk that the action led to, *before* any reset. `continue` is
    the probability that the episode goes on behind that chunk: 1 or 0 where a drawn end is learned
    from, `1 - termination_probability` where the expected one is. `cut` marks the last chunk of
    an episode, whether it ended or ran into the horizon: what follows it belongs to another
    episode, so the sum of errors stops there, but the value behind it still counts with the weight
    `continue`. So a horizon is never taken for a death, and of an expected death only its share.
    The chunk is generated before its end is drawn, so its value does not depend on the draw.
    """
    advantage_TB = torch.zeros_like(reward_TB)
    later_B = torch.zeros_like(reward_TB[0])
    for t in reversed(range(len(reward_TB))):
        discount_B = gamma * continue_TB[t]
        error_B = reward_TB[t] + discount_B * next_value_TB[t] - value_TB[t]
        later_B = error_B + gae_lambda * discount_B * ~cut_TB[t] * later_B
        advantage_TB[t] = later_B
    return advantage_TB


def learn(
    network: Network,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    args: Args,
    generator: torch.Generator,
) -> dict[str, float]:
    """Improve policy and value on one batch of samples; returns the losses to log."""
    advantage_TB = advantages(
        samples.reward,
        samples.value,
        samples.next_value,
        samples.continues,
        samples.cut,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
    )
    target_N = (advantage_TB + samples.value).flatten()
    advantage_N = advantage_TB.flatten()
    stack_NChw, action_N = samples.stack.flatten(0, 1), samples.action.flatten()
    logp_N = samples.logp.flatten()
    log: dict[str, list[float]] = {}
    for _ in range(args.epochs):
        order_N = torch.randperm(len(target_N), generator=generator, device=target_N.device)
        for part in order_N.chunk(args.minibatches):
            new_logp_NA, new_value_N = network(stack_NChw[part])
            ratio_N = (new_logp_NA.gather(1, action_N[part, None]).squeeze(1) - logp_N[part]).exp()
            gain_N = advantage_N[part]
            gain_N = (gain_N - gain_N.mean()) / (gain_N.std(correction=0) + 1e-8)
            clipped_N = ratio_N.clamp(1 - args.clip, 1 + args.clip)
            policy_loss = -torch.min(gain_N * ratio_N, gain_N * clipped_N).mean()
            value_loss = 0.5 * (new_value_N - target_N[part]).square().mean()
            entropy = -(new_logp_NA.exp() * new_logp_NA).sum(-1).mean()
            loss = policy_loss + args.value_weight * value_loss - args.entropy * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
            moved_N = (ratio_N - 1).abs() > args.clip
            kl = (ratio_N - 1 - ratio_N.log()).mean()
            for name, scalar in (
                ("policy", policy_loss),
                ("value", value_loss),
                ("entropy", entropy),
                ("approx_kl", kl),
                ("clip_fraction", moved_N.float().mean()),
            ):
                log.setdefault(f"losses/{name}", []).append(scalar.item())
    unexplained = (target_N - samples.value.flatten()).var() / target_N.var().clamp_min(1e-12)
    return {name: sum(v) / len(v) for name, v in log.items()} | {
        "losses/explained_variance": 1.0 - unexplained.item()
    }


@torch.no_grad()
def blend(average: Network, network: Network, decay: float) -> None:
    """Move the averaged weights towards the newest: `decay` of the old, the rest of the new."""
    for old, new in zip(average.parameters(), network.parameters(), strict=True):
        old.lerp_(new, 1.0 - decay)


def train(world: World, args: Args, out: str | Path, *, show: bool = True) -> PPOAgent:
    """Train an agent inside a world and leave it in the folder `out`.

    The folder gets `agent.json` and `agent.safetensors` every `save_minutes` and at the end, and
    the TensorBoard log under `tensorboard/`. `show` draws a progress line on stderr.

    With `total_steps` alone two runs of the same world and `Args` on one machine give the same
    agent; with `minutes` the machine's speed decides how many updates fit.

    Raises:
        AgentError: the world has no outcome heads to learn from, or lacks a signal of
            `signal_weights`.
    """
    if world.config.outcome is None:
        raise AgentError(f"the world {world.name!r} has no outcome heads: nothing to learn from")
    unknown = sorted(set(args.signal_weights) - set(world.config.outcome.signals))
    if unknown:
        raise AgentError(
            f"the world {world.name!r} has no signals {unknown}; "
            f"it has {list(world.config.outcome.signals)}"
        )
    from torch.utils.tensorboard import SummaryWriter

    out = Path(out)
    description: dict[str, Any] = {
        "kind": "ppo",
        "world": world.name,
        "prompts": list(world.card["prompts"]),
        "observations": PPOAgent.observations,
        "latent_shape": list(world.config.latent_shape),
        "history": args.history,
        "channels": list(args.channels),
        "hidden": args.hidden,
        "greedy": args.greedy,
        "args": asdict(args),
    }
    network = build_network(description).initialise(torch.Generator().manual_seed(args.seed))
    network.to(world.device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5)
    generator = torch.Generator(world.device).manual_seed(args.seed)
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=0)  # hides an earlier run's curves
    writer.add_text("args", json.dumps(asdict(args), indent=2))

    begin = saved = time.monotonic()
    steps = updates = 0
    progress = 0.0

    def save() -> None:
        seconds = round(time.monotonic() - begin, 1)
        trained = {"steps": steps, "updates": updates, "seconds": seconds}
        PPOAgent(copy.deepcopy(average), description | {"trained": trained}).save(out)

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("first chunks", total=1.0)
        actor = Actor(world, args, generator)
        while progress < 1.0:
            if args.anneal:
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1.0 - 0.9 * progress)
            log = learn(network, optimizer, actor.collect(network), args, generator)
            updates += 1
            steps += args.num_slots * args.num_steps
            blend(average, network, min(args.average, updates / (updates + 9)))

            now = time.monotonic()
            progress = max(
                steps / args.total_steps if args.total_steps else 0.0,
                (now - begin) / (60 * args.minutes) if args.minutes else 0.0,
            )
            log["charts/steps_per_second"] = steps / (now - begin)
            log["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
            if actor.recent:
                log["charts/episodic_return"] = sum(r for r, _ in actor.recent) / len(actor.recent)
                log["charts/episodic_length"] = sum(n for _, n in actor.recent) / len(actor.recent)
            for name, scalar in log.items():
                writer.add_scalar(name, scalar, steps)
            length = log.get("charts/episodic_length", float("nan"))
            bar.update(
                task,
                completed=min(progress, 1.0),
                description=f"{steps:,} steps, {log['charts/steps_per_second']:.0f} steps/s, "
                f"{length:.1f} chunks an episode",
            )
            if now - saved > 60 * args.save_minutes:
                save()
                saved = now
    save()
    writer.close()
    return PPOAgent.load(out, device=world.device)
