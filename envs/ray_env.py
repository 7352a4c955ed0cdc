"""Slots in several processes or machines: Ray actors, each with a native batch of one world.

One actor serves one device. The weights are put into Ray's object store once, and every actor on a
node reads them there: on CPUs they are not copied at all, however many actors a node has. An actor
that dies is replaced, and what it held is reported as truncated; the other actors' slots notice
nothing.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from magi_world.checkpoints.world_format import Bank
from magi_world.config import TextConfig
from magi_world.envs.batches import (
    as_autoreset_mode,
    batch_prompts,
    fill_infos,
    merge_infos,
    object_column,
    slot_seeds,
    split_options,
)
from magi_world.envs.env_state import unless_refused
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.errors import ConfigError, missing_package
from magi_world.models.text import check_prompt
from magi_world.placement import check_place
from magi_world.sampling.arguments import check_count
from magi_world.world import World, load

if TYPE_CHECKING:
    from types import ModuleType

LOST = "actor_lost"
"""Key of the infos: True for slots whose actor died in this call."""


class ActorSlots:
    """What lives in one actor: a native batch over a world whose weights lie in the object store.

    Args:
        card, bank, weights: of the world, see `shared_world`.
        num_envs: slots of this actor.
        threads: CPU threads of its forwards.
        keywords: those of `WorldVectorEnv`.
    """

    def __init__(
        self,
        card: dict[str, Any],
        bank: Bank,
        weights: dict[str, dict[str, Any]],
        num_envs: int,
        threads: int,
        keywords: dict[str, Any],
    ) -> None:
        torch.set_num_threads(threads)
        self.env = WorldVectorEnv(num_envs, world_of(card, bank, weights), **keywords)

    def reset(self, seed: list[int | None], options: dict[str, Any] | None) -> Any:
        """Reset the slots of this actor."""
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: list[Any]) -> Any:
        """Step the slots of this actor."""
        return self.env.step(actions)

    def begin_again(self, seeds: list[int], ended: list[int]) -> Any:
        """Begin in all slots, in place of an actor that is gone; some of them end at once."""
        begun = self.env.reset(seed=seeds)
        self.env.end(ended)
        return begun


class RayVectorEnv(VectorEnv[Any, Any, Any]):
    """N slots of one generated world, spread over Ray actors.

    Actions, observations, rewards, ends and infos are those of `WorldVectorEnv` with numpy output;
    slot i is seeded alike. For one number of slots an actor the same seed gives the same bits.

    If an actor dies during a step, the episodes of its slots are truncated there with reward 0 and
    the last observation that was seen of them, `infos["actor_lost"]` names them, and a new actor
    goes on as `autoreset_mode` says, seeded from `np_random`. If it dies during a reset of some
    slots, that reset is done in the new actor, and the infos of the reset name its other slots,
    which then wait for theirs.

    Ray is started on this machine if it is not running; `close` ends the actors, not Ray, and after
    it `reset` and `step` raise Gymnasium's `ClosedEnvironmentError`.

    Args:
        num_envs: slots N, spread evenly.
        num_actors: actors, at most N.
        world: name of an embedded world, or a folder.
        actor_options: Ray's options of an actor, such as `{"num_cpus": 4, "num_gpus": 1}`; default
            one CPU, and one GPU for a `device` of CUDA. A forward takes as many threads as CPUs.
        start_timeout: seconds that actors may take to start, where Ray has to find room for them.
        autoreset_mode: an `AutoresetMode` or its name.
        **keywords: further keywords of `WorldVectorEnv`: `actions`, `observations`, `horizon`,
            `max_episode_steps`, `steps`, `temperature`, `starts`, `ignore_termination`, `device`,
            `dtype`.

    Raises:
        ConfigError: a keyword whose value is not allowed, or actors that Ray has no room for.
        WorldNotFound: no world of that name or folder.
        MissingPackage: Ray is absent.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        num_envs: int,
        num_actors: int = 2,
        world: str | os.PathLike[str] = "doom-take-cover",
        *,
        actor_options: Mapping[str, Any] | None = None,
        start_timeout: float = 300.0,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **keywords: Any,
    ) -> None:
        self._ray = _import_ray()
        self.num_envs = check_count("num_envs", num_envs)
        if check_count("num_actors", num_actors) > self.num_envs:
            raise ConfigError(f"num_actors {num_actors}: at most one a slot, {num_envs}")
        refused = [name for name in ("output", "render_mode") if name in keywords]
        if refused:
            raise ConfigError(f"{refused}: slots in actors give numpy arrays and do not render")
        check_place(None, keywords.get("dtype"))  # devices are those of the actors
        self.autoreset_mode = as_autoreset_mode(autoreset_mode)
        self._keywords = {**keywords, "autoreset_mode": self.autoreset_mode.name}
        on_gpu = str(keywords.get("device") or "cpu").startswith("cuda")
        self._options = {"num_cpus": 1, **({"num_gpus": 1} if on_gpu else {})}
        self._options |= dict(actor_options or {})

        loaded = load(os.fspath(world))
        # one slot here refuses wrong keywords and knows the spaces; the actors have the rest
        here = {**self._keywords, "device": None, "dtype": None}
        one = WorldVectorEnv(1, loaded, **here)
        self.horizon = one.horizon
        self.single_action_space = one.single_action_space
        self.single_observation_space = one.single_observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.metadata = {**one.metadata, "render_modes": [], "autoreset_mode": self.autoreset_mode}
        self._actions = keywords.get("actions", "text")
        self._prompts: list[str] = loaded.card["prompts"]
        self._text = loaded.config.text
        self._max_length = one.max_prompt_length

        if not self._ray.is_initialized():
            self._ray.init(include_dashboard=False, log_to_driver=False)
        self._world = [self._ray.put(part) for part in shared_world(loaded)]
        cuts = np.array_split(np.arange(self.num_envs), num_actors)
        self._slots = [[int(slot) for slot in cut] for cut in cuts]
        self._remote = self._ray.remote(ActorSlots)
        self._timeout = start_timeout
        self._actors = [self._start(index) for index in range(num_actors)]
        self._wait_for(self._actors)
        self._seeded = np.zeros(self.num_envs, np.bool_)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._shown: list[Any] = [None] * num_actors  # the last observations of each actor

    def _start(self, index: int) -> Any:
        threads = max(1, int(self._options.get("num_cpus") or 1))
        return self._remote.options(**self._options).remote(
            *self._world, len(self._slots[index]), threads, self._keywords
        )

    def _wait_for(self, actors: Sequence[Any]) -> None:
        ready = [actor.__ray_ready__.remote() for actor in actors]
        try:
            self._ray.get(ready, timeout=self._timeout)
        except self._ray.exceptions.GetTimeoutError:
            for actor in actors:
                self._ray.kill(actor)
            raise ConfigError(
                f"{len(actors)} actors with {self._options} did not start within "
                f"{self._timeout} s: Ray has {self._ray.cluster_resources()}, free are "
                f"{self._ray.available_resources()}"
            ) from None
        except self._ray.exceptions.RayActorError as error:
            for actor in actors:
                self._ray.kill(actor)
            reason = str(error).strip().splitlines()[-1].strip()  # the rest is its stack
            raise ConfigError(f"an actor with {self._keywords} did not start: {reason}") from error

    # ---------------------------------------------------------------- reset

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes in all slots or in those of a mask; see `WorldVectorEnv.reset`."""
        self._require_open()
        seeds = slot_seeds(seed, self.num_envs)
        slots, start = split_options(options, self.num_envs)
        if not self._seeded.all() and len(slots) < self.num_envs:
            raise ResetNeeded("some slots were never reset: reset all slots first")
        with unless_refused(self):
            for slot in slots:
                if seeds[slot] is None and not self._seeded[slot]:
                    seeds[slot] = int(self.np_random.integers(2**31))
            calls = {}
            for index, own in enumerate(self._slots):
                mask = np.isin(own, slots)
                if mask.any():
                    given = {**start} if mask.all() else {**start, "reset_mask": mask}
                    calls[index] = ("reset", [seeds[slot] for slot in own], given)
            results = self._call(calls)
        if isinstance(seed, (int, np.integer)):  # only now: no actor has refused the options
            super().reset(seed=int(seed))
        infos: dict[str, Any] = {}
        for index, (part, alive) in results.items():
            own = self._slots[index]
            if not alive:
                bystanders = [k for k, slot in enumerate(own) if slot not in slots]
                self._begin_again(index, ended=bystanders)
                part = self._ray.get(self._actors[index].reset.remote(*calls[index][1:]))
                waits = self.autoreset_mode != AutoresetMode.SAME_STEP
                self._ended[[own[k] for k in bystanders]] = waits
                fill_infos(infos, [own[k] for k in bystanders], {LOST: [True] * len(bystanders)},
                           self.num_envs)  # fmt: skip
            self._shown[index], own_infos = part
            merge_infos(infos, own_infos, own, self.num_envs)
        self._seeded[slots] = True
        self._ended[slots] = False
        return self._observations(), infos

    # ---------------------------------------------------------------- step

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Generate one chunk a slot, in all actors at once; see `WorldVectorEnv.step`."""
        self._require_open()
        if not self._seeded.all():
            raise ResetNeeded("step() before the first reset(): call reset()")
        over = [int(slot) for slot in np.flatnonzero(self._ended)]
        if over and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of slots {over} have ended: "
                "call reset(options={'reset_mask': mask}) for them"
            )
        prompts = batch_prompts(
            actions, self._actions, self._prompts, self._max_length,
            num_envs=self.num_envs, ignored=over, check=self._check_prompt,
        )  # fmt: skip
        rows: list[Any] = prompts
        if self._actions == "discrete":
            rows = [self._prompts.index(prompt) for prompt in prompts]
        calls = {
            index: ("step", [rows[slot] for slot in own]) for index, own in enumerate(self._slots)
        }
        reward = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for index, (part, alive) in self._call(calls).items():
            own = self._slots[index]
            if alive:
                self._shown[index], reward[own], terminated[own], truncated[own], here = part
                merge_infos(infos, here, own, self.num_envs)
            else:
                truncated[own] = ~self._ended[own]  # who waited for a reset gets it
                self._replace(index, infos)
        self._ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._ended[:] = False
        return self._observations(), reward, terminated, truncated, infos

    def _require_open(self) -> None:
        """Refuse calls after `close`: its actors would look as if they had died."""
        if self.closed:
            raise ClosedEnvironmentError("this environment was closed: make a new one")

    def _check_prompt(self, prompt: str) -> None:
        """Refuse a text that the world cannot use, before any actor moves."""
        if isinstance(self._text, TextConfig):
            check_prompt(prompt, self._text.max_bytes)

    def _call(self, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, tuple[Any, bool]]:
        """Call actors at once; what each returned, and whether it is still alive.

        An error of an actor is raised when all have answered: Ray complains of answers that nobody
        has fetched.
        """
        results: dict[int, tuple[Any, bool]] = {}
        refusal: BaseException | None = None
        references = {
            index: getattr(self._actors[index], name).remote(*arguments)
            for index, (name, *arguments) in calls.items()
        }
        for index, reference in references.items():
            try:
                results[index] = (self._ray.get(reference), True)
            except self._ray.exceptions.RayActorError:
                results[index] = (None, False)
            except self._ray.exceptions.RayTaskError as error:
                refusal = refusal or error.cause
        if refusal is not None:
            raise refusal
        return results

    def _begin_again(self, index: int, ended: list[int]) -> Any:
        """Put a new actor in the place of a dead one and begin in all of its slots."""
        own = self._slots[index]
        self._actors[index] = self._start(index)
        self._wait_for([self._actors[index]])
        seeds = [int(self.np_random.integers(2**31)) for _ in own]
        over = [] if self.autoreset_mode == AutoresetMode.SAME_STEP else ended
        return self._ray.get(self._actors[index].begin_again.remote(seeds, over))

    def _replace(self, index: int, infos: dict[str, Any]) -> None:
        """Replace an actor that died in a step, and report what is lost."""
        own = self._slots[index]
        lost = [k for k, slot in enumerate(own) if not self._ended[slot]]
        last = self._shown[index]
        begun, here = self._begin_again(index, ended=lost)
        slots = [own[k] for k in lost]
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            final = object_column([_rows(last, k) for k in lost])
            columns = {"final_obs": final, "final_info": {LOST: [True] * len(lost)}}
            fill_infos(infos, slots, columns, self.num_envs)
            self._shown[index] = begun
            merge_infos(infos, here, own, self.num_envs)
        else:
            waited = [k for k in range(len(own)) if k not in lost]
            self._shown[index] = _with_rows(last, begun, waited)
            mask = np.isin(np.arange(len(own)), waited)
            merge_infos(infos, here, own, self.num_envs, only=mask)
        fill_infos(infos, slots, {LOST: [True] * len(lost)}, self.num_envs)

    def _observations(self) -> Any:
        if isinstance(self._shown[0], dict):
            return {
                name: np.concatenate([shown[name] for shown in self._shown])
                for name in self._shown[0]
            }
        return np.concatenate(self._shown)

    def close_extras(self, **kwargs: Any) -> None:
        """End the actors."""
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)


