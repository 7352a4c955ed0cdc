"""Planning in the dream: imagine what each of many action sequences leads to, act on the best.

The planner is an agent like any other (`reset`, `act`), in the dream and in the real game alike: a
rollout of its own follows what happens, because it observes every chunk that it is shown, and
before each action it forks that rollout into futures, all in one batch. `plan` does the same from
any rollout. The futures draw noise of their own: a planner that used the generators of the rollout
it acts in would foresee chance.

Four searches over prompts are known, all old: holding asks of every prompt what comes if it is
held; a rollout of a policy (Tesauro & Galperin, 1996) asks what comes if it is given once and a
trained agent goes on; random shooting draws sequences and takes the best; the cross-entropy method
(Rubinstein, 1999) draws some, refits the probabilities of the actions at every place to the best of
them, and draws again. The drawn ones begin with the last plan, moved on by one. Where chance weighs
more than the fine order of actions, few sequences dreamed several times tell more than many dreamed
once. With a guide, a trained agent, what lies beyond the horizon counts as its value says.

Shape letters: N rows, K sequences of a row, D dreams of each, T chunks ahead, A actions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_world.agents.guide import Guide
from magi_world.errors import AgentError, NotReset
from magi_world.players import players_of

if TYPE_CHECKING:
    from magi_world.sampling.rollout import Rollout
    from magi_world.world import World

Actions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Value = Callable[[Tensor], Tensor]
"""Latents of imagined chunks `[n, T, 16, P, h, w]`, oldest first, to what going on from the last of
them is worth, `[n]`, in the units of the planner's reward."""

