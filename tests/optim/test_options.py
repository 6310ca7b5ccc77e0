"""What every constructor takes and what it refuses, with the exact words."""

import inspect
import math

import pytest
import torch

from vogn import METHODS, NaturalGradient
from vogn.capture.statistics import GGN, Empirical, Gradient, MonteCarlo, Price
from vogn.errors import UnsupportedObservationError
from vogn.optim import steps
from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker

ALL = sorted(METHODS)
PRICE = {"ivon", "evon"}

ILLEGAL_EVERYWHERE = [
    ({"lr": -0.1}, ValueError, r"lr=-0\.1 is out of range: it must lie in \[0, inf\]"),
    ({"lr": math.nan}, ValueError, r"lr=nan is out of range"),
    ({"weight_decay": -1e-4}, ValueError, r"weight_decay=-0\.0001 is out of range: it must lie in \[0, inf\]"),
    ({"damping": -1.0}, ValueError, r"damping=-1\.0 is out of range: it must lie in \[0, inf\]"),
    ({"momentum": 1.0}, ValueError, r"momentum=1\.0 is out of range: it must lie in \[0, 1\]"),
    ({"momentum": -0.1}, ValueError, r"momentum=-0\.1 is out of range"),
    ({"curvature_decay": 1.5}, ValueError, r"curvature_decay=1\.5 is out of range: it must lie in \[0, 1\]"),
    ({"curvature_decay": -0.5}, ValueError, r"curvature_decay=-0\.5 is out of range"),
    ({"mc_samples": 0}, ValueError, r"mc_samples=0 must be a whole number >= 1"),
    ({"mc_samples": 1.5}, ValueError, r"mc_samples=1\.5 must be a whole number >= 1"),
    ({"refresh_every": 0}, ValueError, r"refresh_every=0 must be a whole number >= 1"),
    ({"observe_every": -2}, ValueError, r"observe_every=-2 must be a whole number >= 1"),
    ({"overhead": -0.1}, ValueError, r"overhead=-0\.1 must be a positive share of a step's time, such as 0\.05"),
    ({"ess": 0.0}, ValueError, r"ess=0\.0 must be positive: ess = number of training examples \* augmentation / temp"),
    ({"ess": -5.0}, ValueError, r"ess=-5\.0 must be positive"),
    ({"ess": math.nan}, ValueError, r"ess=nan must be positive"),
    ({"ess": "auto"}, ValueError, r"ess='auto' counts the training examples: pass data=train_loader"),
    ({"ess": "all", "data": 5}, ValueError, r"ess='all': give a number, or 'auto' together with data=train_loader"),
    ({"ess": 5.0, "data": 5}, ValueError, r"data= is for ess='auto', but ess=5\.0; leave one of them out"),
    ({"ess": "auto", "data": [1, 2]}, TypeError, r"a list does not tell whether it holds examples or batches"),
    ({"ess": None}, ValueError, r"needs the effective sample size: pass ess=len\(train_set\), or variational=False"),
    ({"initial_curvature": -1.0}, ValueError, r"initial_curvature=-1\.0 is out of range: it must lie in \[0, inf\]"),
    ({"initial_curvature": "second_batch"}, ValueError, r"initial_curvature='second_batch': choose 'first_batch', 'au"),
    ({"antithetic": True}, ValueError, r"antithetic=True draws mirrored pairs: mc_samples=1 must be even"),
    ({"loss_reduction": "none"}, ValueError, r"loss_reduction='none': choose 'mean' or 'sum'"),
    ({"norms": "frozen"}, ValueError, r"norms='frozen' is unknown; choose 'sampled' or 'point'"),
    ({"learning_rate": 0.1}, TypeError, r"unexpected keyword argument 'learning_rate'"),
]

