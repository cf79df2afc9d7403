"""Compare an exported folder with the training module, in transformers and f32; then score it as it is stored.

python -P -m deepzig.models.reference.verify build/reference/checkpoint.pt models/reference
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from .batches import Encoder
from .corpus import heldout
from .evaluate import evaluate
from .export import load
from .network import Model
from .tokenizer import build


@torch.no_grad()
def worst_difference(model: Model, peer: Any, encoder: Encoder, each: int) -> float:
    """Largest difference of logits, relative to the largest logit, over chats of every task."""
    worst = 0.0
    for question in heldout(None, each):
        tokens = torch.tensor([encoder.chat([question])[0]])
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()[None, None]
        ours, theirs = model.lm_head(model(tokens, mask)), peer(tokens).logits
        worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    return worst


@torch.no_grad()
def greedy_answers(peer: Any, tokenizer: Any, each: int) -> tuple[int, int, list[str]]:
    """How many held-out questions transformers' own greedy decoding answers exactly, of how many, and the failures."""
    right, wrong = 0, []
    questions = heldout(None, each)
    for question in questions:
        messages = [{"role": "user", "content": question.question}]
        form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        prompt = tokenizer.apply_chat_template(messages, **form)
        out = peer.generate(**prompt, do_sample=False, max_new_tokens=96)
        said = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right += said == question.answer
        if said != question.answer:
            wrong.append(f"{question.question} -> {said!r}, not {question.answer!r}")
    return right, len(questions), wrong


def main() -> None:
    """Print the comparison and the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=20, help="questions a task that transformers decodes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, encoder = load(arguments.checkpoint), Encoder(build())
    peer = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder)
    print(json.dumps(evaluate(model, encoder)))
    print(json.dumps({"worst_difference": worst_difference(model, peer, encoder, 5)}))
    same = evaluate(model, encoder, arguments.each)
    right, count, wrong = greedy_answers(peer, tokenizer, arguments.each)
    print(json.dumps({"greedy": right, "of": count, "share": round(right / count, 4), "module": same["exact"]}))
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
