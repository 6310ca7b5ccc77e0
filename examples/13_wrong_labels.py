"""Which of my labels are wrong, and how good is the network on new data, without any validation data?

A tenth of the training labels of handwritten digits are replaced by another class. A network is trained on them all;
its posterior says what it would predict about each image had it not seen that image. Labels that the others contradict
are wrong more often than not.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import vogn
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.sensitivity import leave_one_out

EPOCHS = 8


def with_wrong_labels(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, and which of them are wrong."""
    source = torch.Generator().manual_seed(0)
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=source)[: len(y) // 10]] = True
    return torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=source)) % 10, y), wrong


def trained(x: Tensor, y: Tensor) -> tuple[torch.nn.Module, vogn.GaussianPosterior]:
    torch.manual_seed(0)
    model = build_model("mlp", sizes=(64, 32, 10))
    opt = vogn.KFAC(
        model, lr=0.3, ess=len(x), weight_decay=3 / len(x), damping=0.01, kl_clip=None, initial_curvature=1.0,
        curvature_decay=0.999,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        for group in opt.param_groups:
            group["lr"] = 0.3 * min(1.0, 2.0 * (1.0 - epoch / EPOCHS))
        for batch in epoch_batches(len(x), 64, seed=0, epoch=epoch):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x[batch]), y[batch]).backward()
            opt.step()
    return model, opt.posterior()


def main() -> None:
    data = load_data("digits")
    x, (y, wrong) = data.train.x, with_wrong_labels(data.train.y)
    model, posterior = trained(x, y)
    found = leave_one_out(model, posterior, x, y, order="first")
    print(f"area under the ROC curve of wrong labels: {roc_auc_score(wrong, found.nll):.3f}")
    for count in (50, 100, 150):
        print(f"of the {count} most suspicious labels, {int(wrong[found.ranking()[:count]].sum())} are wrong")
    kept = found.ranking()[int(wrong.sum()) :]
    again, better = trained(x[kept], y[kept])
    for name, network, q in (("all labels", model, posterior), ("without suspicious ones", again, better)):
        mean = vogn.predict(network, q, data.test.x).mean
        accuracy, nll = vogn.metrics.accuracy(mean, data.test.y), vogn.metrics.nll(mean, data.test.y)
        print(f"{name:24s} test accuracy {float(accuracy):.3f}, NLL {float(nll):.3f}")
    assert roc_auc_score(wrong, found.nll) > 0.9


if __name__ == "__main__":
    main()