ILLEGAL = {
    "von": [
        ({"structure": "kronecker"}, ValueError, r"structure='kronecker': choose 'diagonal' or 'dense'"),
        ({"hessian": "exact"}, ValueError, r"hessian='exact': choose 'ggn' or 'price'"),
        ({"ggn_samples": 0}, ValueError, r"ggn_samples=0 must be at least 1, or None for the exact GGN"),
        ({"hessian": "price", "initial_curvature": 0.0}, ValueError, r"the Price statistic learns from its own noise"),
    ],
    "vogn": [
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
        ({"clip_radius": 0.0}, ValueError, r"clip_radius=0\.0 must be positive, or inf for none"),
    ],
    "vadam": [],
    "ivon": [
        ({"initial_curvature": 0.0}, ValueError, r"the Price statistic learns .* give initial_curvature > 0"),
        ({"initial_curvature": "first_batch"}, ValueError, r"the Price statistic learns .* give initial_curvature > 0"),
        ({"clip_radius": 0.0}, ValueError, r"clip_radius=0\.0 must be positive, or inf for none"),
        ({"clip_radius": -1.0}, ValueError, r"clip_radius=-1\.0 must be positive, or inf for none"),
    ],
    "evon": [
        ({"initial_curvature": 0.0}, ValueError, r"the Price statistic learns .* give initial_curvature > 0"),
        ({"basis_decay": 2.0}, ValueError, r"basis_decay=2\.0 must lie in \[0, 1\], or be None"),
        ({"clip_radius": 0.0}, ValueError, r"clip_radius=0\.0 must be positive, or inf for none"),
    ],
    "kfac": [
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
        ({"kl_clip": 0.0}, ValueError, r"kl_clip=0\.0 must be positive, or None for no clipping"),
        ({"kfac_approx": "fold"}, ValueError, r"sharing='fold' is unknown; allowed: 'expand', 'reduce'"),
        ({"partition": "model"}, UnsupportedObservationError, r"Kronecker factors need the inputs .* use partition='l"),
    ],
    "ekfac": [
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
        ({"kl_clip": -1.0}, ValueError, r"kl_clip=-1\.0 must be positive, or None for no clipping"),
    ],
    "slang": [
        ({"rank": 0}, ValueError, r"rank=0 must be at least 1; use Diagonal for rank 0"),
        (
            {"partition": "network"},
            ValueError,
            r"partition='network' is unknown; choose one of layer, parameter, model",
        ),
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
        ({"anneal_power": -0.5}, ValueError, r"anneal_power=-0\.5 is out of range"),
    ],
    "fngd": [
        ({"freeze_after": 0}, ValueError, r"freeze_after=0 must be a whole number >= 1, or None"),
        ({"freeze_after": 1.5}, ValueError, r"freeze_after=1\.5 must be a whole number"),
        ({"examples": 0}, ValueError, r"examples=0 must be a whole number >= 1, or None"),
        ({"share": "row"}, ValueError, r"share='row' is unknown; choose one of index, batch, mean"),
        ({"curvature_decay": 0.5}, ValueError, r"curvature_decay=0\.5 must be 0: coefficients are those of the"),
    ],
    "smw": [
        ({"window": 0}, ValueError, r"Gram: window=0 must be at least 1"),
        ({"curvature_examples": 0}, ValueError, r"curvature_examples=0 must be at least 1, or None"),
        ({"adapt_damping": True, "epsilon": 0.7}, ValueError, r"epsilon=0\.7 must lie in \(0, 0\.5\]"),
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
    ],
    "seng": [
        ({"coordinates": 5}, UnsupportedObservationError, r"SketchedGram cannot sample; use variational=False or"),
        ({"coordinates": 5, "rows": 0.5}, ValueError, r"coordinates=5 and rows=0\.5: SENG has one of them at a time"),
        ({"implicit_above": 5, "rows": 3}, ValueError, r"implicit_above=5 and rows=3: SENG has one of them at a time"),
        ({"implicit_above": -1}, ValueError, r"PairGram: positions=16 must be at least 1 and above=-1 at least 0"),
        ({"implicit_above": 5, "positions": 0}, ValueError, r"PairGram: positions=0 must be at least 1"),
        ({"implicit_above": 5, "coordinates": 5}, UnsupportedObservationError, r"SketchedPairGram cannot sample; use"),
        ({"coordinates": 0, "variational": False}, ValueError, r"coordinates=0 must be at least 1; use Gram"),
        ({"rows": 0}, ValueError, r"SampledGram: rank=0 must be a whole number of at least 1"),
        ({"window": 0}, ValueError, r"Gram: window=0 must be at least 1"),
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
    ],
    "hylo": [
        ({"compression": "kid"}, UnsupportedObservationError, r"InterpolativeGram cannot sample; use variational"),
        ({"compression": "qr"}, ValueError, r"compression='qr': choose one of nystrom, kid, kis, hybrid, kid_kis"),
        ({"compression": "kid_kis"}, UnsupportedObservationError, r"SwitchedInterpolativeGram cannot sample; use va"),
        ({"switch_every": 0}, ValueError, r"every=0 must be a whole number of steps >= 1"),
        ({"threshold": -0.1}, ValueError, r"threshold=-0\.1 must be at least 0"),
        ({"rank": 1.5}, ValueError, r"CompressedGram: rank=1\.5 must be a whole number of at least 1"),
        ({"window": 0}, ValueError, r"CompressedGram: window=0 must be at least 1"),
        ({"kl_clip": 0.0}, ValueError, r"kl_clip=0\.0 must be positive, or None for no clipping"),
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
    ],
    "gram_gauss_newton": [({"ggn_samples": 0}, ValueError, r"ggn_samples=0 must be at least 1, or None")],
    "lissa": [
        ({"depth": -1}, ValueError, r"depth=-1 must be at least 0"),
        ({"scale": 0.0}, ValueError, r"scale=0\.0 must be positive, or None"),
        ({"rows_per_term": 0}, ValueError, r"rows=0 at least 1 or None"),
        ({"products": "fisher"}, ValueError, r"products='fisher': choose 'rows' or 'hessian'"),
        ({"products": "hessian"}, UnsupportedObservationError, r"may be indefinite, .* use variational=False"),
        ({"products": "hessian", "variational": False, "rows_per_term": 0}, ValueError, r"examples=0 at least 1 or"),
    ],
    "kalman": [
        ({"momentum": 0.5}, ValueError, r"momentum must be 0: the Kalman filter has none"),
    ],
    "mfac": [
        ({"window": 0}, ValueError, r"GradientWindow: window=0 must be at least 1"),
        ({"inverse": "lu"}, ValueError, r"inverse='lu' is unknown; allowed: 'cholesky', 'static', 'dynamic'"),
        ({"batch_size": 0}, ValueError, r"batch_size=0 must be a positive number"),
    ],
    "ggt": [
        ({"window": 0}, ValueError, r"GradientWindow: window=0 must be at least 1"),
        ({"batch_size": math.inf}, ValueError, r"batch_size=inf must be a positive number"),
        ({"pinv": True, "structure": {"0": "diagonal"}}, UnsupportedObservationError, r"has no pseudo-inverse"),
    ],
    "tonga": [
        ({"rank": 0}, ValueError, r"rank=0 must be at least 1"),
        ({"truncate_every": 0}, ValueError, r"truncate_every=0 must be at least 1"),
        ({"partition": "neuron"}, ValueError, r"partition='neuron' is unknown; choose one of layer, parameter, model"),
        ({"batch_size": -1}, ValueError, r"batch_size=-1 must be a positive number"),
    ],
    "skfac": [
        ({"fisher": "true"}, ValueError, r"fisher='true': choose one of mc, empirical, ggn"),
        ({"kl_clip": 0.0}, ValueError, r"kl_clip=0\.0 must be positive, or None for no clipping"),
        ({"kfac_approx": "fold"}, ValueError, r"sharing='fold' is unknown; allowed: 'expand', 'reduce'"),
        ({"rank": 0}, ValueError, r"SwiftKronecker: rank=0 must be at least 1, or None for all directions"),
        ({"stride": 0}, ValueError, r"SwiftKronecker: stride=0 must be at least 1"),
        ({"partition": "model"}, UnsupportedObservationError, r"Kronecker factors need the inputs .* use partition='l"),
    ],
    "sngd": [
        ({"metric": "outputs"}, ValueError, r"metric='outputs': choose 'inputs' or 'rfim_unit'"),
        ({"root": "newton"}, ValueError, r"root='newton' is unknown; allowed: 'eigh', 'nystrom', 'denman_beavers'"),
        ({"columns": 0}, ValueError, r"LocalFisher: columns=0 must be at least 1"),
        (
            {"structure": {"0": "diagonal"}},
            UnsupportedObservationError,
            r"block '0\.weight': Diagonal reads gradients, which the statistic 'inputs' does not give",
        ),
        ({"partition": "model"}, UnsupportedObservationError, r"Kronecker factors need the inputs .* use partition='l"),
    ],
}

