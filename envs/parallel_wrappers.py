"""Wrappers of PettingZoo environments."""

from typing import Any

from pettingzoo.utils import BaseParallelWrapper


class ParallelNumericInfos(BaseParallelWrapper[str, Any, Any]):  # type: ignore[misc]
    """Leave out of every agent's infos what is text, such as `prompt` and `action`.

    TorchRL turns infos into tensors. `magi_world.envs.NumericInfos` does the same for vector
    environments.
    """

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Reset, with numbers only in the infos."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return observations, _numbers(infos)

    def step(self, actions: dict[str, Any]) -> Any:
        """Step, with numbers only in the infos."""
        *rest, infos = self.env.step(actions)
        return (*rest, _numbers(infos))


def _numbers(infos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        agent: {key: value for key, value in info.items() if not isinstance(value, str)}
        for agent, info in infos.items()
    }
