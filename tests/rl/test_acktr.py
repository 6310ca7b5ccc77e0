"""The joint likelihood, advantages, and the bound on the divergence of a step."""

import numpy as np
import pytest
import torch
from rl_cases import Corridor
from torch.distributions import Categorical, Normal, kl_divergence

import vogn
from vogn.optim.kfac import KFAC
from vogn.rl import ACKTR, ACKTRSettings, ActorCritic, Environments, evaluate_agent, run_agent
from vogn.rl.acktr import SLACK
from vogn.rl.advantages import advantages

KINDS = {
    "discrete": (ActorCritic(3, critic_noise=0.7), 4),
    "real": (ActorCritic(None, 2, critic_noise=0.7), 5),
    "no critic": (ActorCritic(3, critic=False), 3),
}


def case(name, rows=6):
    likelihood, width = KINDS[name]
    outputs = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return likelihood, outputs, likelihood.sample(outputs, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
def test_terms_are_those_of_torch_distributions(name):
    likelihood, outputs, targets = case(name)
    if name == "real":
        policy = Normal(outputs[:, :2], outputs[:, 2:4].exp())
        expected = -policy.log_prob(targets[:, :2]).sum(1)
    else:
        expected = -Categorical(logits=outputs[:, :3]).log_prob(targets[:, 0])
    if likelihood.critic:
        expected = expected - Normal(outputs[:, -1], 0.7).log_prob(targets[:, -1])
    torch.testing.assert_close(likelihood.terms(outputs, targets), expected)


@pytest.mark.parametrize("name", KINDS)
def test_score_is_the_gradient_of_the_terms(name):
    likelihood, outputs, targets = case(name)
    outputs.requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.terms(outputs, targets).sum(), outputs)
    torch.testing.assert_close(likelihood.score(outputs.detach(), targets), expected)


@pytest.mark.parametrize("name", KINDS)
def test_fisher_is_the_covariance_of_the_score(name):
    likelihood, outputs, _ = case(name, rows=1)
    many = outputs.expand(200_000, -1)
    score = likelihood.score(many, likelihood.sample(many, torch.Generator().manual_seed(3)))
    products = torch.einsum("ni,nj->nij", score, score)
    error = products.std(0) / len(many) ** 0.5
    difference = (products.mean(0) - likelihood.hessian(outputs)[0]).abs()
    assert bool((difference <= 5 * error + 1e-12).all())


