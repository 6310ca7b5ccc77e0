"""How many labels does a posterior save that asks for them itself?

*Regression* (yacht, boston, energy): 20 labels to begin with, 40 more one at a time where an observation is expected to
tell most about the weights, 200 steps from where mean and curvature are after each; noisy K-FAC, SLANG, VOGN, IVON,
Gaussian mean field by reparameterised gradients and, on yacht, Hamiltonian Monte Carlo, each against the same method
with random queries from the same start. *Classification* (digits, MNIST): batches of 10 by BALD, BatchBALD, EPIG,
entropy and at random, by :class:`vogn.active.ActiveLearner`.

    OMP_NUM_THREADS=1 python -m benchmarks.active run --data-dir DIR                    # the reduced form
    OMP_NUM_THREADS=1 python -m benchmarks.active run --data-dir DIR --form full        # more of everything
    python -m benchmarks.active report

``DIR`` has ``uci_yacht.npz``, ``uci_boston.npz``, ``uci_energy.npz`` (arrays of the ``benchmarks.uci`` study) and
``mnist.npz`` (``x_train, y_train, x_test, y_test``). Cells are files: a study that was stopped goes on.
"""
