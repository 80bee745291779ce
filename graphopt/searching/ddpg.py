"""An agent that decides one choice after the other, each by a number in [0, 1]: deep deterministic policy gradient.

    1 stands for the first option, 0 for the last; what exceeds the limits is lowered by as much for all, and then one by one

An episode goes through the choices in order. The agent sees one at a time, by what is observed of it and its last action. Where
the whole exceeds the limits, all actions are lowered by as much (raised, where there is room), so that what the agent says of
one choice against another is kept. The reward, the same for each step of an episode, is measured:

    r = score of the first episode - score of this one

The agent is an actor, a critic, slow copies of both, noise from a truncated normal distribution that fades after the first
episodes, which are drawn at random, and a moving average of the rewards as baseline.

Papers: Lillicrap et al. 2016, "Continuous Control with Deep Reinforcement Learning" (DDPG); He et al. 2018, "AMC: AutoML for
        Model Compression" (channels); Wang et al. 2019, "HAQ" (bits).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graphopt.searching.greedy import cheapest
from graphopt.searching.problem import Assignment, Problem
from graphopt.searching.sampled import Score
from graphopt.utils.progress import track

WIDTH = 64  # of the hidden layers
MEMORY = 4096  # steps
BATCH = 64
SLOW = 0.01  # share by which the copies follow
RATES = 1e-3, 1e-3  # actor, critic
NOISE, FADING = 0.5, 0.96  # standard deviation at first, and per episode
RANDOM = 0.2  # share of the episodes that are drawn at random
MOVING = 0.95  # of the baseline
Numbers = npt.NDArray[np.float64]
Fit = Callable[[Sequence[float]], tuple[list[float], Assignment]]


def ddpg(problem: Problem, score: Score | None = None, evaluations: int = 500, seed: int = 0) -> Assignment | None:
    """The best by `score` (less is better; None: the damage) of so many episodes; None where nothing keeps the limits."""
    sizes = [len(choice.options) for choice in problem.choices]
    if not problem.keeps(cheapest(problem)):
        return None

    def fit(actions: Sequence[float]) -> tuple[list[float], Assignment]:
        return within(actions, sizes, problem.keeps, lambda drawn: _lowered(problem, drawn))

    known = episodes(_observations(problem), fit, score or problem.damage, evaluations, seed)
    kept = [assignment for assignment in known if problem.keeps(assignment)]
    return min(kept, key=known.__getitem__, default=None)


def episodes(seen: Numbers, fit: Fit, score: Score, count: int, seed: int) -> dict[Assignment, float]:
    """What so many episodes scored.

    Args:
        seen: what the agent sees of each choice, [choices, features] in [0, 1].
        fit: actions in [0, 1] -> those that keep the limits, and the assignment they stand for.
        score: less is better; asked once for each assignment.
    """
    draw = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = Agent(seen.shape[1] + 1)
    known: dict[Assignment, float] = {}
    first = baseline = 0.0
    for episode in track(range(count), "agent"):
        warm = episode < RANDOM * count
        noise = NOISE * FADING ** (episode - RANDOM * count)
        states, actions, before = [], [], 0.0
        for features in seen:
            states.append([*features, before])
            before = float(draw.uniform()) if warm else _near(agent.act(states[-1]), noise, draw)
            actions.append(before)
        actions, assignment = fit(actions)
        if assignment not in known:
            known[assignment] = score(assignment)
        first = first if episode else known[assignment]
        reward = first - known[assignment]
        baseline = reward if not episode else MOVING * baseline + (1 - MOVING) * reward
        agent.remember(states, actions, reward)
        if not warm:
            agent.learn(len(seen), baseline, draw)
    return known


def within(
    actions: Sequence[float],
    sizes: Sequence[int],
    keeps: Callable[[Assignment], bool],
    lowered: Callable[[list[int]], Assignment],
) -> tuple[list[float], Assignment]:
    """The actions lowered, or raised, by as much for all as the limits ask for, and the assignment they stand for.

    Args:
        keeps: whether an assignment keeps the limits. lowered: what does not, choice by choice, until it does.
    """
    low, high = -1.0, 1.0  # the first keeps them if anything does
    for _ in range(12):
        middle = (low + high) / 2
        shifted = tuple(_index(action + middle, size) for action, size in zip(actions, sizes, strict=True))
        low, high = (middle, high) if keeps(shifted) else (low, middle)
    assignment = lowered([_index(action + low, size) for action, size in zip(actions, sizes, strict=True)])
    return [min(max(action + low, 0.0), 1.0) for action in actions], assignment


def _lowered(problem: Problem, drawn: list[int]) -> Assignment:
    """The last choices first, each as cheap as it gets, until the limits are kept."""
    now = list(drawn)
    for number in reversed(range(len(now))):
        if problem.keeps(tuple(now)):
            break
        options = range(len(problem.choices[number].options))
        now[number] = min(options, key=lambda option: problem.excess((*now[:number], option, *now[number + 1 :])))
    return tuple(now)


def _observations(problem: Problem) -> Numbers:
    """Of each choice its place, how many options it has, what each limited cost saves by its cheapest, and its worst damage."""
    rows = []
    for number, choice in enumerate(problem.choices):
        options = range(1, len(choice.options))
        changes = [
            min((problem.change(name, problem.first, number, option) for option in options), default=0.0) / limit
            for name, limit in problem.limits.items()
        ]
        rows.append([number, len(choice.options), *changes, max(option.damage for option in choice.options)])
    return scaled(np.array(rows, dtype=np.float64))


def scaled(found: Numbers) -> Numbers:
    """Every feature from 0 to 1: [choices, features]."""
    low, high = found.min(0), found.max(0)
    between: Numbers = (found - low) / np.where(high > low, high - low, 1.0)
    return between


def _index(action: float, options: int) -> int:
    """1: the first option."""
    return min(options - 1, max(0, int((1 - action) * options)))


def _near(action: float, noise: float, draw: np.random.Generator) -> float:
    """From a normal distribution cut off at 0 and 1."""
    for _ in range(100):
        found = float(draw.normal(action, noise))
        if 0 <= found <= 1:
            return found
    return min(max(action, 0.0), 1.0)


class Agent:
    """Actor and critic, their slow copies, and the steps they learn from."""

    def __init__(self, features: int) -> None:
        self.actor, self.critic = _mlp(features, nn.Sigmoid()), _mlp(features + 1, nn.Identity())
        self.slow_actor, self.slow_critic = _mlp(features, nn.Sigmoid()), _mlp(features + 1, nn.Identity())
        self.slow_actor.load_state_dict(self.actor.state_dict())
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.optimizers = [
            torch.optim.Adam(net.parameters(), rate) for net, rate in zip((self.actor, self.critic), RATES, strict=True)
        ]
        self.steps: deque[tuple[list[float], float, float, list[float], float]] = deque(maxlen=MEMORY)

    def act(self, state: Sequence[float]) -> float:
        with torch.no_grad():
            return float(self.actor(torch.tensor([state], dtype=torch.float32)))

    def remember(self, states: Sequence[list[float]], actions: Sequence[float], reward: float) -> None:
        for number, (state, action) in enumerate(zip(states, actions, strict=True)):
            last = number + 1 == len(states)
            following = state if last else [*states[number + 1][:-1], action]
            self.steps.append((state, action, reward, following, float(last)))

    def learn(self, times: int, baseline: float, draw: np.random.Generator) -> None:
        with torch.enable_grad():
            for _ in range(times):
                picked = [self.steps[i] for i in draw.integers(len(self.steps), size=BATCH)]
                parts = [torch.tensor(np.array(part), dtype=torch.float32) for part in zip(*picked, strict=True)]
                self._learn(parts, baseline)

    def _learn(self, parts: Sequence[Tensor], baseline: float) -> None:
        s, a, r, following, last = parts
        with torch.no_grad():
            later = self.slow_critic(torch.cat([following, self.slow_actor(following)], 1))[:, 0]
            aim = r - baseline + (1 - last) * later
        actor, critic = self.optimizers
        critic.zero_grad()
        (self.critic(torch.cat([s, a[:, None]], 1))[:, 0] - aim).square().mean().backward()
        critic.step()
        actor.zero_grad()
        (-self.critic(torch.cat([s, self.actor(s)], 1)).mean()).backward()
        actor.step()
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
            with torch.no_grad():
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.lerp_(q, SLOW)


def _mlp(features: int, end: nn.Module) -> nn.Sequential:
    hidden = (nn.Linear(features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 1), end)