def test_fisher_of_a_softmax_and_of_a_unit_variance_critic():
    likelihood = ActorCritic(3)
    outputs = torch.randn(4, 4, dtype=torch.float64)
    p = torch.softmax(outputs[:, :3], 1)
    found = likelihood.hessian(outputs)
    torch.testing.assert_close(found[:, :3, :3], torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    assert found[:, 3, 3].tolist() == [1.0] * 4
    assert float(found[:, 3, :3].abs().max()) == 0


@pytest.mark.parametrize("name", ["discrete", "real"])
def test_divergence_and_entropy_are_those_of_torch_distributions(name):
    likelihood, outputs, _ = case(name)
    policy, _ = likelihood.split(outputs)
    other = policy.flip(0)
    if name == "real":
        p, q = (Normal(z[:, :2], z[:, 2:].exp()) for z in (policy, other))
        expected, entropy = kl_divergence(p, q).sum(1), p.entropy().sum(1)
    else:
        p, q = Categorical(logits=policy), Categorical(logits=other)
        expected, entropy = kl_divergence(p, q), p.entropy()
    torch.testing.assert_close(likelihood.kl(policy, other), expected)
    torch.testing.assert_close(likelihood.entropy(policy), entropy)


def test_advantages_are_discounted_sums_of_errors_until_the_end_of_the_episode():
    generator = torch.Generator().manual_seed(0)
    rewards, values, following = (torch.randn(7, 2, generator=generator) for _ in range(3))
    terminated = torch.zeros(7, 2, dtype=torch.bool)
    ended = torch.zeros(7, 2, dtype=torch.bool)
    terminated[2, 0] = ended[2, 0] = ended[4, 1] = True  # copy 1 is truncated after step 4
    found = advantages(rewards, values, following, terminated, ended, 0.9, 0.8)
    for i in range(2):
        for t in range(7):
            total, weight = 0.0, 1.0
            for k in range(t, 7):
                later = 0.0 if terminated[k, i] else float(following[k, i])
                total += weight * (float(rewards[k, i]) + 0.9 * later - float(values[k, i]))
                if ended[k, i]:
                    break
                weight *= 0.72
            assert float(found[t, i]) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_measured_divergence_stays_within_the_bound(shared, real):
    delta = 1e-2 if real else 1e-3
    environments = Environments(lambda: Corridor(real), count=4)
    settings = ACKTRSettings(hidden=(16,), rollout=10, shared=shared, delta=delta, critic_steps=1)
    agent = ACKTR(environments, settings)
    measured = []
    for number in range(150):
        agent.observe(environments.step(agent.act(environments.observations))[0])
        if number % 10 == 9:
            measured.append(agent.last_kl)
    assert max(measured) <= SLACK * delta
    assert max(measured) > 0.3 * delta  # steps are not simply tiny


def test_step_on_one_state_is_the_exact_natural_policy_gradient():
    """One softmax layer, one state: Kronecker factors are exact, so the step is ``F^-1 g`` within the bound."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(1, 3, bias=False).double()
    likelihood = ActorCritic(3, critic=False)
    logits = layer.weight.detach()[:, 0]
    p = torch.softmax(logits, 0)
    fisher = torch.diag(p) - torch.outer(p, p)
    x, actions = torch.ones(8, 1, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 1, 2, 0.0]).double()[:, None]
    advantage = torch.linspace(-1, 1, 8, dtype=torch.float64)
    damping = 1e-6
    for delta in (1e-4, 1e3):  # the bound is active, and it is not
        twin = torch.nn.Linear(1, 3, bias=False).double()
        twin.load_state_dict(layer.state_dict())
        opt = KFAC(twin, lr=0.5, weight_decay=0.0, damping=damping, momentum=0.0, fisher="ggn", kl_clip=2 * delta,
                   factored=False, variational=False)  # fmt: skip
        opt.zero_grad()
        with opt.sampled_params():
            outputs = twin(x)
            opt.observe(outputs, likelihood)
            loss = -(advantage * likelihood.log_prob(outputs, actions)).mean()
            loss.backward()
        g = twin.weight.grad[:, 0].clone()
        opt.step()
        natural = torch.linalg.solve(fisher + damping * torch.eye(3, dtype=torch.float64), g)
        length = min(1.0, float((2 * delta / (0.25 * (natural @ g))) ** 0.5))
        torch.testing.assert_close(twin.weight.detach()[:, 0], logits - 0.5 * length * natural, rtol=1e-8, atol=1e-10)
        if length < 1:
            after = likelihood.kl(logits[None], twin.weight.detach().T)
            assert float(after) == pytest.approx(delta, rel=0.1)


def test_learns_to_walk_right_with_discrete_and_real_actions():
    for real in (False, True):
        def make(real=real):
            return Corridor(real)

        environments = Environments(make, count=8)
        agent = ACKTR(environments, ACKTRSettings(hidden=(16,), rollout=10))
        untrained = np.mean(evaluate_agent(agent, make, episodes=10))
        run_agent(agent, make, steps=2000)
        assert np.mean(evaluate_agent(agent, make, episodes=10)) > max(0.9, untrained)


def test_real_actions_are_scaled_to_their_bounds():
    environments = Environments(lambda: Corridor(True), count=2)
    agent = ACKTR(environments)
    found = agent._to_environment(torch.tensor([[-1.0], [1.0]]))
    assert found.flatten().tolist() == [-2.0, 1.0]
    assert agent._to_environment(torch.tensor([[7.0], [0.0]])).flatten().tolist() == [1.0, -0.5]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="delta=0"):
        ACKTRSettings(delta=0.0)
    with pytest.raises(ValueError, match="gae=3"):
        ACKTRSettings(gae=3.0)
    likelihood = ActorCritic(3)
    with pytest.raises(ValueError, match=r"outputs must be \(N, 4\)"):
        likelihood(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="not finite"):
        likelihood(torch.zeros(2, 4), torch.tensor([[0.0, float("nan")], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"actions range from 0\.0 to 3\.0"):
        likelihood(torch.zeros(2, 4), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))


class TwoHeads(torch.nn.Module):
    """A policy and a value on one trunk."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"trunk": (4, 5), "policy": (5, 3), "value": (5, 1)}
        for name, size in sizes.items():
            self.add_module(name, torch.nn.Linear(*size).double())

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.policy(h), self.value(h)


def test_two_likelihood_calls_on_one_trunk_are_the_joint_likelihood():
    network = TwoHeads()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, dtype=torch.float64, generator=generator)
    actions = torch.randint(3, (20,), generator=generator)
    values = torch.randn(20, 1, dtype=torch.float64, generator=generator)
    found = []
    for joint in (True, False):
        opt = KFAC(network, lr=0.0, fisher="ggn", variational=False, weight_decay=0.0)
        opt.zero_grad()
        with opt.sampled_params():
            policy, value = network(x)
            if joint:
                targets = torch.cat([actions[:, None].double(), values], 1)
                loss = ActorCritic(3)(torch.cat([policy, value], 1), targets)
            else:
                loss = vogn.likelihoods.Categorical()(policy, actions) + vogn.likelihoods.Gaussian(1.0)(value, values)
            loss.backward()
        opt.step()
        weights = [layer.weight for layer in (network.trunk, network.policy, network.value)]
        found.append([opt.state[p]["curvature"][name].clone() for p in weights for name in ("A", "S")])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
