"""What does curvature in sample space buy against tuned baselines, per epoch and per second?

Methods that invert a matrix of the size of the batch (SMW, SENG, M-FAC), that keep a coefficient per example instead
of an inverse (FNGD), or that measure layer inputs alone (SNGD), deterministic, beside K-FAC, EK-FAC, AdamW and SGD, on
three tasks: a perceptron on MNIST, a ResNet-8 on CIFAR-10, a Transformer on Multi30k (English to German).

Every method is tuned by the same rule: all configurations of its grid are trained with seed 0, and the one with the
lowest validation loss after the last epoch is trained with the other seeds too (same initial weights and same data
order for every method). Test figures are of that configuration.

    python -m benchmarks.sample_space run --data-dir DIR --jobs 2 --budget-minutes 60
    python -m benchmarks.sample_space report
    python -m benchmarks.sample_space report --curves

``--form full`` runs the full sizes (about two hours of CPU); ``reduced`` is what docs/results.md reports.
"""
