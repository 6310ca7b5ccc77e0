"""Does averaging over a posterior help on other and on worse images?

Three tasks, each learnt by AdamW, noisy K-FAC, VOGN and IVON with the configurations that the classification study has
tuned (read from its committed cells) and five paired seeds: MNIST, beside notMNIST and USPS; CIFAR-10, beside
Imagenette at 32 pixels without its truck and its dog; six classes of CIFAR-10, beside the other four. On MNIST and
CIFAR-10 also what noise, blur, contrast and rotation do.

    python -m benchmarks.shift_and_ood run --data-dir DIR --budget-minutes 35
    python -m benchmarks.shift_and_ood report --page docs/out_of_distribution.md --figure docs/corruptions.png
"""
