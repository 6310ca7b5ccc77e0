"""One engine, one flag: as the effective sample size grows, variational becomes deterministic."""

import pytest
import torch
from torch import nn

from vogn import METHODS, NaturalGradient
from vogn.capture.statistics import REGISTRY as STATISTICS
from vogn.capture.statistics import Price
from vogn.errors import UnsupportedObservationError
from vogn.structures import (
    Dense,
    Diagonal,
    DiagonalLowRank,
    EigenKronecker,
    GradientWindow,
    Gram,
    Identity,
    Kronecker,
    LocalFisher,
    SwiftKronecker,
)

PRICE = {"ivon", "evon"}

STRUCTURES = {
    "identity": Identity(),
    "diagonal": Diagonal(negative="retract"),
    "dense": Dense(negative="retract"),
    "kronecker exact": Kronecker(),
    "kronecker factored": Kronecker(damping="factored"),
    "eigen kronecker": EigenKronecker(negative="retract"),
    "eigen contraction": EigenKronecker(basis="contraction", restart=False, negative="retract"),
    "diagonal low rank": DiagonalLowRank(rank=3),
    "gram": Gram(window=12),
    "gradient window": GradientWindow(window=4, columns=2),
    "truncated gradient window": GradientWindow(window=4, law="average", keep=2),
    "swift kronecker": SwiftKronecker(rank=2),
    "local fisher": LocalFisher(),
    "local fisher nystrom": LocalFisher(root="nystrom", columns=2),
    "local fisher iteration": LocalFisher(root="denman_beavers"),
    "local fisher unit": LocalFisher(scope="unit"),
}
PAIRS_ONLY = {  # need layer inputs and output gradients
    "kronecker exact",
    "kronecker factored",
    "eigen kronecker",
    "swift kronecker",
    *(name for name in STRUCTURES if name.startswith("local fisher")),
}
ROWS_ONLY = {name for name, structure in STRUCTURES.items() if "probe" not in structure.OBSERVES}
TIKHONOV = 0.05


def legal(structure, statistic, partition):
    if statistic == "inputs" and "gradients" in STRUCTURES[structure].reads:
        return False
    if statistic == "hutchinson":
        return structure not in ROWS_ONLY
    return not (structure in PAIRS_ONLY and (statistic == "gradient" or partition == "model"))


def unique_basis(structure, partition):
    """The eigenbasis of the gradients' contractions is not unique where these have no full rank: any noise, however
    small, then turns it, and the stored diagonal with it. One block over the model never has full rank here."""
    return structure != "eigen contraction" or partition == "layer"


COMBINATIONS = [
    (structure, statistic, partition)
    for structure in STRUCTURES
    for statistic in STATISTICS
    for partition in ("layer", "model")
    if statistic != "price"
]
LEGAL = [c for c in COMBINATIONS if legal(*c) and unique_basis(c[0], c[2])]
ILLEGAL = [c for c in COMBINATIONS if not legal(*c)]


def engine(model, structure, statistic, partition, **options):
    return NaturalGradient(
        model,
        STRUCTURES[structure],
        statistic,
        lr=0.05,
        weight_decay=TIKHONOV,
        damping=TIKHONOV,
        curvature_decay=0.8,
        initial_curvature=1.0,
        refresh_every=3,
        partition=partition,
        **options,
    )


@pytest.mark.parametrize(("structure", "statistic", "partition"), LEGAL)
def test_variational_becomes_deterministic_for_every_structure_and_statistic(tools, structure, statistic, partition):
    results = []
    for options in ({"variational": False}, {"variational": True, "ess": 1e24}):
        model = tools.square_network() if structure == "eigen contraction" else tools.network()
        start = tools.weights(model)
        opt = engine(model, structure, statistic, partition, **options)
        tools.train(opt, model, 20)
        results.append(tools.weights(model))
    for name, deterministic in results[0].items():
        torch.testing.assert_close(results[1][name], deterministic, rtol=1e-8, atol=1e-9)
        frozen = name == "4.weight"
        assert torch.allclose(deterministic, start[name], atol=1e-3) == frozen, "the run must go somewhere"


@pytest.mark.parametrize(("structure", "statistic", "partition"), ILLEGAL)
def test_other_combinations_are_refused_when_the_optimizer_is_built(tools, structure, statistic, partition):
    with pytest.raises(UnsupportedObservationError):
        engine(tools.network(), structure, statistic, partition, variational=False)


