"""What the compiler reads of a model, whatever it is stored as: config, weights, and the files that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint
from .config import ModelConfig
from .families import parse_config, read_config
from .fields import Fields, read_json
from .files import find_tensors, has
from .gguf_files import read_gguf
from .gguf_model import config_json, weights
from .gguf_tokenizer import tokenizer_files
from .hub import NAME, find_cached
from .locate import locate
from .side_files import side_files
from .storage import find_scheme, read_weights

INCLUDED = {"reference": Path(__file__).parent / "reference"}
"""Models that come with the package, by name."""


@dataclass(frozen=True)
class Source:
    """A model.

    Attributes:
        name: what it is called.
        config: its sizes and switches.
        checkpoint: its weights.
        files: name -> file, or content, of what an artifact carries beside code and weights.
    """

    name: str
    config: ModelConfig
    checkpoint: Checkpoint
    files: Mapping[str, Path | bytes]


def open_source(path: Path) -> Source:
    """The model that the user names.

    Args:
        path: a checkpoint folder, a GGUF file, the name of a model in Hugging Face's cache, or `reference`, the small
            model that comes with DeepZig.

    Raises:
        DeepZigError: there is none, or its config or files are damaged.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    folder = path if has(path) else INCLUDED.get(str(path)) or find_cached(str(path)) or path
    name = folder.resolve().name
    if folder is not path and (match := NAME.match(str(path))):
        name = match[1].rpartition("/")[2]
    locate(folder)
    config = read_config(folder)
    scheme = find_scheme(read_json(folder / "config.json"), str(folder / "config.json"))
    checkpoint = Checkpoint(read_weights(find_tensors(folder), scheme), str(folder))
    return Source(name, config, checkpoint, dict(side_files(folder)))


def _open_gguf(path: Path) -> Source:
    file = read_gguf(path)
    data = config_json(file)
    config = parse_config(Fields(data, str(path)))
    return Source(path.stem, config, Checkpoint(weights(file, data), str(path)), tokenizer_files(file))
