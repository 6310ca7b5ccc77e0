"""Random shapes, rows, dtypes, dampings and decays: every structure keeps the promises of its interface."""

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import normal
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import (
    REGISTRY,
    CompressedGram,
    Dense,
    Diagonal,
    DiagonalLowRank,
    EigenKronecker,
    GradientWindow,
    InterpolativeGram,
    Kronecker,
    LocalFisher,
    SampledGram,
    SketchedGram,
    SwiftKronecker,
    SwitchedGram,
    UnitGradientWindow,
    structure_from_dict,
    structure_to_dict,
)
from vogn.structures.columns import ColumnStructure
from vogn.testing.structure_cases import merged, normalised

RANKS = st.integers(1, 6) | st.floats(0.1, 1.0)
OPTIONS = {
    "identity": st.just({}),
    "diagonal": st.fixed_dictionaries({"negative": st.sampled_from(["raise", "retract", "clamp", "abs"])}),
    "dense": st.fixed_dictionaries({"negative": st.sampled_from(["raise", "retract"])}),
    "kronecker": st.fixed_dictionaries(
        {
            "damping": st.sampled_from(["exact", "factored"]),
            "sharing": st.sampled_from(["expand", "reduce"]),
            "max_dim": st.sampled_from([0, 1, 2, 3, 8192]),
        }
    ),
    "eigen_kronecker": st.fixed_dictionaries(
        {
            "basis": st.sampled_from(["kfac", "contraction"]),
            "restart": st.booleans(),
            "negative": st.sampled_from(["retract", "clamp", "abs"]),
            "max_dim": st.sampled_from([0, 1, 2, 3, 8192]),
            "basis_decay": st.sampled_from([None, 0.0, 0.5, 1.0]),
        }
    ),
    "diagonal_low_rank": st.fixed_dictionaries({"rank": st.integers(1, 6)}),
    "gram": st.fixed_dictionaries({"window": st.integers(1, 12)}),
    "gradient_window": st.one_of(
        st.fixed_dictionaries(
            {
                "window": st.integers(4, 6),  # at least as many as there are updates
                "columns": st.integers(1, 6),
                "law": st.sampled_from(["decay", "fixed", "average"]),
                "inverse": st.sampled_from(["cholesky", "static", "dynamic"]),
            }
        ),
        st.fixed_dictionaries({"window": st.integers(2, 3), "law": st.just("average"), "keep": st.just(1)}),
    ),
    "unit_gradient_window": st.one_of(
        st.fixed_dictionaries({"window": st.integers(4, 6)}),
        st.fixed_dictionaries({"window": st.integers(2, 3), "keep": st.just(1)}),
    ),
    "sample_space": st.just({}),
    "sketched_gram": st.fixed_dictionaries({"coordinates": st.integers(1, 20), "window": st.integers(1, 12)}),
    "pair_gram": st.fixed_dictionaries(
        {"positions": st.integers(1, 3), "window": st.integers(1, 12), "above": st.sampled_from([0, 6])}
    ),
    "sketched_pair_gram": st.fixed_dictionaries(
        {"positions": st.integers(1, 2), "coordinates": st.integers(1, 20), "window": st.integers(1, 12)}
    ),
    "sampled_gram": st.fixed_dictionaries({"rank": RANKS, "window": st.integers(1, 12)}),
    "compressed_gram": st.fixed_dictionaries({"rank": RANKS, "window": st.integers(1, 12)}),
    "switched_gram": st.fixed_dictionaries({"rank": RANKS, "window": st.integers(1, 12)}),
    "switched_interpolative_gram": st.fixed_dictionaries({"rank": RANKS, "window": st.integers(1, 12)}),
    "interpolative_gram": st.fixed_dictionaries({"rank": RANKS, "window": st.integers(1, 12)}),
    "swift_kronecker": st.fixed_dictionaries(
        {
            "rank": st.sampled_from([None, 1, 2, 3]),
            "damping": st.sampled_from(["exact", "factored"]),
            "sharing": st.sampled_from(["expand", "reduce"]),
            "stride": st.integers(1, 3),
            "max_dim": st.sampled_from([0, 1, 2, 3, 8192]),
        }
    ),
    "local_fisher": st.one_of(
        st.fixed_dictionaries(
            {
                "root": st.sampled_from(["eigh", "nystrom", "denman_beavers"]),
                "columns": st.integers(1, 4),
                "sharing": st.sampled_from(["expand", "reduce"]),
                "max_dim": st.sampled_from([0, 1, 2, 3, 8192]),
            }
        ),
        st.fixed_dictionaries(
            {
                "scope": st.just("unit"),
                "root": st.sampled_from(["eigh", "nystrom", "denman_beavers"]),
                "columns": st.integers(1, 4),
            }
        ),
    ),
}


