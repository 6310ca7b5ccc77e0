"""How good are posteriors of small regression networks, on the six standard data sets?

One hidden layer of 50 ReLU units, the 20 standard splits, targets and inputs standardised by the training part. All
splits and configurations of a method are trained at once: the network has one weight matrix per (split,
configuration), and the engine sees a Kronecker pair per matrix, as for a grouped convolution.

Rules. Hyper-parameters are chosen for every split on its training rows alone: of eight configurations (four prior
precisions, two learning rates), those with the best log-likelihood on a fifth of the training rows stay, by successive
halving (8, 4, 2 configurations). The kept one is trained anew on all training rows. The noise is learned: its square
follows the squared residuals under the weights that are sampled, which is its update in the evidence lower bound.
Methods that are not Bayesian learn it on the fifth that is held out, after training.

    python -m benchmarks.uci run --data-dir DIR --jobs 2 --budget-minutes 60
    python -m benchmarks.uci report
"""
