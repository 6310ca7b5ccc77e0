"""Which of a language model's answers may be trusted after fine-tuning on a handful of examples?

A small BERT learns a task, then low-rank adapters (LoRA) are fitted to a new one with 100 examples, by the Trainer of
transformers with noisy K-FAC: a posterior over the adapters only, the base stays frozen. Nothing is downloaded. Needs
``pip install 'vogn[transformers]'``.
"""

from __future__ import annotations

import os
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

import vogn  # noqa: E402
from vogn.interop.transformers import LikelihoodLoss, NaturalGradientCallback, logits_only  # noqa: E402

WORDS, LENGTH, EXAMPLES = 24, 12, 100


def sentences(n: int, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sentences, and whether the four words from ``first`` on are more frequent in them than the next four."""
    ids = torch.randint(0, WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    count = [((ids >= low) & (ids < low + 4)).sum(1) for low in (first, first + 4)]
    return ids, (count[0] > count[1]).long()


def rows(ids: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """A data set, as the Trainer reads it."""
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def arguments(folder: str, **options: object) -> transformers.TrainingArguments:
    """What both runs have in common."""
    return transformers.TrainingArguments(
        folder, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
        seed=0, **options,
    )  # fmt: skip


def pretrained(folder: str) -> torch.nn.Module:
    """A BERT that has learnt another task, with AdamW."""
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=LENGTH, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    args = arguments(folder, learning_rate=2e-3, num_train_epochs=6, per_device_train_batch_size=64)
    fit(transformers.Trainer(base, args, train_dataset=rows(*sentences(1024, first=0, seed=0))))
    return base


def fit(trainer: transformers.Trainer) -> None:
    """Train without a word."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    adapters = peft.LoraConfig(r=4, target_modules=["query", "value", "dense"], task_type="SEQ_CLS")
    with tempfile.TemporaryDirectory() as folder:
        model = peft.get_peft_model(pretrained(folder), adapters)
        ess = 30 * EXAMPLES  # a cold posterior: temperature 1/30
        opt = vogn.KFAC(model, lr=0.3, ess=ess, weight_decay=10 / ess, damping=0.01)
        args = arguments(folder, num_train_epochs=20, per_device_train_batch_size=16, max_grad_norm=0.0)
        trainer = transformers.Trainer(
            model,
            args,
            train_dataset=rows(*sentences(EXAMPLES, first=2, seed=1)),
            optimizers=(opt, None),
            callbacks=[NaturalGradientCallback()],
            compute_loss_func=LikelihoodLoss(),
        )
        fit(trainer)
        posterior = vogn.GaussianPosterior.load(os.path.join(folder, "posterior.safetensors"))

    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"posterior over {posterior.numel} of {total} parameters")
    ids, labels = sentences(2000, first=2, seed=2)
    for method in ("mean", "mc"):
        with logits_only(model):
            p = vogn.predict(model, posterior, {"input_ids": ids}, method=method, samples=32).mean
        sure = p.max(-1).values
        order = sure.argsort(descending=True)
        best, rest = order[:1000], order[1000:]
        accuracy, nll, ece = (f(p, labels) for f in (vogn.metrics.accuracy, vogn.metrics.nll, vogn.metrics.ece))
        print(
            f"{method:5s} accuracy {accuracy:.3f}  NLL {nll:.3f}  calibration error {ece:.3f}  accuracy of the surer "
            f"half {vogn.metrics.accuracy(p[best], labels[best]):.3f}, of the other "
            f"{vogn.metrics.accuracy(p[rest], labels[rest]):.3f}"
        )


if __name__ == "__main__":
    main()
