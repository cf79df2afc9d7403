"""Models by name, from Hugging Face's cache, without network."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from deepzig.compiler.driver import fuse
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models.hub import cache_folder, find_cached
from deepzig.models.source import open_source

from .folders import config, random_weights, write

NAME = "deepseek-ai/DeepSeek-V3.1_x"
VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub leaves it: files are links to blobs."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "hub" / "models--deepseek-ai--DeepSeek-V3.1_x"
    (model / "refs" / "pr").mkdir(parents=True)
    (model / "blobs").mkdir()
    for seed, commit in enumerate(("aa11", "bb22")):
        snapshot = write(model / "snapshots" / commit, random_weights(config(), seed))
        for path in list(snapshot.iterdir()):
            path.rename(model / "blobs" / f"{commit}{path.name}")
            path.symlink_to(f"../../blobs/{commit}{path.name}")
    (model / "refs" / "main").write_text("aa11")
    (model / "refs" / "pr" / "7").write_text("bb22\n")
    return model


@pytest.mark.parametrize(
    ("text", "commit"), [(NAME, "aa11"), (f"{NAME}@main", "aa11"), (f"{NAME}@bb22", "bb22"), (f"{NAME}@pr/7", "bb22")]
)
def test_a_name_is_a_snapshot(text: str, commit: str, cache: Path) -> None:
    assert find_cached(text) == cache / "snapshots" / commit
    source, _ = fuse(Path(text), Options())
    assert source.name == "DeepSeek-V3.1_x"
    assert source.checkpoint.read("lm_head.weight").shape == (67, 40)


def test_a_folder_goes_before_a_name(cache: Path, tmp_path: Path) -> None:
    write(tmp_path / NAME, random_weights(config(), 9))
    (cache / "refs" / "main").write_text("gone")
    assert open_source(Path(NAME)).name == "DeepSeek-V3.1_x"


@pytest.mark.parametrize(
    ("text", "what", "place", "hint"),
    [
        (
            "moonshotai/Kimi-K2",
            "there is no folder moonshotai/Kimi-K2, and no model moonshotai/Kimi-K2 in Hugging Face's cache",
            "models--moonshotai--Kimi-K2",
            "check the path, or fetch the model: hf download moonshotai/Kimi-K2",
        ),
        (
            "a/b@v1",
            "there is no folder a/b@v1, and no model a/b in Hugging Face's cache",
            "models--a--b",
            "check the path, or fetch the model: hf download a/b --revision v1",
        ),
        (
            f"{NAME}@cc33",
            f"revision cc33 of {NAME} was not downloaded",
            "models--deepseek-ai--DeepSeek-V3.1_x",
            f"hf download {NAME} --revision cc33",
        ),
    ],
)
def test_what_was_not_downloaded(text: str, what: str, place: str, hint: str, cache: Path) -> None:
    with pytest.raises(DeepZigError) as error:
        fuse(Path(text), Options())
    assert str(error.value) == f"{what}\n  at: {cache.parent / place}\n  fix: {hint}"


@pytest.mark.parametrize("ref", ["../../../etc", "", "a b"])
def test_a_reference_that_is_no_commit(ref: str, cache: Path) -> None:
    (cache / "refs" / "main").write_text(ref)
    with pytest.raises(DeepZigError) as error:
        find_cached(NAME)
    assert error.value.what == f"revision main of {NAME} was not downloaded"


def test_a_download_that_was_cut_off(cache: Path) -> None:
    (cache / "blobs" / "aa11model.safetensors").unlink()
    with pytest.raises(DeepZigError) as error:
        fuse(Path(NAME), Options())
    assert error.value.what == "the file is a link to a file that is not there"
    assert error.value.where == str(cache / "snapshots" / "aa11" / "model.safetensors")


@pytest.mark.parametrize(
    "text", ["./model", "/abs/model", "model", "a/b/c", "../x", "a/..", "a b/c", "a/b@../c", ".hidden/x"]
)
def test_what_is_no_name(text: str, cache: Path) -> None:
    assert find_cached(text) is None


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("~/.cache/huggingface/hub").expanduser()
    for name, value, place in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "/h", "/h/hub"),
        ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
        ("HF_HUB_CACHE", "/c", "/c"),
    ):
        monkeypatch.setenv(name, value)
        assert cache_folder() == Path(place)
    assert Path(constants.default_cache_path).name == "hub"
