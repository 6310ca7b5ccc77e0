"""Whose predictive variances are those of Hamiltonian Monte Carlo?

Small regression networks, one prior and one noise, the posterior by NUTS and by approximations: noisy K-FAC, EK-FAC,
SLANG, VOGN, IVON, full covariance, mean-field Bayes by backprop, Laplace. The claim that is examined: Kronecker
structure correlates best (Zhang et al. 2018).

    python -m benchmarks.nuts run --data-dir DIR --budget-minutes 30
    python -m benchmarks.nuts report
"""
