"""The files of a checkpoint that an artifact keeps beside the weights: tokenizer, chat templates, generation config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .tiktoken_files import TIKTOKEN, tokenizer_json

TOKENIZER = "tokenizer.json"
COPIED = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
MORE_TEMPLATES = "additional_chat_templates"


def side_files(folder: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Name in the artifact, and the file to copy or the bytes to write, of all that the checkpoint has.

    Raises:
        DeepZigError: a tiktoken file that can't be made a tokenizer.json.
    """
    for name in COPIED:
        if (folder / name).is_file():
            yield name, folder / name
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        yield f"{MORE_TEMPLATES}/{path.name}", path
    if not (folder / TOKENIZER).is_file() and (folder / TIKTOKEN).is_file():
        yield TOKENIZER, tokenizer_json(folder).encode()