LEGAL_EVERYWHERE = [
    {},
    {"lr": 0.0},
    {"lr": torch.tensor(0.01)},
    {"weight_decay": 0.5, "damping": 0.0},
    {"momentum": 0.0},
    {"curvature_decay": 0.0},
    {"mc_samples": 2, "antithetic": True},
    {"initial_curvature": 2.0},
    {"initial_curvature": "auto"},
    {"ess": "auto", "data": 100},
    {"refresh_every": 7, "observe_every": 2},
    {"norms": "point"},
    {"norms": "sampled"},
    {"variational": False, "ess": None},
    {"seed": 12345},
]

LEGAL = {
    "von": [
        {"structure": "dense"},
        {"ggn_samples": 2},
        {"hessian": "price"},
        {"hessian": "price", "structure": "dense"},
    ],
    "vogn": [{"fisher": "mc"}, {"fisher": "ggn"}, {"clip_radius": 0.1}],
    "vadam": [],
    "ivon": [{"clip_radius": 0.1}, {"clip_radius": math.inf}, {"rescale_lr": False}],
    "evon": [{"clip_radius": 0.1}, {"basis_decay": 0.0}, {"rescale_lr": False}],
    "kfac": [
        {"factored": False},
        {"kfac_approx": "reduce"},
        {"kl_clip": None},
        {"fisher": "ggn"},
        {"curvature_examples": 2},
    ],
    "ekfac": [{"factored": True}, {"kl_clip": None}, {"fisher": "empirical"}, {"curvature_examples": 2}],
    "slang": [{"rank": 1}, {"rank": 100}, {"partition": "layer"}, {"anneal_power": 0.51}, {"fisher": "mc"}],
    "fngd": [
        {"share": "mean"},
        {"examples": 50},
        {"freeze_after": 1, "share": "mean", "variational": False},
        {"freeze_after": 1, "share": "batch", "variational": False},
    ],
    "smw": [{"window": 3}, {"fisher": "ggn"}, {"curvature_examples": 2}, {"partition": "layer"}, {"momentum": 0.0}],
    "seng": [
        {"rows": 0.5},
        {"rows": 3},
        {"coordinates": 5, "variational": False},
        {"implicit_above": 15, "positions": 1},
        {"implicit_above": 0, "positions": 1, "coordinates": 4, "variational": False},
        {"fisher": "mc"},
        {"window": 3},
    ],
    "hylo": [
        {"compression": "kis"},
        {"compression": "kid", "variational": False},
        {"compression": "hybrid", "switch_every": 1, "observe_every": 1},
        {"compression": "kid_kis", "variational": False, "switch_every": 1, "observe_every": 1},
        {"rank": 3},
        {"kl_clip": None},
    ],
    "gram_gauss_newton": [{"momentum": 0.9}, {"ggn_samples": 1}, {"partition": "layer"}],
    "lissa": [{"depth": 0}, {"rows_per_term": 2, "chains": 3}, {"fisher": "ggn"}, {"momentum": 0.0}],
    "kalman": [{"curvature_decay": 0.9}, {"damping": 0.1}, {"partition": "layer"}],
    "mfac": [{"window": 1}, {"partition": "layer"}, {"inverse": "static"}, {"inverse": "dynamic"}, {"batch_size": 8}],
    "ggt": [{"window": 1}, {"partition": "parameter"}, {"pinv": True}, {"batch_size": 8}, {"curvature_decay": 0.9}],
    "tonga": [
        {"rank": 1, "truncate_every": 1},
        {"partition": "model"},
        {"partition": "unit"},
        {"partition": "unit", "normalise": False, "rank": 1, "truncate_every": 1},
        {"normalise": False},
        {"batch_size": 8},
    ],
    "skfac": [{"rank": 1}, {"rank": None}, {"factored": False}, {"kfac_approx": "expand", "stride": 2}],
    "sngd": [
        {"metric": "rfim_unit"},
        {"root": "nystrom", "columns": 2},
        {"root": "denman_beavers"},
        {"metric": "rfim_unit", "root": "nystrom", "structure": {"2": "local_fisher"}},
    ],
}


