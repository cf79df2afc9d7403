"""Train the reference model: `python -P -m deepzig.models.reference.train --minutes 60 --out build/reference`.

Goes on from `checkpoint.pt` in the output folder when there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .batches import Batch, Encoder
from .evaluate import evaluate
from .muon import Muon
from .network import Config, Model
from .tokenizer import build


@dataclass(frozen=True)
class Recipe:
    """What a run can be told.

    Attributes:
        minutes: Wall clock of the whole run; the schedule follows the clock, so a slow machine does fewer steps.
        rows: Rows of 128 tokens a step.
        muon, adam: Peak learning rates of the matrices, and of embeddings, heads, norms and routers.
        decay: Share of the run, at its end, in which the rates fall to zero.
        gamma: Step of the routers' bias (report, section 2.1.2), falling with the learning rate.
        mtp: Weight of the MTP loss; a third of it in the decay.
    """

    minutes: float = 60.0
    rows: int = 32
    muon: float = 0.004
    adam: float = 0.002
    decay: float = 0.5
    gamma: float = 0.008
    mtp: float = 0.3


def losses(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the answers, by the model and by the MTP layer; the latter over half of the rows."""
    half = len(batch.tokens) // 2
    model.count(batch.real, batch.real[:half, :-1])
    hidden = model(batch.tokens, batch.mask)
    said = batch.answered[:, 1:]
    main = functional.cross_entropy(model.lm_head(hidden[:, :-1][said]), batch.tokens[:, 1:][said])
    following, mask = batch.tokens[:half, 1:], batch.mask[:half, :, :-1, :-1]
    drafted = model.mtp.predict(hidden[:half, :-1], following, mask, model.turn[: following.shape[1]])
    said = batch.answered[:half, 2:]
    draft = functional.cross_entropy(model.mtp.shared_head.head(drafted[:, :-1][said]), batch.tokens[:half, 2:][said])
    return main, draft


def balance(model: Model, gamma: float) -> None:
    """Raise the bias of experts below the mean load, lower it above (report, section 2.1.2)."""
    for moe in model.moes():
        moe.e_score_correction_bias += gamma * (moe.load.mean() - moe.load).sign()
        moe.load.zero_()


def optimizers(model: Model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for what is looked up, normed or chooses."""
    looked_up = ("embed_tokens", "head", "norm", "mlp.gate.weight")
    matrices = [w for n, w in model.named_parameters() if not any(key in n for key in looked_up)]
    others = [w for n, w in model.named_parameters() if any(key in n for key in looked_up)]
    adam = torch.optim.AdamW(others, recipe.adam, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, recipe.muon), adam]


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    out: Path = arguments.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    train(Recipe(**arguments), out)


def train(recipe: Recipe, out: Path) -> None:
    """Train until the time is over; `log.jsonl` and `checkpoint.pt` in `out` tell how far it is."""
    torch.set_num_threads(1)  # threads that wait for each other lose more than they gain on a shared machine
    torch.manual_seed(0)
    encoder = Encoder(build())
    model = Model(Config())
    optims = optimizers(model, recipe)
    step, spent = 0, 0.0
    saved = out / "checkpoint.pt"
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for optim, old in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(old)
        step, spent = state["step"], state["spent"]
    start = time.monotonic() - spent
    last_saved = last_seen = start + spent
    total = torch.zeros(3)
    while spent < recipe.minutes * 60:
        share = min((1 - spent / (recipe.minutes * 60)) / recipe.decay, 1.0)
        for optim, peak in zip(optims, (recipe.muon, recipe.adam), strict=True):
            for group in optim.param_groups:
                group["lr"] = peak * share * min(1.0, (step + 1) / 30)
        said, drafted = losses(model, encoder.training_batch(step, recipe.rows))
        torch.autograd.backward(said + recipe.mtp * (1 if share == 1 else 1 / 3) * drafted)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        balance(model, recipe.gamma * share)
        total += torch.tensor([said.item(), drafted.item(), 1])
        step += 1
        now = time.monotonic()
        spent = now - start
        done = spent >= recipe.minutes * 60
        if step % 50 == 0:
            loss, draft = (total[:2] / total[2]).tolist()
            total.zero_()
            log(out, {"step": step, "seconds": round(spent, 1), "loss": round(loss, 4), "draft": round(draft, 4)})
        if now - last_seen > 240 or done:
            last_seen = now
            log(out, {"step": step, "seconds": round(spent, 1), **evaluate(model, encoder, 160 if done else 48)})
        if now - last_saved > 300 or done:
            last_saved = now
            states = {"optims": [optim.state_dict() for optim in optims], "step": step, "spent": spent}
            torch.save({"model": model.state_dict(), **states}, saved.with_suffix(".new"))
            saved.with_suffix(".new").rename(saved)


def log(out: Path, entry: dict[str, object]) -> None:
    """A line of `log.jsonl` and of standard output."""
    line = json.dumps(entry)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
