"""Acquisition scores: known numbers, plain loops, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from vogn.active import (
    bald,
    batchbald,
    entropy,
    epig,
    gaussian_epig,
    information_gain,
    joint_information_gain,
    k_centres,
    margin,
    mean_deviation,
    predictive_variance,
    variation_ratio,
)

THREE = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]], [[0.1, 0.9]]], dtype=torch.float64)
"""Weight samples that disagree about one example."""


def random_probabilities(samples=6, count=9, classes=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(samples, count, classes, generator=source, dtype=torch.float64)).softmax(-1)


def test_known_numbers():
    assert float(entropy(THREE)) == pytest.approx(0.693147, abs=1e-6)
    assert float(bald(THREE)) == pytest.approx(0.245376, abs=1e-6)
    certain = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert float(bald(certain)) == pytest.approx(math.log(2))
    assert float(margin(THREE)) == 0.0 and float(variation_ratio(THREE)) == 0.5
    assert float(mean_deviation(THREE)) == pytest.approx(np.std([0.9, 0.5, 0.1]))


def test_scores_against_scipy_and_plain_loops():
    p = random_probabilities()
    for n in range(p.shape[1]):
        average = p[:, n].mean(0).numpy()
        ordered = np.sort(average)[::-1]
        known = np.mean([scipy_entropy(row) for row in p[:, n].numpy()])
        assert float(entropy(p)[n]) == pytest.approx(scipy_entropy(average), abs=1e-12)
        assert float(bald(p)[n]) == pytest.approx(scipy_entropy(average) - known, abs=1e-12)
        assert float(margin(p)[n]) == pytest.approx(-(ordered[0] - ordered[1]), abs=1e-12)
        assert float(variation_ratio(p)[n]) == pytest.approx(1 - ordered[0], abs=1e-12)
        assert float(mean_deviation(p)[n]) == pytest.approx(np.mean(np.std(p[:, n].numpy(), axis=0)), abs=1e-12)


def test_information_gain_is_the_fall_of_the_entropy_of_a_linear_gaussian_posterior():
    covariance, phi, noise = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64), torch.tensor([1.0, 2.0]), 0.5
    phi = phi.double()
    variance = (phi @ covariance @ phi).reshape(1, 1)
    posterior = torch.linalg.inv(torch.linalg.inv(covariance) + torch.outer(phi, phi) / noise)
    fall = 0.5 * (torch.logdet(covariance) - torch.logdet(posterior))
    assert float(information_gain(variance, noise)) == pytest.approx(1.3671838, abs=1e-7)
    assert float(information_gain(variance, noise)) == pytest.approx(float(fall), abs=1e-12)
    assert torch.equal(predictive_variance(torch.tensor([[1.0, 2.0], [0.5, 0.0]])), torch.tensor([3.0, 0.5]))


def joint_information(p, batch):
    """``H[y_1 ... y_b] - sum E H[y_i]``, label by label, in plain loops."""
    samples, _, classes = p.shape
    total = 0.0
    for labels in np.ndindex(*([classes] * len(batch))):
        each = [math.prod(float(p[s, n, y]) for n, y in zip(batch, labels, strict=True)) for s in range(samples)]
        joint = np.mean(each)
        total -= joint * math.log(joint) if joint > 0 else 0.0
    return total - sum(np.mean([scipy_entropy(p[s, n].numpy()) for s in range(samples)]) for n in batch)


def test_batchbald_of_a_repeated_example_is_known():
    found = batchbald(THREE.repeat(1, 2, 1), 2)
    assert float(found.gains.sum()) == pytest.approx(0.396745, abs=1e-6)
    assert 2 * float(bald(THREE)) == pytest.approx(0.490752, abs=1e-6)


@pytest.mark.parametrize(("samples", "count", "classes", "size"), [(6, 9, 3, 4), (3, 12, 2, 5), (5, 4, 2, 4)])
def test_batchbald_against_a_plain_greedy_loop(samples, count, classes, size):
    p = random_probabilities(samples, count, classes)
    chosen, value = [], 0.0
    for _ in range(size):
        scores = {n: joint_information(p, [*chosen, n]) for n in range(count) if n not in chosen}
        best = max(scores, key=scores.get)
        chosen, previous, value = [*chosen, best], value, scores[best]
        found = batchbald(p, len(chosen))
        assert float(found.gains[-1]) == pytest.approx(value - previous, abs=1e-10)
    assert found.indices.tolist() == chosen and found.exact.all()


def test_one_example_is_bald_and_two_of_two_classes_are_the_best_pair():
    p = random_probabilities(4, 8, 2, seed=3)
    first = batchbald(p, 1)
    assert int(first.indices) == int(bald(p).argmax()) and float(first.gains) == pytest.approx(float(bald(p).max()))
    start = int(first.indices)
    pairs = {n: joint_information(p, [start, n]) for n in range(8) if n != start}
    assert batchbald(p, 2).indices.tolist() == [start, max(pairs, key=pairs.get)]


def test_sampled_joint_labels_agree_with_all_of_them():
    p = random_probabilities(8, 30, 4, seed=1)
    whole = batchbald(p, 5, configurations=4**4)
    sampled = batchbald(p, 5, configurations=200, seed=2)
    assert whole.exact.all() and sampled.exact.tolist() == [True, True, True, True, False]
    many = batchbald(p[:, whole.indices], 5, configurations=200, seed=2)
    assert float(many.gains.sum()) == pytest.approx(float(whole.gains.sum()), rel=0.02)
    assert joint_information(p, sampled.indices.tolist()) > 0.97 * float(whole.gains.sum())


def test_the_information_of_a_batch_is_at_most_that_of_the_weight_sample():
    p = random_probabilities(4, 40, 3, seed=5)
    found = batchbald(p, 8, configurations=3**7)
    assert found.exact.all() and 0.99 * math.log(4) < float(found.gains.sum()) < math.log(4)


def test_batchbald_ends_with_the_pool_and_survives_certain_labels():
    certain = torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])
    found = batchbald(certain, 7)
    assert sorted(found.indices.tolist()) == [0, 1, 2]
    assert found.gains.tolist() == pytest.approx([math.log(2), 0.0, 0.0], abs=1e-12)


def test_epig_against_a_double_loop():
    pool, targets = random_probabilities(5, 7, 3), random_probabilities(5, 4, 2, seed=9)
    for n in range(7):
        total = 0.0
        for m in range(4):
            joint = np.mean([np.outer(pool[s, n], targets[s, m]) for s in range(5)], axis=0)
            product = np.outer(joint.sum(1), joint.sum(0))
            total += (joint * np.log(joint / product)).sum() / 4
        assert float(epig(pool, targets)[n]) == pytest.approx(total, abs=1e-12)


def test_epig_does_not_ask_what_targets_do_not_need():
    relevant = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]], dtype=torch.float64)
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    pool = torch.stack([relevant, other], 1)
    found = epig(pool, relevant.unsqueeze(1))
    assert bald(pool).argmax() == 1 and found.argmax() == 0 and float(found[1]) == pytest.approx(0.0, abs=1e-12)


def test_gaussian_epig_is_the_mutual_information_of_two_gaussians():
    source = torch.Generator().manual_seed(0)
    weights = torch.randn(200, 3, generator=source, dtype=torch.float64)
    phi, star = (torch.randn(n, 3, generator=source, dtype=torch.float64) for n in (4, 2))
    found = gaussian_epig((weights @ phi.T).unsqueeze(-1), (weights @ star.T).unsqueeze(-1), 0.3)
    spread = torch.cov(weights.T, correction=0)
    for n in range(4):
        values = []
        for m in range(2):
            both = torch.stack([phi[n], star[m]])
            joint = both @ spread @ both.T + 0.3 * torch.eye(2, dtype=torch.float64)
            values.append(0.5 * (joint[0, 0].log() + joint[1, 1].log() - torch.logdet(joint)))
        assert float(found[n]) == pytest.approx(float(torch.stack(values).mean()), abs=1e-12)


def pieces(values, size, dim):
    """A pool that is given in pieces."""
    count = values.shape[dim]
    return lambda: zip(torch.arange(count).split(size), values.split(size, dim), strict=True)


@pytest.mark.parametrize("size", [1, 4, 20])
def test_core_set_against_a_plain_greedy_loop(size):
    features = torch.randn(17, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labelled = features[:2] + 0.1
    found, distances = k_centres(pieces(features, size, 0), [labelled[:1], labelled[1:]], 5)
    centres = [row.numpy() for row in labelled]
    for step in range(5):
        nearest = [min(np.linalg.norm(row.numpy() - c) for c in centres) for row in features]
        assert int(found[step]) == int(np.argmax(nearest))
        assert float(distances[step]) == pytest.approx(max(nearest))
        centres.append(features[found[step]].numpy())


def test_core_set_without_labels_begins_with_the_first_and_ends_with_the_pool():
    features = torch.tensor([[0.0], [1.0], [5.0], [5.0]])
    found, distances = k_centres(pieces(features, 2, 0), [], 9)
    assert found.tolist()[:3] == [0, 2, 1] and sorted(found.tolist()) == [0, 1, 2, 3]
    assert distances[0] == float("inf") and float(distances[3]) == 0.0


@pytest.mark.parametrize("size", [1, 5, 30])
def test_joint_information_gain_against_determinants(size):
    outputs = torch.randn(12, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs[:, 7] = outputs[:, 3]  # the same twice
    found, gains = joint_information_gain(pieces(outputs, size, 1), 4, 0.2)
    covariance = torch.cov(outputs.T, correction=0)

    def information(batch):
        part = covariance[batch][:, batch] / 0.2 + torch.eye(len(batch), dtype=torch.float64)
        return 0.5 * float(torch.logdet(part))

    chosen = []
    for _ in range(4):
        chosen.append(max((n for n in range(11) if n not in chosen), key=lambda n: information([*chosen, n])))
    assert found.tolist() == chosen
    assert float(gains.sum()) == pytest.approx(information(chosen), abs=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bald(torch.ones(3, 4)), r"\(S, N, C\)"),
        (lambda: bald(torch.ones(3, 0, 2)), r"\(S, N, C\)"),
        (lambda: bald(torch.full((2, 3, 2), float("nan"))), "NaN"),
        (lambda: bald(torch.ones(2, 3, 2)), "sum 1"),
        (lambda: bald(torch.tensor([[[1.5, -0.5]]])), "not negative"),
        (lambda: bald(torch.ones(2, 3, 1, dtype=torch.int64)), "floating-point"),
        (lambda: margin(torch.ones(2, 3, 1)), "two classes"),
        (lambda: batchbald(THREE, 0), "at least 1"),
        (lambda: batchbald(THREE, 2, configurations=1), "number of classes"),
        (lambda: epig(THREE, THREE[:2]), "same weight samples"),
        (lambda: gaussian_epig(THREE[:1], THREE[:1], 0.1), "two weight samples"),
        (lambda: gaussian_epig(THREE, THREE, 0.0), "positive"),
        (lambda: information_gain(torch.ones(3, 1), 0.0), "positive"),
        (lambda: information_gain(-torch.ones(3, 1), 1.0), "not negative"),
        (lambda: predictive_variance(torch.ones(3)), r"\(N, K\)"),
        (lambda: joint_information_gain(pieces(torch.ones(4, 3), 2, 1), 2, -1.0), "positive"),
        (lambda: joint_information_gain(pieces(torch.ones(1, 3), 2, 1), 2, 1.0), "two weight samples"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