def cases(everywhere, own):
    return [(method, *row) for method in ALL for row in [*everywhere, *own[method]]]


@pytest.mark.parametrize(("method", "options", "error", "message"), cases(ILLEGAL_EVERYWHERE, ILLEGAL))
def test_illegal_options_are_refused_by_name(tools, method, options, error, message):
    with pytest.raises(error, match=message):
        tools.build(method, tools.network(), **options)


@pytest.mark.parametrize(("method", "options"), [(m, o) for m in ALL for o in [*LEGAL_EVERYWHERE, *LEGAL[m]]])
def test_legal_options_take_a_step(tools, method, options):
    model = tools.network()
    opt = tools.build(method, model, **options)
    tools.train(opt, model, 2, contexts=options.get("mc_samples", 1))
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), tools.network().parameters(), strict=True))
    assert moved == (options.get("lr") != 0.0)


@pytest.mark.parametrize("method", ALL)
def test_the_defaults_train_and_every_method_is_in_the_tables(tools, method):
    assert method in LEGAL and method in ILLEGAL
    model, info = tools.network(), METHODS[method]
    opt = info.build(model, ess=100.0)
    tools.train(opt, model, 3)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert info.summary and info.paper


@pytest.mark.parametrize("method", ALL)
def test_needs_model_says_whether_bare_parameters_are_taken(tools, method):
    info, parameters = METHODS[method], tools.network().parameters()
    if info.needs_model:
        with pytest.raises(TypeError):
            info.constructor(parameters, ess=10.0)
    else:
        info.constructor(parameters, ess=10.0)