WINDOWS = GradientWindow | UnitGradientWindow
RUNS = [("quick", name) for name in sorted(REGISTRY)]
RUNS += [pytest.param("thorough", name, marks=pytest.mark.slow) for name in sorted(REGISTRY)]


@st.composite
def rows_of(draw, structure, shape, dtype, seed):
    """Rows of any kind that the structure reads for blocks of this shape, with scales far from 1."""
    *lead, d_out, d_in = shape
    n, t, k = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    scale = 10.0 ** draw(st.integers(-3, 3))
    g = normal(*lead, k, n, t, d_out, seed=seed + 1, dtype=dtype)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand((n, t), generator=torch.Generator().manual_seed(seed + 2)) < 0.7
        g = g * mask.unsqueeze(-1)
    kinds = ["rows"] if lead else ["rows", "look-up"]
    pairs_only = isinstance(structure, Kronecker | SwiftKronecker | LocalFisher)
    takes_gradients = not pairs_only and getattr(structure, "basis", "contraction") != "kfac"
    if takes_gradients:
        kinds.append("gradient")
        if d_in == 1 and not lead and d_out > 1:
            kinds.append("joined")
    kind = draw(st.sampled_from(kinds))
    if kind == "look-up":
        index = torch.randint(0, d_in, (n, t), generator=torch.Generator().manual_seed(seed + 3))
        return IndexedRows(index, g * scale, d_in, mask, g[0])
    if kind == "gradient":
        return GradientRow(normal(*shape, seed=seed + 4, dtype=dtype) * scale)
    if kind == "joined":
        first = draw(st.integers(1, d_out - 1))
        sizes = (first, d_out - first)
        return JoinedRows(
            tuple(
                Rows(
                    normal(n, t, size, seed=seed + 5 + size, dtype=dtype),
                    normal(k, n, t, 1, seed=seed + 6, dtype=dtype) * scale,
                )
                for size in sizes
            )
        )
    a = normal(*lead, n, t, d_in, seed=seed, dtype=dtype)
    if draw(st.booleans()):
        a = torch.cat([a[..., :-1], torch.ones_like(a[..., -1:])], -1)  # a bias
    return Rows(a, g * scale, mask, g.select(-4, 0))


