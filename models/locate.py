"""From what the user names to a checkpoint folder, with help for the usual mistakes."""

from __future__ import annotations

from pathlib import Path

from deepzig.errors import DeepZigError

from .files import has

MISTAKES = (
    ("manifest.json", "the folder is an artifact, compiled already", "run it: deepzig run {folder}"),
    ("adapter_config.json", "the folder holds an adapter, not a whole model", "merge it into its base model first"),
    ("snapshots/*/config.json", "the folder is a model in Hugging Face's cache", "name the snapshot in it: {match}"),
    ("*/config.json", "the folder has no config.json, but a folder in it has", "name that one: {match}"),
    ("*.safetensors", "the folder has weights but no config.json", "download config.json into it, too"),
)
"""What a folder without config.json may hold, what it is then, and what to do; the first that matches counts."""


def locate(path: Path) -> Path:
    """The checkpoint folder at `path`.

    Raises:
        DeepZigError: there is none; if it can be told what is there instead, the error says so.
    """
    if not has(path):
        raise DeepZigError("there is no such folder", str(path), "name a Hugging Face checkpoint folder")
    if not path.is_dir():
        what = "the file is neither GGUF nor a checkpoint folder"
        raise DeepZigError(
            what, str(path), f"name a .gguf file, or a folder that holds config.json, such as {path.parent}"
        )
    if has(path / "config.json"):
        return path
    for pattern, what, hint in MISTAKES:
        if found := sorted(path.glob(pattern)):
            raise DeepZigError(what, str(path), hint.format(folder=path, match=found[0].parent))
    raise DeepZigError("the folder has no config.json", str(path), "name a Hugging Face checkpoint folder")