METHODS = ("cem", "shooting", "hold", "policy")


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """How a planner searches.

    Raises:
        AgentError: a value outside what is named here.
    """

    method: str = "cem"
    """"cem", "shooting", "hold" or "policy" """
    futures: int = 16
    """K, imagined at once for every row, and in every round again; "hold" and "policy" have one a
    prompt"""
    dreams: int = 1
    """D, times that each of them is imagined, with other noise; the mean counts"""
    horizon: int = 4
    """chunks ahead, T"""
    commit: int = 1
    """chunks of a plan that are carried out before the next one is made; plans that change with
    every chunk never carry out what they imagined. 1 with "policy", which plans no further"""
    rounds: int = 3
    """rounds of the cross-entropy method; shooting has one"""
    elites: int = 4
    """futures of a round that the next one is drawn after"""
    smoothing: float = 0.2
    """share of the uniform distribution that every refit keeps, so that nothing dies out"""
    sticky: float = 0.5
    """probability with which a drawn sequence repeats its last action: hasty ones lead nowhere"""
    gamma: float = 1.0
    """discount of a chunk"""
    signal_weights: Mapping[str, float] = field(default_factory=dict)
    """weights with which signals of the world are added to its reward, such as {"damage": -4}"""
    steps: int | None = None
    """denoising steps of imagined chunks; None is those of the rollout"""
    temperature: float | None = None
    """scale of the noise of imagined chunks; None is that of the rollout"""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise AgentError(f"method {self.method!r} is not one of {list(METHODS)}")
        for name in ("futures", "dreams", "horizon", "commit", "rounds", "elites"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise AgentError(f"{name} {number!r}: a whole number, 1 or more, is needed")
        if self.method == "cem" and self.elites > self.futures:  # the others have none
            raise AgentError(f"elites {self.elites} of {self.futures} futures: at most all of them")
        longest = 1 if self.method == "policy" else self.horizon
        if self.commit > longest:
            raise AgentError(
                f"commit {self.commit}: plans of {self.method!r} are no longer than {longest}"
            )
        for name in ("smoothing", "sticky", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise AgentError(f"{name} {getattr(self, name)!r}: 0 to 1 is needed")


class Plan(NamedTuple):
    """What a search found for N rows."""

    actions: Actions
    """the first action of the best sequence, `[N]`"""
    sequences: Actions
    """the best sequences, `[N, T]`; `[N, 1]` where a policy goes on"""
    returns: Floats
    """what was imagined for them, `[N]`"""


class Planner:
    """Model-predictive control over a world's prompts.

    Args:
        world: the world that is imagined with.
        settings: how the search goes; keywords make them too.
        value: worth of what lies beyond the horizon; None is nothing.
        guide: a trained agent whose value is taken instead, and whose policy goes on behind the
            first prompt of the method "policy". Its value holds for its own `gamma` and
            `signal_weights`.
        **keywords: fields of `PlannerSettings`, instead of `settings`.

    Raises:
        AgentError: both forms of settings, a wrong one, a signal that the world does not have, a
            value beside a guide, the method "policy" without one, or a world with players.
    """

    observations = "latent"
    policy = "planned"

    def __init__(
        self,
        world: "World",
        settings: PlannerSettings | None = None,
        *,
        value: Value | None = None,
        guide: Guide | None = None,
        **keywords: Any,
    ) -> None:
        if settings is not None and keywords:
            raise AgentError(f"settings and {sorted(keywords)}: give one form of them")
        if value is not None and guide is not None:
            raise AgentError("a value and a guide: give one of them")
        if players_of(world.card):
            raise AgentError(f"the world {world.name!r} has players: one agent's plan is not all")
        self.world = world
        self.settings = PlannerSettings(**keywords) if settings is None else settings
        if self.settings.method == "policy" and guide is None:
            raise AgentError('method "policy" needs a guide: a trained agent that goes on')
        self.value, self.guide = value, guide
        self.prompts: list[str] = world.card["prompts"]
        known = () if world.config.outcome is None else world.config.outcome.signals
        unknown = sorted(set(self.settings.signal_weights) - set(known))
        if unknown:
            raise AgentError(
                f"the world {world.name!r} has no signals {unknown}, but {list(known)}"
            )
        self._generators: list[np.random.Generator] = []
        self._plans: Actions | None = None  # the last plans, moved on by what is carried out
        self._due: Actions | None = None  # what is still to be carried out of them
        self._rollout: Rollout | None = None
        self._rows, self._live = 0, list[int]()  # all rows, and those whose episodes go on
        self._last = np.zeros(0, np.int64)
        self._memory: Tensor | None = None  # of the guide, `[N, C, h, w]`

    # ---------------------------------------------------------------- as an agent

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes; row i draws sequences and noise from a generator seeded `seed + i`."""
        seeds = [None] * n if seed is None else range(seed, seed + n)
        self._generators = [np.random.default_rng(row_seed) for row_seed in seeds]
        self._rows, self._live = n, list(range(n))
        self._last = np.zeros(n, np.int64)
        self._plans = self._due = self._rollout = self._memory = None

    def retire(self, rows: Sequence[int]) -> None:
        """Plan no more for these rows, whose episodes have ended; `act` answers 0 for them."""
        kept = [i for i, row in enumerate(self._live) if row not in set(rows)]
        self._live = [self._live[i] for i in kept]
        self._last[list(rows)] = 0
        self._generators = [self._generators[i] for i in kept]
        if self._plans is not None:
            self._plans = self._plans[kept]
        if self._due is not None:
            self._due = self._due[kept]
        if self._memory is not None:
            self._memory = self._memory[kept]

    def act(self, observations: npt.NDArray[Any] | Tensor) -> Actions:
        """Take in the newest chunk of each row and return the best action, int64 `[N]`.

        A plan is made anew every `commit` chunks.

        The first chunk after `reset` begins the history, under the no-op; every later one is
        observed under the action that was returned last.

        Args:
            observations: latents `[N, 16, P, h, w]`, as the world encodes them.

        Raises:
            NotReset: `reset` was never called.
            AgentError: another number of rows than `reset` was given, or latents of another shape.
        """
        if not self._rows:
            raise NotReset("the planner was not reset: call reset(n) before act")
        latents = torch.as_tensor(observations, dtype=torch.float32)
        expected = (self._rows, *self.world.config.latent_shape)
        if tuple(latents.shape) != expected:
            raise AgentError(f"latents of shape {tuple(latents.shape)}, expected {expected}")
        live = self._live
        if not live:
            return self._last.copy()
        if self._rollout is None:
            self._rollout = self.world.rollout(self._rows, seeds=[0] * self._rows)  # draws nothing
            for row, seen in enumerate(latents):
                self._rollout.reset([row], latents=seen[None], prompts=self.prompts[:1])
        else:  # all rows at once, those that have ended too: one forward at a fixed width
            self._rollout.observe(latents, [self.prompts[action] for action in self._last])
        if self.guide is not None:
            known, latents = self._memory, latents[live].to(self.world.device)
            memory = self.guide.start(latents) if known is None else self.guide.see(known, latents)
            self._memory = memory
        if self._due is None or self._due.shape[1] == 0:
            plan = self.plan(self._rollout, live, memory=self._memory)
            self._due = plan.sequences[:, : self.settings.commit]
        self._last[live], self._due = self._due[:, 0], self._due[:, 1:]
        return self._last.copy()

    # ---------------------------------------------------------------- the search

    def plan(
        self,
        rollout: "Rollout",
        slots: Sequence[int] | None = None,
        *,
        memory: Tensor | None = None,
    ) -> Plan:
        """Search from the present of these slots; the rollout itself is not touched.

        Row i of the planner belongs to the i-th slot named, and its plan is carried over to the
        next call, which comes when `commit` chunks of it are carried out.

        Args:
            rollout: what is planned from.
            slots: all of them by default.
            memory: what the guide has seen of each row, as its `start` and `see` make it.

        Raises:
            NotReset: `reset` was never called, or a slot of the rollout was not.
            AgentError: another number of slots than `reset` was given rows, or a guide that is not
                told what it has seen.
        """
        chosen = list(range(rollout.batch_size)) if slots is None else list(slots)
        if not self._generators:
            raise NotReset("the planner was not reset: call reset(n) before plan")
        if len(chosen) != len(self._generators):
            raise AgentError(
                f"{len(chosen)} slots, but the planner was reset for {len(self._generators)} rows"
            )
        if self.guide is not None and memory is None:
            raise AgentError("the guide needs a memory of what was seen: plan(…, memory=…)")
        cem, drawn = self.settings.method == "cem", self.settings.method in ("cem", "shooting")
        best, chances = self._plans, None
        for _ in range(self.settings.rounds if cem else 1):
            sequences_NKT = self._draw(best, chances) if drawn else self._each()
            returns_NK = self._imagine(rollout, chosen, sequences_NKT, memory)
            order_NK = np.argsort(-returns_NK, axis=1, kind="stable")
            best = np.take_along_axis(sequences_NKT, order_NK[:, :1, None], axis=1)[:, 0]
            if cem:
                chances = self._refit(sequences_NKT, order_NK[:, : self.settings.elites])
        assert best is not None  # there is at least one round
        # the next plan begins `commit` chunks later, and its new end holds the last action
        commit = self.settings.commit
        self._plans = np.concatenate([best[:, commit:], *[best[:, -1:]] * commit], axis=1)
        return Plan(best[:, 0].copy(), best, returns_NK.max(axis=1))

    def _each(self) -> Actions:
        """One sequence a prompt: nothing but that, `[N, A, T]`, or that once, `[N, A, 1]`."""
        each = np.arange(len(self.prompts))[None, :, None]
        length = 1 if self.settings.method == "policy" else self.settings.horizon
        return np.tile(each, (len(self._generators), 1, length))

    def _draw(self, best_NT: Actions | None, chances_NTA: Floats | None) -> Actions:
        """Sequences `[N, K, T]`: the best one known first, the others drawn."""
        s, count = self.settings, len(self.prompts)
        sequences = np.empty((len(self._generators), s.futures, s.horizon), np.int64)
        for row, generator in enumerate(self._generators):
            if chances_NTA is None:
                fresh = generator.integers(count, size=(s.futures, s.horizon))
                repeats = generator.random((s.futures, s.horizon)) < s.sticky
                for t in range(1, s.horizon):
                    fresh[:, t] = np.where(repeats[:, t], fresh[:, t - 1], fresh[:, t])
                sequences[row] = fresh
            else:
                places = generator.random((s.futures, s.horizon, 1))
                reached = chances_NTA[row].cumsum(axis=-1)[:, :-1]
                sequences[row] = (places >= reached).sum(axis=-1)
        if best_NT is not None:
            sequences[:, 0] = best_NT
        return sequences

    def _refit(self, sequences_NKT: Actions, elites_NE: Actions) -> Floats:
        """Probabilities `[N, T, A]` of the actions at every place among the best sequences."""
        chosen_NET = np.take_along_axis(sequences_NKT, elites_NE[:, :, None], axis=1)
        count = len(self.prompts)
        shares_NTA = np.eye(count)[chosen_NET].mean(axis=1)
        smoothing = self.settings.smoothing
        return np.asarray((1 - smoothing) * shares_NTA + smoothing / count)

    def _imagine(
        self, rollout: "Rollout", slots: list[int], sequences_NKT: Actions, memory: Tensor | None
    ) -> Floats:
        """Expected return `[N, K]` of sequences, all in one batch of N * K * D slots.

        Endings are not drawn: a chunk counts with the probability that it is still reached. All
        sequences of a row share the noise of a round, so that they differ by what is done in them
        and not by luck; each round and each of the D dreams has another. Where a sequence ends
        before the horizon, the guide goes on.
        """
        s, (n, k, known) = self.settings, sequences_NKT.shape
        seeds_ND = np.array(
            [[int(g.integers(2**63)) for _ in range(s.dreams)] for g in self._generators]
        )
        fork = rollout.fork(
            np.repeat(slots, k * s.dreams).tolist(),
            np.repeat(seeds_ND, k, axis=0).ravel().tolist(),
            steps=s.steps, temperature=s.temperature,
        )  # fmt: skip
        alive = torch.ones(n * k * s.dreams, device=rollout.device)
        total = torch.zeros_like(alive)
        seen = []
        worth = torch.zeros_like(alive)
        actions = np.zeros(len(alive), np.int64)
        if memory is not None:
            memory = memory.repeat_interleave(k * s.dreams, dim=0)
        for t in range(s.horizon):
            if t < known:
                actions = sequences_NKT[:, :, t].repeat(s.dreams)
            chunk = fork.step([self.prompts[action] for action in actions])
            reward = chunk.reward
            for name, weight in s.signal_weights.items():
                reward = reward + weight * chunk.signals[name]
            total += s.gamma**t * alive * reward
            alive = alive * (1 - chunk.termination_probability)
            if self.value is not None:
                seen.append(chunk.latents)
            if self.guide is not None and memory is not None:
                memory = self.guide.see(memory, chunk.latents)
                actions, worth = self.guide.ask(memory)
        if self.value is not None:
            worth = _checked_worth(self.value(torch.stack(seen, dim=1)), len(alive))
        total += s.gamma**s.horizon * alive * worth
        each: Floats = total.double().cpu().numpy().reshape(n, k, s.dreams)
        return np.asarray(each.mean(axis=2))


def _checked_worth(worth: Any, n: int) -> Tensor:
    """What a value function of the user's returned.

    Raises:
        AgentError: it is no tensor `[n]` of finite numbers; `[n, 1]`, as a linear layer gives it,
            would be spread over all pairs of futures.
    """
    if not isinstance(worth, Tensor) or worth.shape != (n,):
        found = tuple(worth.shape) if isinstance(worth, Tensor) else type(worth).__name__
        raise AgentError(f"the value function returned {found}: a tensor of shape {(n,)} is needed")
    if not worth.isfinite().all():
        raise AgentError("the value function returned NaN or infinity")
    return worth