def shared_world(world: World) -> tuple[dict[str, Any], Bank, dict[str, dict[str, Any]]]:
    """Card, bank and weights of a world, as arrays that the object store shares between actors."""
    weights = {
        part: {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}
        for part, module in world.modules().items()
    }
    return world.card, world.bank, weights


def world_of(card: dict[str, Any], bank: Bank, weights: Mapping[str, Mapping[str, Any]]) -> World:
    """Build a world around weights where they lie; on the CPU nothing is copied."""
    world = World(card, bank=bank)
    with warnings.catch_warnings():
        # the store's arrays are read-only, and so is what a world does with its weights
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        for part, module in world.modules().items():
            tensors = {name: torch.from_numpy(array) for name, array in weights[part].items()}
            module.load_state_dict(tensors, assign=True)
    return world


def _rows(observation: Any, row: int) -> Any:
    if isinstance(observation, dict):
        return {name: part[row].copy() for name, part in observation.items()}
    return observation[row].copy()


def _with_rows(observation: Any, other: Any, rows: list[int]) -> Any:
    """A copy of observations with some rows taken from others."""
    if isinstance(observation, dict):
        return {name: _with_rows(part, other[name], rows) for name, part in observation.items()}
    mixed = observation.copy()
    mixed[rows] = other[rows]
    return mixed


def _import_ray() -> "ModuleType":
    try:
        import ray
    except ImportError:
        raise missing_package("ray", "ray", "slots in several processes") from None
    return ray
