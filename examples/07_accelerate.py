"""Does a language model know which letters it cannot know?

Letters follow one another at random, some successions are nearly certain and others open. A small Llama learns them
from 50 short texts with Accelerate: prepared objects, accumulated batches, bfloat16. The sampled context is opened on
``opt.optimizer``, inside Accelerate's wrapper. The loss is a mean over letters, so the effective sample size counts
letters, not texts. Needs ``pip install 'vogn[transformers]'``.
"""

from __future__ import annotations

import accelerate
import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vogn
from vogn.interop.transformers import logits_only
from vogn.likelihoods import Categorical

LETTERS, LENGTH, TEXTS, EPOCHS = 12, 20, 50, 25
PADDING = 0


def successions() -> Tensor:
    """Probabilities of the next letter, ``(LETTERS, LETTERS)``: certain for the first letters, open for the last."""
    openness = torch.linspace(0.3, 2.5, LETTERS)[:, None]
    return torch.softmax(4 * torch.randn(LETTERS, LETTERS, generator=torch.Generator().manual_seed(0)) / openness**2, 1)


def texts(n: int, seed: int) -> Tensor:
    """Texts of 10 to ``LENGTH`` letters, which begin at 1; padded by 0."""
    source, chain = torch.Generator().manual_seed(seed), successions()
    letters = [torch.randint(0, LETTERS, (n,), generator=source)]
    for _ in range(LENGTH - 1):
        letters.append(torch.multinomial(chain[letters[-1]], 1, generator=source).squeeze(1))
    length = torch.randint(10, LENGTH + 1, (n, 1), generator=source)
    return torch.where(torch.arange(LENGTH) < length, torch.stack(letters, 1) + 1, PADDING)


def main() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=LETTERS + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, likelihood, train = transformers.LlamaForCausalLM(config), Categorical(), texts(TEXTS, seed=1)
    ess = 10 * int((train[:, 1:] != PADDING).sum())  # predicted letters; a cold posterior: temperature 0.1
    opt = vogn.KFAC(model, lr=0.3, ess=ess, weight_decay=30 / ess, damping=0.003)

    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    loader = DataLoader(TensorDataset(train), batch_size=10, shuffle=True, drop_last=True)
    model, opt, loader = accelerator.prepare(model, opt, loader)
    for _ in range(EPOCHS):
        for (ids,) in loader:
            with accelerator.accumulate(model):
                with opt.optimizer.sampled_params():
                    outputs, targets = model(input_ids=ids).logits[:, :-1], ids[:, 1:]
                    accelerator.backward(likelihood(outputs, targets, mask=targets != PADDING))
                opt.step()
                opt.zero_grad()

    test = texts(300, seed=2)
    places = test[:, 1:] != PADDING
    last, following = test[:, :-1][places] - 1, test[:, 1:][places]
    truth = torch.special.entr(successions()).sum(1)
    order = truth.argsort()
    print("after            share  entropy  of the model  NLL")
    for method in ("mean", "mc"):
        with logits_only(model):
            found = vogn.predict(model, opt.optimizer.posterior(), {"input_ids": test}, method=method, samples=16)
        p = found.mean[:, :-1][places]
        entropy = torch.special.entr(p).sum(1)
        for name, letters in (("certain letters", order[: LETTERS // 2]), ("open letters", order[LETTERS // 2 :])):
            here = torch.isin(last, letters)
            numbers = (here.float().mean(), truth[last[here]].mean(), entropy[here].mean())
            nll = vogn.metrics.nll(p[here], following[here])
            print("{:15s}  {:5.2f}  {:7.3f}  {:12.3f}  {:.3f}  ({})".format(name, *numbers, nll, method))
        print(f"calibration error {vogn.metrics.ece(p, following):.3f}")


if __name__ == "__main__":
    main()
