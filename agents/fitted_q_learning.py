"""What a step of fitted Q learning does: values, targets, the update and its measure.

Shape suffixes as in `agents/moments.py` and `agents/fitted_q_data.py`.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.agents.fitted_q_data import Batch, Data
from magi_world.agents.ppo_agent import Network, PPOAgent
from magi_world.agents.ppo_learning import blend
from magi_world.agents.ppo_state import NetworkTraining

if TYPE_CHECKING:
    from magi_world.agents.fitted_q import Args  # noqa: F401, named in a string

VALUES = "values_of"
"""in an agent's description: the settings and numbers of the agent whose values it learned by"""


class FittedQ(NetworkTraining["Args"]):
    """A training's state: `steps` are the chunks dreamed, `updates` those of the optimizer.

    With an agent's `values` it begins as that agent, whose values of what follows are kept.
    """

    def __init__(
        self,
        description: dict[str, Any],
        args: "Args",
        device: torch.device,
        *,
        values: PPOAgent | None = None,
    ) -> None:
        super().__init__(description, args, device, weight_decay=args.weight_decay)
        self.values_kept = VALUES in description
        if values is not None:
            weights = copy.deepcopy(values.network)
            _scale_policy(weights, float(values.description["args"]["softness"]))
            for network in (self.network, self.average):
                network.load_state_dict(weights.state_dict())
        self.target = copy.deepcopy(self.network)
        self.parts["target"] = self.target

    @property
    def counted(self) -> float:
        """The share of the updates that is made."""
        return self.updates / self.args.updates

    def agent(self) -> PPOAgent:
        """The agent as it is saved: its log-probabilities are advantages over `softness`."""
        network = copy.deepcopy(self.average)
        _scale_policy(network, 1 / self.args.softness)
        return PPOAgent(network, self.description | {"trained": self.trained})


@torch.no_grad()
def _scale_policy(network: Network, factor: float) -> None:
    for parameter in network.policy.parameters():
        parameter.mul_(factor)


def action_values(network: Network, hidden_BD: Tensor) -> Tensor:
    """What every action is worth, `[B, A]`: the mean, and what the policy's layer adds to it."""
    advantage_BA: Tensor = network.policy(hidden_BD)
    value_B1: Tensor = network.value(hidden_BD)
    return value_B1 + advantage_BA - advantage_BA.mean(1, keepdim=True)


def targets(network: Network, batch: Batch, gamma: float, softness: float = 0.0) -> Tensor:
    """What every action gives and what that which follows is worth, `[B, A]`.

    `softness` is that of `Args.value_softness`. The first layer sees the chunks that all actions
    share once only.
    """
    B, A, c = batch.following.shape[:3]
    first = network.body[0]
    assert isinstance(first, nn.Conv2d)
    newest = F.conv2d(batch.following.flatten(0, 1), first.weight[:, -c:], first.bias, padding=1)
    seen = newest.unflatten(0, (B, A))
    if batch.stack.shape[1] > c:  # else one chunk is all that the agent sees
        shared = F.conv2d(batch.stack[:, c:], first.weight[:, :-c], padding=1)
        seen = seen + shared[:, None]
    value_NA = action_values(network, network.body[1:](seen.flatten(0, 1)))
    following_BA = worth(value_NA, softness).unflatten(0, (B, A))
    target_BA: Tensor = batch.reward + gamma * batch.continues * following_BA
    return target_BA


def worth(value_NA: Tensor, softness: float) -> Tensor:
    """What going on is worth where the actions have these values, `[N]`."""
    if softness == 0:
        return value_NA.amax(1)
    return ((value_NA / softness).softmax(1) * value_NA).sum(1)


def update(training: FittedQ, batch: Batch) -> dict[str, Tensor]:
    """One step of the optimizer; returns the losses."""
    args, network = training.args, training.network
    with torch.no_grad():
        target_BA = targets(training.target, batch, args.gamma, args.value_softness)
    seen, target_BA = batch.mirrored(target_BA)
    noise = torch.empty_like(seen).normal_(generator=training.generator)
    hidden_BD = network.body(seen + args.observation_noise * noise)
    error_BA = action_values(network, hidden_BD) - target_BA
    mean_B = error_BA.mean(1)
    mean = mean_B.square().mean()
    difference = (error_BA - mean_B[:, None]).square().sum(1).mean()
    loss = 3.0 * mean + args.difference_weight * difference
    training.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
    training.optimizer.step()
    training.updates += 1
    young = training.updates / (training.updates + 9)  # young averages follow faster
    if not training.values_kept:
        blend(training.target, network, min(args.target, young))
    blend(training.average, network, min(args.average, young))
    return {"losses/mean": mean.detach(), "losses/difference": difference.detach()}


@torch.no_grad()
def measure(training: FittedQ, data: Data) -> dict[str, float]:
    """Held-out moments: what the policy gains over a random one, and shares of it all.

    Gains are by the targets' own values; their best action is also the luckiest, so that a share
    of 1 cannot be reached.
    """
    args = training.args
    value, target = [], []
    for index_B in data.held_out.split(512):
        batch = data.batch(index_B)
        value.append(action_values(training.average, training.average.body(batch.stack)))
        target.append(targets(training.target, batch, args.gamma, args.value_softness))
    value_NA, target_NA = torch.cat(value), torch.cat(target)
    chosen_N = target_NA.gather(1, value_NA.argmax(1, keepdim=True)).squeeze(1)
    gain, most = (x_N - target_NA.mean(1) for x_N in (chosen_N, target_NA.amax(1)))
    return {
        "charts/value": target_NA.mean().item(),
        "charts/gain": gain.mean().item(),
        "charts/share_of_gain": (gain.sum() / most.sum().clamp_min(1e-12)).item(),
    }
