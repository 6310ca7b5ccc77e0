"""The order of the data and its augmentation are functions of (seed, epoch, batch) and of nothing else."""

import pytest
import torch

from vogn.data import Augmentation, epoch_batches, epoch_order, standard_augmentation


def test_order_is_a_permutation_and_a_function_of_seed_and_epoch():
    first = epoch_order(50, seed=3, epoch=2)
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(first, epoch_order(50, seed=3, epoch=2))
    assert torch.equal(first.sort().values, torch.arange(50))
    assert not torch.equal(first, epoch_order(50, seed=3, epoch=3))
    assert not torch.equal(first, epoch_order(50, seed=4, epoch=2))


def test_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_order(10, seed=0, epoch=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (3, 8, [3]), (3, 1, [1, 1, 1])]
)
def test_batches_hold_every_example_once_and_never_one_alone(n, size, sizes):
    batches = epoch_batches(n, size, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), epoch_order(n, seed=1, epoch=0))


def test_augmentation_equals_a_plain_loop():
    x = torch.arange(3 * 2 * 5 * 4, dtype=torch.float64).reshape(3, 2, 5, 4)
    result = Augmentation(shift=2, flip=True, factor=1.0)(x, seed=1, epoch=2, batch=3)
    for example, image in zip(result, x, strict=True):
        candidates = []
        for mirrored in (False, True):
            base = image.flip(-1) if mirrored else image
            for down in range(-2, 3):
                for right in range(-2, 3):
                    shifted = torch.empty_like(image)
                    for row in range(5):
                        for column in range(4):
                            source_row = min(max(row + down, 0), 4)
                            source_column = min(max(column + right, 0), 3)
                            shifted[:, row, column] = base[:, source_row, source_column]
                    candidates.append(shifted)
        assert any(torch.equal(example, candidate) for candidate in candidates)


def test_augmentation_is_a_function_of_seed_epoch_and_batch():
    x = torch.rand(16, 3, 16, 16)
    augment = standard_augmentation((3, 16, 16))
    assert augment is not None
    first = augment(x, seed=1, epoch=2, batch=3)
    assert torch.equal(first, augment(x, seed=1, epoch=2, batch=3))
    for other in ({"seed": 2}, {"epoch": 3}, {"batch": 4}):
        assert not torch.equal(first, augment(x, **({"seed": 1, "epoch": 2, "batch": 3} | other)))


def test_standard_augmentation_mirrors_colour_images_only_and_leaves_small_ones():
    assert standard_augmentation((3, 32, 32)) == Augmentation(shift=4, flip=True, factor=10.0)
    assert standard_augmentation((1, 28, 28)) == Augmentation(shift=3, flip=False, factor=5.0)
    assert standard_augmentation((1, 8, 8)) is None
    assert standard_augmentation((20,)) is None
