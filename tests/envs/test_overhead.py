"""The environment's own time is told from the model's."""

import time
from typing import Any

import pytest

from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.evaluation.overhead import measure_overhead
from magi_world.world import World


@pytest.mark.parametrize("observations", ["frames", "latent"])
def test_what_the_environment_does_is_not_the_models(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch, observations: str
) -> None:
    """An idle second in the environment is overhead, one in the model is none."""
    env = WorldVectorEnv(2, tiny_world, actions="discrete", observations=observations)
    actions = [[0, 1]] * 4
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    step, model = env.step, env.rollout.step
    decode = tiny_world.decode

    def slow_step(given: Any) -> Any:
        clock[0] += 1.0
        return step(given)

    def slow_decode(latents: Any) -> Any:
        clock[0] += 2.0 if len(latents) == 2 else 0.0  # those of resets are decoded one by one
        return decode(latents)

    def slow_model(prompts: Any) -> Any:
        clock[0] += 3.0
        return model(prompts)

    monkeypatch.setattr(env, "step", slow_step)
    monkeypatch.setattr(tiny_world, "decode", slow_decode)
    env.rollout.step = slow_model  # type: ignore[method-assign]
    env.ignore_termination = True
    measured = measure_overhead(env, actions, decode=observations == "frames")
    seconds = 1 + 3 + (2 if observations == "frames" else 0)
    assert measured["env_step_ms"] == pytest.approx(1e3 * seconds)
    assert measured["env_overhead"] == pytest.approx(1 / seconds)
    assert "step" not in vars(env.rollout)  # the rollout is as it was
