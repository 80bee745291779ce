"""The assignment that a reinforcement-learning agent finds under a budget, as in HAQ.

An episode goes through the decisions in execution order. The agent sees one at a time (`observations`: layer index, channels in
and out, kernel, stride, size of the feature map, number of weights, depthwise or not, weights or activations; its last action)
and answers with an action in [0, 1], which stands for one of the choices in order. Where the whole is over the budget, the bits
are lowered until it is not. The reward, the same for each step of an episode, is measured:

    r = -log(divergence of the network / that of the first episode)

Here the whole episode is lowered (or raised, where it is under the budget) by the same action, so that what the agent says of one
decision against another is kept, and then one by one.

The agent is a deep deterministic policy gradient: an actor, a critic, slow copies of both, noise from a truncated normal
distribution that fades after the first episodes, which are drawn at random, and a moving average of the rewards as baseline.

Papers: Wang et al. 2019, "HAQ: Hardware-Aware Automated Quantization", section 3; Lillicrap et al. 2016, "Continuous Control with
        Deep Reinforcement Learning" (DDPG).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from graphopt.ir.calls import shape
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.cost import Cost, Numbers, lowered
from graphopt.passes.quantization.mixed.space import Decision, Space, stored
from graphopt.utils.progress import track

WIDTH = 64  # of the hidden layers
MEMORY = 4096  # steps
BATCH = 64
SLOW = 0.01  # share by which the copies follow
RATES = 1e-3, 1e-3  # actor, critic
NOISE, FADING = 0.5, 0.96  # standard deviation at first, and per episode
RANDOM = 0.2  # share of the episodes that are drawn at random
MOVING = 0.95  # of the baseline


def search(
    space: Space, cost: Cost, divergence: Callable[[Sequence[int]], float], episodes: int, seed: int
) -> tuple[int, ...]:
    """The best assignment of all episodes; it meets the budget if any can.

    Args:
        divergence: measured, of the network with an assignment.
    """
    seen = observations(space)
    sizes = [len(d.choices) for d in space.decisions]
    draw = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = _Agent(seen.shape[1] + 1)
    known: dict[tuple[int, ...], float] = {}
    first = baseline = 0.0
    for episode in track(range(episodes), "agent"):
        warm = episode < RANDOM * episodes
        noise = NOISE * FADING ** (episode - RANDOM * episodes)
        states, actions, before = [], [], 0.0
        for features in seen:
            states.append([*features, before])
            before = float(draw.uniform()) if warm else _near(agent.act(states[-1]), noise, draw)
            actions.append(before)
        actions, assignment = within(actions, sizes, cost)
        if assignment not in known:
            known[assignment] = math.log(max(divergence(assignment), 1e-12))
        first = first if episode else known[assignment]
        reward = first - known[assignment]
        baseline = reward if not episode else MOVING * baseline + (1 - MOVING) * reward
        agent.remember(states, actions, reward)
        if not warm:
            agent.learn(len(seen), baseline, draw)
    return min(known, key=lambda assignment: known[assignment])


def within(actions: Sequence[float], sizes: Sequence[int], cost: Cost) -> tuple[list[float], tuple[int, ...]]:
    """The actions lowered, or raised, by as much for all as the budget asks for, and the assignment they stand for."""
    low, high = -1.0, 1.0  # the first is within the budget if anything is
    for _ in range(12):
        middle = (low + high) / 2
        shifted = tuple(_index(action + middle, size) for action, size in zip(actions, sizes, strict=True))
        low, high = (middle, high) if cost.meets(shifted) else (low, middle)
    assignment = lowered([_index(action + low, size) for action, size in zip(actions, sizes, strict=True)], cost)
    return [min(max(action + low, 0.0), 1.0) for action in actions], assignment


def observations(space: Space) -> Numbers:
    """Of every decision what the agent sees of it, each feature scaled to [0, 1]: [decisions, 9]."""
    found = np.array([[number, *_features(d)] for number, d in enumerate(space.decisions)], dtype=np.float64)
    low, high = found.min(0), found.max(0)
    scaled: Numbers = (found - low) / np.where(high > low, high - low, 1.0)
    return scaled


def _features(decision: Decision) -> list[float]:
    layer = Layer.of(decision.nodes[0])
    if layer is None:  # activations
        sizes = [size for size in shape(decision.nodes[0])[1:] if isinstance(size, int)]
        channels = sizes[0] if sizes else 1
        return [channels, channels, 1, 1, math.prod(sizes[1:]) ** 0.5, 0, 0, 1]
    features = [size for size in shape(layer.input)[2:] if isinstance(size, int)] if layer.dims else []
    kernel = math.prod(shape(layer.weight)[2:]) if layer.dims else 1
    stride = math.prod(layer.stride) if layer.dims else 1
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    weights = decision.kind == "weights"
    return [
        layer.in_channels, layer.out_channels, kernel, stride, math.prod(features) ** 0.5, stored(decision) * weights, depthwise,
        not weights,
    ]  # fmt: skip


def _index(action: float, choices: int) -> int:
    """1: the most bits, which come first."""
    return min(choices - 1, max(0, int((1 - action) * choices)))


def _near(action: float, noise: float, draw: np.random.Generator) -> float:
    """From a normal distribution cut off at 0 and 1."""
    for _ in range(100):
        found = float(draw.normal(action, noise))
        if 0 <= found <= 1:
            return found
    return min(max(action, 0.0), 1.0)


class _Agent:
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
