"""Do variational methods give better calibrated image classifiers than first-order training at the same cost?

Every method is tuned by the same rule: four configurations, trained on part of the training images, the lowest negative
log-likelihood on others of them (of the posterior predictive for variational methods). The chosen
configuration is then trained with paired seeds (same initial weights, same data order) and measured once on the test
images. Digits: five-fold cross-validation, tuned inside the training part of each fold.

    python -m benchmarks.classification run --data digits
    python -m benchmarks.classification run --data mnist --data-dir DIR --jobs 2 --budget-minutes 60
    python -m benchmarks.classification report --data mnist

``--full`` runs the full sizes (about a day of CPU); without it the reduced sizes that docs/results.md reports.
"""
