"""How far is a run that nobody tuned from one that somebody did?

"auto": ``ess`` counted from the data, the command line's prior of the method and its temperature to begin with (for
regression temperature 1 and a prior precision of 1 to begin with), learning rate and damping of a search on held-out
examples, for images the temperature too, ``initial_curvature="auto"``, and the prior from the evidence: of the head
alone in residual networks, whose other weights stand before norms and have no scale; of every layer in perceptrons,
whose dense curvature over all data is measured for it; both from the middle of the run on. "by hand": the configuration
that the classification study has tuned for this method and seed; for regression the best of four (learning rate, prior)
on a validation part of the first split. Both are variational, see the same batches from the same initial weights and
differ in nothing else. Images are 3000 for training and 3000 for testing, epochs fewer than the configurations were
tuned for; perceptrons are trained for 2000 steps. Every setting is run several times.

    python -m benchmarks.auto_settings run --data-dir DIR --budget-minutes 25
    python -m benchmarks.auto_settings report
    python -m benchmarks.auto_settings finals        what the searches' longer runs changed
    python -m benchmarks.auto_settings rates         what range tests see, on MNIST and CIFAR-10
    python -m benchmarks.auto_settings curvature     where the curvature starts, on digits
"""
