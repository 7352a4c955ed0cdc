"""One update of PPO: advantages, losses, and the running average of the weights.

Shape suffixes as in `agents/ppo.py`: T chunks of one update, B slots, N samples (T * B or a part of
them), A actions, C channels of a stack, h and w the latent grid.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from magi_world.agents.ppo_actor import Samples
from magi_world.agents.ppo_agent import Network

if TYPE_CHECKING:
    from magi_world.agents.ppo import Args


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
    args: "Args",
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