@pytest.mark.parametrize("method", ALL)
def test_every_docstring_names_its_arguments_and_its_source(method):
    kind = METHODS[method].constructor
    text = inspect.getdoc(kind)
    if "Arguments as in :class:`vogn.IVON`" in text:
        text += inspect.getdoc(METHODS["ivon"].constructor)
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert name in text, (method, name)
    assert "Source:" in text and "Args:" in text


ENGINE_ERRORS = [
    ({"statistics": "fisher"}, ValueError, r"unknown statistic 'fisher'; choose one of empirical, mc, ggn"),
    ({"statistics": []}, UnsupportedObservationError, r"give one statistic, or one of rows and one of probes"),
    ({"statistics": [GGN(), Empirical()]}, UnsupportedObservationError, r"statistics=\['ggn', 'empirical'\]: give one"),
    (
        {"structure": Kronecker(), "statistics": "hutchinson"},
        UnsupportedObservationError,
        r"Kronecker cannot be fed with the statistic 'hutchinson' \(probe\); it takes \['rows'\]",
    ),
    (
        {"structure": DiagonalLowRank(), "statistics": Price(), "initial_curvature": 1.0},
        UnsupportedObservationError,
        r"DiagonalLowRank cannot be fed with the statistic 'price' \(probe\)",
    ),
    (
        {"structure": Dense(), "steps": [steps.Solve(exponent=0.5)]},
        UnsupportedObservationError,
        r"Dense has no powers; use Solve\(exponent=1\.0\)",
    ),
    (
        {"structure": EigenKronecker(), "statistics": Gradient()},
        UnsupportedObservationError,
        r"Kronecker factors need the inputs and output gradients of one layer, got GradientRow",
    ),
    ({"partition": "network"}, ValueError, r"partition='network' is unknown; choose one of layer, parameter, model"),
    ({"structure": Dense(max_dim=10), "partition": "model"}, ValueError, r"cannot hold one block over 31 parameters"),
]


@pytest.mark.parametrize(("options", "error", "message"), ENGINE_ERRORS)
def test_the_engine_refuses_what_does_not_fit(tools, options, error, message):
    defaults = {"structure": Diagonal(), "statistics": "empirical", "lr": 0.1, "ess": 10.0}
    model = tools.network()
    with pytest.raises(error, match=message):
        opt = NaturalGradient(model, **(defaults | options))
        opt.coverage()


def test_bad_statistics_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        MonteCarlo(draws=0)
    with pytest.raises(ValueError, match="ggn_samples=0 must be at least 1, or None for the exact GGN"):
        GGN(0)


def test_a_structure_that_cannot_afford_a_block_gives_way_to_the_stated_fallback(tools):
    model = tools.network()
    opt = NaturalGradient(model, Dense(max_dim=15), "empirical", lr=0.1, ess=10.0, weight_decay=0.1)
    with pytest.warns(UserWarning, match=r"block '0.weight': Dense does not fit \(4, 4\).*stored as Diagonal"):
        lines = {row["parameter"]: row for row in opt.coverage()}
    assert lines["0.weight"]["structure"] == "Diagonal" and "Dense does not fit (4, 4)" in lines["0.weight"]["note"]
    assert lines["2.weight"]["structure"] == "Dense" and lines["2.weight"]["note"] == ""
    tools.train(opt, model, 2)


@pytest.mark.parametrize("method", ["vogn", "kfac", "ekfac", "slang"])
def test_ggn_samples_goes_with_the_gauss_newton_only(tools, method):
    opt = METHODS[method].build(tools.network(), ess=10.0, fisher="ggn", ggn_samples=2)
    assert opt.statistics[0].samples == 2
    with pytest.raises(ValueError, match="goes with fisher='ggn'"):
        METHODS[method].build(tools.network(), ess=10.0, fisher="mc", ggn_samples=2)