@pytest.mark.parametrize("method", sorted(name for name in set(METHODS) - PRICE if not METHODS[name].sets_groups))
def test_variational_becomes_deterministic_for_every_method(tools, method):
    results = []
    for options in ({"variational": False, "ess": None}, {"variational": True, "ess": 1e26}):
        model = tools.network()
        tools.train(tools.build(method, model, **options), model, 20)
        results.append(tools.weights(model))
    for name, deterministic in results[0].items():
        torch.testing.assert_close(results[1][name], deterministic, rtol=1e-8, atol=1e-9)


def test_the_noise_is_there_at_a_finite_sample_size(tools):
    """Otherwise the limits above would hold for an engine without noise."""
    for method in sorted(set(METHODS) - PRICE):
        results = []
        for options in ({"variational": False}, {"variational": True}):
            model = tools.network()
            tools.train(tools.build(method, model, **options), model, 4)
            results.append(torch.cat([p.flatten() for p in tools.weights(model).values()]))
        assert float((results[0] - results[1]).abs().max()) > 1e-5, method


def price_engine(model, kind, **options):
    """Price with every structure that takes probes."""
    structure = {
        "diagonal": Diagonal(negative="retract"),
        "dense": Dense(negative="retract"),
        "eigen": EigenKronecker(negative="retract", restart=False),
    }[kind]
    return NaturalGradient(
        model,
        structure,
        Price(),
        lr=0.05,
        weight_decay=TIKHONOV,
        curvature_decay=0.8,
        initial_curvature=1.0,
        partition="model" if kind == "dense" else "layer",
        **options,
    )


def price_pair(tools, build, steps):
    """The same run with antithetic pairs at a large sample size, and in deterministic mode."""
    results = []
    for options, contexts in (
        ({"variational": True, "ess": 1e8, "mc_samples": 2, "antithetic": True}, 2),
        ({"variational": False, "ess": None}, 1),
    ):
        model = tools.square_network()
        opt = build(model, seed=5, **options)
        tools.train(opt, model, steps, contexts=contexts)
        results.append((tools.weights(model), tools.curvature(opt)))
    return results


@pytest.mark.parametrize("kind", ["diagonal", "dense", "eigen"])
def test_prices_twin_is_the_limit_of_an_antithetic_pair(tools, kind):
    """Observation for observation: the error is of the order of the squared displacement, 1 / ess."""
    (_, pair), (_, twin) = price_pair(tools, lambda model, **options: price_engine(model, kind, **options), 1)
    for name, state in twin.items():
        for key, leaf in state.items():
            torch.testing.assert_close(pair[name][key], leaf, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", sorted(PRICE))
def test_the_deterministic_twins_of_ivon_and_evon_follow_their_antithetic_limit(tools, method):
    def build(model, **options):
        return tools.build(method, model, curvature_decay=0.9, initial_curvature=1.0, **options)

    (pair, _), (twin, _) = price_pair(tools, build, 20)
    for name, mean in twin.items():
        torch.testing.assert_close(pair[name], mean, rtol=1e-4, atol=1e-5)


def test_prices_variance_grows_with_the_sample_size_but_its_mean_is_the_hessian(tools):
    """Why Price has a twin: on a quadratic the product is d H d + d g ess-scaled; the second part is pure noise."""
    x, y = tools.normal(6, 2), tools.normal(6, 1, seed=1)
    hessian = x.square().mean(0)
    spread = []
    for ess in (10.0, 1000.0):
        products = []
        for seed in range(200):
            model = tools.fill(nn.Linear(2, 1, bias=False).double())
            opt = NaturalGradient(
                model,
                Diagonal(negative="clamp"),
                Price(),
                lr=0.0,
                ess=ess,
                weight_decay=1e-12,
                curvature_decay=0.0,
                initial_curvature=1.0,
                partition="parameter",
                seed=seed,
            )
            before = model.weight.detach().clone()
            with opt.sampled_params():
                displacement = model.weight.detach() - before
                (0.5 * (model(x) - y).square().mean()).backward()
            products.append((ess * displacement * model.weight.grad).flatten())
            opt.step()
            expected = products[-1].clamp_min(0.0)
            torch.testing.assert_close(tools.curvature(opt)["weight"]["c"].flatten(), expected, rtol=1e-10, atol=1e-10)
        stacked = torch.stack(products)
        error = stacked.std(0) / 200**0.5
        assert bool(((stacked.mean(0) - hessian).abs() < 4 * error).all())
        spread.append(float(stacked.var(0).sum()))
    assert spread[1] > 10 * spread[0]
