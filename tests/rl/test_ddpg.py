"""DDPG: updates against a plain loop, noise that vanishes, draws for episodes."""

import copy

import numpy as np
import pytest
import torch
from rl_cases import Corridor
from torch.func import functional_call, jacrev

from vogn.errors import StoppedError
from vogn.rl import DDPG, DDPGSettings, Environments, SpaceMismatchError, run_agent

TINY = {"hidden": (8,), "batch_size": 8, "warmup": 10, "capacity": 100}


def real():
    return Corridor(True)


def build(exploration="posterior", count=1, **options):
    settings = DDPGSettings(**TINY | options)
    return DDPG(Environments(real, count=count), settings, exploration=exploration)


@pytest.mark.parametrize("exploration", ["posterior", "action"])
def test_a_killed_run_ends_with_the_same_weights(exploration, tmp_path):
    whole = build(exploration, 2)
    expected = run_agent(whole, real, steps=60)
    calls = iter(range(19))
    with pytest.raises(StoppedError):
        run_agent(build(exploration, 2), real, steps=60, folder=tmp_path, should_stop=lambda: next(calls, None) is None)
    resumed = build(exploration, 2)
    assert run_agent(resumed, real, steps=60, folder=tmp_path) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True))


def test_updates_are_those_of_a_plain_loop():
    """Critic by Adam, actor by Adam up the critic, slow targets."""
    agent = build("none")
    run_agent(agent, real, steps=9)
    twin = copy.deepcopy(agent)
    environments = Environments(real, seed=4)
    step, _ = environments.step(torch.tensor([[0.5]]))
    agent.observe(step)
    agent.observe(environments.step(torch.tensor([[-1.0]]))[0])
    twin.buffer.add(step)
    actor, critic = torch.optim.Adam(twin.network.parameters(), 1e-3), torch.optim.Adam(twin.critic.parameters(), 1e-3)
    for number in range(2):
        if number == 1:
            twin.buffer.load_state_dict(agent.buffer.state_dict())
        batch = twin.buffer.batch(8, twin.generator)
        x, later = batch["observations"], batch["following"]
        scaled = (batch["actions"] + 0.5) / 1.5  # bounds -2 and 1
        target_actor, target_critic = twin.target
        with torch.no_grad():
            value = target_critic(torch.cat([later, target_actor(later)], 1))[:, 0]
            wanted = batch["rewards"] + 0.98 * torch.where(batch["terminated"], 0.0, 1.0) * value
        critic.zero_grad()
        ((twin.critic(torch.cat([x, scaled], 1))[:, 0] - wanted) ** 2).mean().backward()
        critic.step()
        actor.zero_grad()
        (-twin.critic(torch.cat([x, twin.network(x)], 1)).mean()).backward()
        actor.step()
        with torch.no_grad():
            for old, new in zip(twin.target, (twin.network, twin.critic), strict=True):
                for p, q in zip(old.parameters(), new.parameters(), strict=True):
                    p.copy_(0.99 * p + 0.01 * q)
    assert agent.updates == 2
    for one, other in ((agent.network, twin.network), (agent.critic, twin.critic), (agent.target, twin.target)):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_infinite_precision_acts_like_the_mean():
    agent = build(precision=1e14, ess=1e14)
    run_agent(agent, real, steps=40)
    agent._acting = [{}]  # the last draw was made before the latest updates
    x = torch.randn(1, 3)
    torch.testing.assert_close(agent.act(x), agent.best(x), rtol=1e-5, atol=1e-5)


def test_spread_of_actions_is_that_of_the_linearised_network():
    agent = build(precision=1e6, ess=1e6)
    run_agent(agent, real, steps=40)
    x = torch.randn(1, 3)
    actions = []
    for _ in range(600):
        agent._acting = [{}]
        actions.append(float(agent.act(x)))
    mean = {name: p.detach() for name, p in agent.network.named_parameters()}
    slopes = jacrev(lambda w: agent._to_environment(functional_call(agent.network, w, (x,))))(mean)
    variance = agent.actor_optimizer.posterior().functional_variance(slopes)
    expected = float(variance) ** 0.5
    # the standard deviation of 600 draws has a relative error of about 1 / sqrt(1200)
    assert np.std(actions) == pytest.approx(expected, rel=4 / 1200**0.5)


def test_weights_stay_for_an_episode():
    agent = build(count=2)
    run_agent(agent, real, steps=40)
    agent._acting = [{}, {}]
    x = torch.zeros(2, 3)
    first, second = agent.act(x), agent.act(x)
    assert torch.equal(first, second) and float(first[0]) != float(first[1])


def test_bad_input_is_refused():
    with pytest.raises(SpaceMismatchError, match="needs real actions"):
        DDPG(Environments(Corridor))
    with pytest.raises(ValueError, match="exploration='ou'"):
        build("ou")
    with pytest.raises(ValueError, match="polyak=0"):
        DDPGSettings(polyak=0.0)
    with pytest.raises(ValueError, match="precision=0"):
        DDPGSettings(precision=0.0)