@st.composite
def systems(draw, name):
    """A structure, a state after some updates and refreshes, a shift, and the exact numbers of the last update."""
    structure = REGISTRY[name](**draw(OPTIONS[name]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    lead = draw(st.sampled_from([(), (), (1,), (2,), (2, 2)]))
    shape = (*lead, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    initial = draw(st.sampled_from([0.0, 1e-6, 0.5, 10.0]))
    shift = 10.0 ** draw(st.integers(-4, 2))
    state = structure.init(shape, initial=initial, dtype=dtype, device="cpu")
    for step in range(draw(st.integers(0, 3))):
        if "critical" in state:
            state = structure.with_phase(state, critical=draw(st.booleans()))
        decay = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
        weight = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        if "probe" in structure.OBSERVES and getattr(structure, "negative", "") != "raise" and draw(st.booleans()):
            probe, response = normal(2, *shape, seed=50 + step, dtype=dtype)
            seen = structure.observe_probe(state, probe, response)
        else:
            rows = draw(rows_of(structure, shape, dtype, 10 * step))
            seen = normalised(structure, structure.observe(state, rows), rows.count)
        state = structure.update(state, seen, decay=decay, weight=weight, shift=shift)
        if draw(st.booleans()):
            state = structure.refresh(state)
    return structure, shape, state, shift


def spectrum(structure, state, shift):
    """``C (+) shift`` in float64 with its condition number; symmetric and positive definite by promise."""
    dense = structure.to_dense(state, shift).double()
    rounding = torch.finfo(state[next(iter(state))].dtype).eps * max(1.0, float(dense.abs().max()))
    assert float((dense - dense.T).abs().max()) <= 50 * rounding, "to_dense is not symmetric"
    values = torch.linalg.eigvalsh(dense)
    return dense, float(values[0]), float(values[-1])


def close(actual, expected, tolerance, what):
    scale = max(float(expected.abs().max()), 1e-30)
    error = float((actual.double() - expected.double()).abs().max()) / scale
    assert error <= tolerance, f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}"


def check_linear_operators(system):
    """Of a curvature that is not symmetric: products and solutions."""
    structure, shape, state, shift = system
    dtype = state[next(iter(state))].dtype
    dense, eps = structure.to_dense(state, shift).double(), torch.finfo(dtype).eps
    v = normal(2, *shape, seed=99, dtype=dtype)
    product = structure.apply(state, v, shift)
    close(product.reshape(2, -1), v.reshape(2, -1).double() @ dense.T, 200 * eps, "apply")
    assert product.dtype == dtype
    singular = torch.linalg.svdvals(dense)
    if singular[-1] > 1e4 * eps * singular[0]:
        tolerance = 500 * eps * float(singular[0] / singular[-1])
        if isinstance(structure, InterpolativeGram):  # a refined Woodbury identity, in double precision
            ratio = float(singular[0]) / (float(state["scale"]) + shift)
            tolerance += 10 * (torch.finfo(torch.float64).eps * ratio) ** 2
        close(structure.solve(state, product, shift), v, tolerance, "solve(apply v)")
        close(structure.apply(state, structure.solve(state, v, shift), shift), v, tolerance, "apply(solve v)")


def smallest_diagonal(structure, state, shift):
    """Of a diagonal plus columns: what the operators lose depends on it, whatever the columns add; else infinity."""
    if isinstance(structure, ColumnStructure):
        return float(structure.flat(state, shift)[0].min())
    return float(state["c"] / state["mass"]) + shift if isinstance(structure, WINDOWS) else math.inf


def check_operators(system):
    structure, shape, state, shift = system
    if "sample" not in structure.SUPPORTS:
        check_linear_operators(system)
        return
    dtype = state[next(iter(state))].dtype
    eps, size = torch.finfo(dtype).eps, math.prod(shape)
    dense, low, high = spectrum(structure, state, shift)
    # a policy other than "raise" keeps C + shift positive; rows are positive semi-definite
    assert low > -50 * eps * high, "to_dense plus shift is not positive definite"
    v = normal(2, *shape, seed=99, dtype=dtype)
    product = structure.apply(state, v, shift)
    close(product.reshape(2, -1), v.reshape(2, -1).double() @ dense, 200 * eps, "apply")
    bounds = [float(bound) for bound in structure.eigenvalue_bounds(state, shift)]
    assert bounds[0] <= low + 100 * eps * high and high <= bounds[1] + 100 * eps * high
    for leaf in (structure.solve(state, v, shift), structure.sample(state, v, shift), structure.logdet(state, shift)):
        assert bool(leaf.isfinite().all()) and leaf.dtype == dtype
    if low <= 1e4 * eps * high:
        return  # beyond the digits of the dtype: finite is what can be promised
    condition = high / min(low, smallest_diagonal(structure, state, shift))
    tolerance = 500 * eps * condition
    close(structure.apply(state, structure.solve(state, v, shift), shift), v, tolerance, "apply(solve v)")
    close(structure.solve(state, structure.apply(state, v, shift), shift), v, tolerance, "solve(apply v)")
    inverse = torch.linalg.inv(dense)
    noise = torch.eye(size, dtype=dtype).reshape(size, *shape)
    root = structure.sample(state, noise, shift).reshape(size, size).double()
    close(root.T @ root, inverse, tolerance, "S S^T")
    close(structure.inverse_diagonal(state, shift).flatten(), inverse.diagonal(), tolerance, "inverse_diagonal")
    assert bool((structure.inverse_diagonal(state, shift) > 0).all())
    sign, logdet = torch.linalg.slogdet(dense)
    assert float(sign) == 1.0
    allowed = size * (200 * eps * condition + eps * (abs(math.log(low)) + abs(math.log(high)) + 1))
    assert abs(float(structure.logdet(state, shift)) - float(logdet)) <= allowed, "logdet"


@pytest.mark.parametrize(("profile", "name"), RUNS)
def test_every_operator_is_that_of_to_dense(profile, name):
    settings.get_profile(profile)(given(systems(name))(check_operators))()


def check_states(system):
    """Serialised, refreshed and updated with nothing, a state stays what it is."""
    structure, shape, state, shift = system
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded.keys() == state.keys()
    for key, leaf in state.items():
        assert torch.equal(loaded[key], leaf) and loaded[key].dtype == leaf.dtype
    assert structure_from_dict(json.loads(json.dumps(structure_to_dict(structure)))) == structure
    leaf = state[next(iter(state))]
    fresh = structure.init(shape, initial=0.0, dtype=leaf.dtype, device="cpu")
    fixed = [key for key in fresh if key not in structure.GROWS]
    assert fresh.keys() == state.keys() and all(fresh[key].shape == state[key].shape for key in fixed)
    assert structure.bytes_per_block(shape) == sum(4 * t.numel() for t in fresh.values())
    nothing = zero_rows(structure, shape, leaf.dtype)
    seen = normalised(structure, structure.observe(state, nothing), nothing.count)
    new = structure.refresh(structure.update(state, seen, decay=1.0, weight=1.0, shift=shift))
    if structure_keeps(structure):
        close(
            structure.to_dense(new, shift),
            structure.to_dense(structure.refresh(state), shift),
            2e3 * torch.finfo(leaf.dtype).eps,
            "zero evidence",
        )
    gone = structure.refresh(structure.update(state, seen, decay=0.0, weight=1.0, shift=shift))
    assert bool(structure.solve(gone, torch.ones(shape, dtype=leaf.dtype), shift).isfinite().all())


def zero_rows(structure, shape, dtype):
    *lead, d_out, d_in = shape
    a, g = torch.zeros((*lead, 2, 1, d_in), dtype=dtype), torch.zeros((*lead, 1, 2, 1, d_out), dtype=dtype)
    return Rows(a, g, outputs=g.select(-4, 0))


def structure_keeps(structure):
    """With its own averaging of the basis a structure may forget it although C is kept; an average counts zeros, and so
    does a share of the rows; an interpolation cannot be carried along, nor what is drawn anew."""
    forgets = isinstance(structure, InterpolativeGram | SampledGram | SketchedGram | SwitchedGram)
    forgets = forgets or (isinstance(structure, CompressedGram) and isinstance(structure.rank, float))
    forgets = forgets or structure.GROWS or getattr(structure, "law", "") == "average"  # rows of one batch alone
    forgets = forgets or isinstance(structure, UnitGradientWindow)
    return getattr(structure, "basis_decay", None) is None and not forgets


@pytest.mark.parametrize(("profile", "name"), RUNS)
def test_states_survive_files_and_evidence_of_nothing(profile, name):
    settings.get_profile(profile)(given(systems(name))(check_states))()


@st.composite
def batches(draw, name):
    """A structure, a state, rows, and where to cut them into two micro-batches."""
    structure, shape, state, shift = draw(systems(name))
    rows = draw(rows_of(structure, shape, state[next(iter(state))].dtype, 1000))
    return structure, shape, state, shift, rows, draw(st.integers(0, rows.count))


def part(rows, start, stop):
    mask = None if rows.mask is None else rows.mask[start:stop]
    if isinstance(rows, IndexedRows):
        return IndexedRows(
            rows.index[start:stop], rows.g[:, start:stop], rows.size, mask, rows.outputs[..., start:stop, :, :]
        )
    outputs = rows.outputs[..., start:stop, :, :]
    return Rows(rows.a[..., start:stop, :, :], rows.g[..., start:stop, :, :], mask, outputs)


def check_observations(batch):
    """The sum over micro-batches is the batch, and a diagonal or dense curvature is that of the explicit rows."""
    structure, shape, state, shift, rows, cut = batch
    dtype = state[next(iter(state))].dtype
    eps = torch.finfo(dtype).eps
    whole = structure.observe(state, rows)
    results = [whole]
    if isinstance(rows, Rows | IndexedRows) and 0 < cut < rows.count:
        parts = [structure.observe(state, part(rows, *ends)) for ends in ((0, cut), (cut, rows.count))]
        results.append(merged(structure, *parts))
    flat = rows.dense().flatten(2).flatten(0, 1).double()
    exact = flat.T @ flat / rows.count
    fresh = structure.init(shape, initial=0.0, dtype=dtype, device="cpu")
    symmetric = "sample" in structure.SUPPORTS
    dense = [
        structure.to_dense(
            structure.refresh(
                structure.update(fresh, normalised(structure, seen, rows.count), decay=0.0, weight=1.0, shift=shift)
            ),
            0.0 if symmetric else shift,  # one that is not may have no limit
        )
        for seen in results
    ]
    scale = max(float(exact.abs().max()), float(dense[0].abs().max()), 1e-30)
    turns = isinstance(structure, EigenKronecker) and not structure.restart  # the basis may turn freely
    if not (turns or isinstance(structure, SampledGram)):  # draws depend on the order of the columns
        # what an interpolation misses is known to the rounding of all, and enters divided by the shift
        roundings = 200 if symmetric else 200 + 10 * scale / shift
        for other in dense[1:]:
            assert float((other - dense[0]).abs().max()) <= roundings * eps * scale, "micro-batches"
    if isinstance(structure, Diagonal | DiagonalLowRank):
        assert float((dense[0].diagonal() - exact.diagonal()).abs().max()) <= 100 * eps * scale
    if isinstance(structure, Dense) or (isinstance(structure, DiagonalLowRank) and structure.rank >= len(flat)):
        assert float((dense[0] - exact).abs().max()) <= 200 * eps * scale
    if symmetric:
        assert float(torch.linalg.eigvalsh(dense[0].double())[0]) >= -100 * eps * scale


@pytest.mark.parametrize(("profile", "name"), RUNS)
def test_observations_add_up_and_are_those_of_the_explicit_rows(profile, name):
    settings.get_profile(profile)(given(batches(name))(check_observations))()
