"""The reference model in headless Chromium: the answers of node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepzig.models.reference.corpus import heldout
from deepzig.runtime import Model

from .browser import in_browser
from .test_javascript import bytes_to_read


@pytest.fixture
def root(artifact: Path, tmp_path: Path) -> Path:
    shutil.copytree(artifact, tmp_path / "root" / "my model")
    return tmp_path / "root"


def answers(root: Path, tmp_path: Path, prompts: list[list[int]]) -> object:
    return in_browser(root, tmp_path / "profile", f"""
        import {{ load }} from "/web/src/index.js";
        export default async function () {{
          let loaded;
          const model = await load("my model", {{ onProgress: (progress) => {{ loaded = progress; }} }});
          const answers = [];
          for (const prompt of {json.dumps(prompts)}) {{
            const answer = [];
            for await (const token of model.generate(prompt, {{ maxTokens: 96 }})) answer.push(token);
            answers.push(answer);
          }}
          return {{ loaded, answers }};
        }}
    """)  # fmt: skip


def same_answers(root: Path, tmp_path: Path, model: Model, count: int) -> None:
    questions = [[{"role": "user", "content": q.question}] for q in heldout(None, 8)[:count]]
    assert len(questions) == count
    prompts = [model.tokenizer.encode_chat(question) for question in questions]
    told = answers(root, tmp_path, prompts)
    size = bytes_to_read(root / "my model")
    want = [list(model.generate(prompt, max_tokens=96).token_ids) for prompt in prompts]
    assert told == {"loaded": {"loaded": size, "total": size}, "answers": want}


def test_answers(root: Path, tmp_path: Path, model: Model) -> None:
    same_answers(root, tmp_path, model, 5)


@pytest.mark.slow
def test_100_answers(root: Path, tmp_path: Path, model: Model) -> None:
    same_answers(root, tmp_path, model, 100)


def test_errors(root: Path, tmp_path: Path) -> None:
    """A damaged shard, a part that is not there, and a load that is aborted."""
    shard = root / "my model" / "weights-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100_000] ^= 16
    shard.write_bytes(data)
    damaged, missing, aborted = in_browser(root, tmp_path / "profile", """
        import { DeepZigError, load } from "/web/src/index.js";
        const message = async (work) => {
          try { await work(); } catch (error) {
            return error instanceof DeepZigError ? error.message.replace(location.origin, "") : error.name;
          }
        };
        export default async function () {
          const stop = new AbortController();
          const onProgress = ({ loaded }) => { if (loaded > 500_000) stop.abort(); };
          return [
            await message(() => load("my model")),
            await message(() => load("/another/")),
            await message(() => load("my model", { signal: stop.signal, onProgress })),
          ];
        }
    """)  # fmt: skip
    assert damaged == (
        "the file was changed: its SHA-256 differs from the manifest's\n"
        "  at: /my%20model/weights-00001.safetensors\n  fix: copy or compile the artifact again"
    )
    assert missing == (
        "the server answers 404 File not found\n  at: /another/manifest.json\n  fix: check the address"
    )
    assert aborted == "AbortError"
