"""A small ONNX model with the inputs, outputs, metadata and files of an export, and what it computes in numpy.

It is no language model, but its logits depend on all tokens before, on positions and on padding: the latent of a row is
that of its token plus that of its position, and logits come from the sum of the latents up to the row.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB, POSITIONS, WIDTH, LAYERS = 611, 200, 7, 2
PROTO = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}


class Expected:
    """The model in numpy; `tokens`, `places` [LAYERS, ...] and `head` are its weights."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tokens = rng.normal(0, 1, (LAYERS, VOCAB, WIDTH)).astype(np.float32)
        self.places = rng.normal(0, 1, (LAYERS, POSITIONS, WIDTH)).astype(np.float32)
        self.head = rng.normal(0, 1, (WIDTH, VOCAB)).astype(np.float32)

    def latents(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """f32 [LAYERS, ..., WIDTH]."""
        return self.tokens[:, ids] + self.places[:, positions]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Of all positions of a text, f32 [n, VOCAB]."""
        latents = self.latents(np.array(tokens), np.arange(len(tokens)))
        return np.tanh(np.cumsum(latents.sum(0), 0)) @ self.head


def graph(model: Expected, dtype: str) -> onnx.GraphProto:
    """The model, with caches of `dtype`; sums are f32."""
    element, node = PROTO[dtype], helper.make_node
    integers = {"one": [1], "zero": [0], "end": [2**31 - 1], "two": [2]}
    weights = {"head": model.head}
    nodes = [
        node("Cast", ["attention_mask"], ["mask.f32"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask.f32", "two"], ["mask"]),
        node("Shape", ["input_ids"], ["rows"], start=1, end=2),
        node("Neg", ["rows"], ["from"]),
    ]
    for layer in range(LAYERS):
        past, present = f"past_key_values.{layer}.latent", f"present.{layer}.latent"
        weights |= {f"tokens.{layer}": model.tokens[layer], f"places.{layer}": model.places[layer]}
        nodes += [
            node("Gather", [f"tokens.{layer}", "input_ids"], [f"token.{layer}"]),
            node("Gather", [f"places.{layer}", "position_ids"], [f"place.{layer}"]),
            node("Add", [f"token.{layer}", f"place.{layer}"], [f"new.{layer}"]),
            node("Cast", [f"new.{layer}"], [f"stored.{layer}"], to=element),
            node("Concat", [past, f"stored.{layer}"], [present], axis=1),
            node("Cast", [present], [f"all.{layer}"], to=TensorProto.FLOAT),
        ]
    nodes += [
        node("Sum", [f"all.{layer}" for layer in range(LAYERS)], ["sum"]),
        node("Mul", ["sum", "mask"], ["masked"]),
        node("CumSum", ["masked", "one"], ["sums"]),
        node("Slice", ["sums", "from", "end", "one"], ["last"]),
        node("Tanh", ["last"], ["bent"]),
        node("MatMul", ["bent", "head"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    ids = [value(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "position_ids")]
    mask = value("attention_mask", TensorProto.INT64, ["batch", "total"])
    pasts = [value(f"past_key_values.{i}.latent", element, ["batch", "past", WIDTH]) for i in range(LAYERS)]
    presents = [value(f"present.{i}.latent", element, ["batch", "total", WIDTH]) for i in range(LAYERS)]
    logits = value("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])
    constants = {name: np.array(values, np.int64) for name, values in integers.items()}
    initializers = [numpy_helper.from_array(array, name) for name, array in (constants | weights).items()]
    return helper.make_graph(nodes, "model", [ids[0], mask, ids[1], *pasts], [logits, *presents], initializers)


def write(folder: Path, dtype: str = "f32", seed: int = 0, **metadata: str | None) -> Path:
    """A model and the files beside it; `metadata` replaces entries of its metadata, or takes them away."""
    folder.mkdir(parents=True, exist_ok=True)
    path, model = folder / "model.onnx", Expected(seed)
    proto = helper.make_model(graph(model, dtype), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(proto, path, save_as_external_data=True, location="model.onnx.data")
    write_vectors(folder / "model.onnx.vectors", model, dtype)
    config = {
        "vocab_size": VOCAB, "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS, "eos_token_ids": [1]
    }  # fmt: skip
    beside = ("model.onnx.data", "model.onnx.vectors")
    entries = {
        "version": "9.9", "config": json.dumps(config), "quant": "", "vectors": "model.onnx.vectors",
        "files": json.dumps({name: entry(folder / name) for name in beside}), **metadata,
    }  # fmt: skip
    annotate(path, {f"deepzig.{key}": text for key, text in entries.items() if text is not None})
    return path


def annotate(path: Path, metadata: dict[str, str]) -> None:
    """Replace the metadata of a model."""
    proto = onnx.load_model(path, load_external_data=False)
    del proto.metadata_props[:]
    helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())


def entry(path: Path) -> dict[str, Any]:
    """What the metadata says of a file."""
    content = path.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_vectors(path: Path, model: Expected, dtype: str) -> None:
    """A prefill of two texts, the second padded on its left, and a step of decoding after it."""
    import torch
    from safetensors.torch import save_file

    types = {"f32": torch.float32, "f16": torch.float16}
    rng = np.random.default_rng(3)
    ids, padding = rng.integers(2, VOCAB, (2, 6)), np.array([0, 2])
    tensors: dict[str, Any] = {}
    for call, begin, end in (("prefill", 0, 5), ("decode", 5, 6)):
        positions = np.maximum(np.arange(end)[None] - padding[:, None], 0)
        mask = (np.arange(end)[None] >= padding[:, None]).astype(np.int64)
        latents = torch.tensor(model.latents(ids[:, :end], positions)).to(types[dtype])
        sums = np.cumsum((latents.float().numpy().sum(0) * mask[..., None]), 1)
        given = {
            "input_ids": ids[:, begin:end], "attention_mask": mask, "position_ids": positions[:, begin:end],
            "logits": (np.tanh(sums) @ model.head)[:, begin:end].astype(np.float32),
        }  # fmt: skip
        tensors |= {f"{call}/{name}": torch.tensor(np.ascontiguousarray(array)) for name, array in given.items()}
        for layer in range(LAYERS):
            tensors[f"{call}/past_key_values.{layer}.latent"] = latents[layer, :, :begin].contiguous()
            tensors[f"{call}/present.{layer}.latent"] = latents[layer].clone()
    save_file(tensors, path)
