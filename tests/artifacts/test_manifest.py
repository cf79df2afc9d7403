"""The manifest: round trip, and whatever JSON a stranger may send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deepzig.artifacts.manifest import Call, Manifest
from deepzig.errors import DeepZigError

from .made import manifest_json

WHERE = "there/manifest.json"


def parsed(data: Any) -> Manifest:
    return Manifest.from_text(json.dumps(data), WHERE)


def refusal(text: str) -> str:
    with pytest.raises(DeepZigError) as caught:
        Manifest.from_text(text, WHERE)
    return str(caught.value)


def edited(path: str, value: Any) -> str:
    """The manifest's text with the field at a dotted path replaced; `...` deletes it."""
    data = manifest_json()
    at: Any = data
    *steps, last = path.split(".")
    for step in steps:
        at = at[int(step) if isinstance(at, list) else step]
    key: Any = int(last) if isinstance(at, list) else last
    if value is ...:
        del at[key]
    else:
        at[key] = value
    return json.dumps(data)


def test_round_trip() -> None:
    manifest = parsed({**manifest_json(), "files": {"a/b.bin": {"size": 0, "sha256": "0123456789abcdef" * 4}}})
    assert Manifest.from_text(manifest.to_json(), WHERE) == manifest
    data = json.loads(manifest.to_json())
    assert data == {**manifest_json(), "files": {"a/b.bin": {"size": 0, "sha256": "0123456789abcdef" * 4}}}
    assert manifest.builds[0].features == {"avx2", "fma"}
    assert manifest.builds[0].calls["prefill"] == (Call("proj_16", "proj", 0, "definition:3", ("4.0",)),)


def test_a_plan_stands_for_the_runtime() -> None:
    data = manifest_json()
    data["builds"][0] |= {"runtime": None, "plan": "code/x.plan.json"}
    manifest = parsed(data)
    assert manifest.builds[0].parts == ("code/x86-64-v3.so", "code/x.plan.json")
    assert json.loads(manifest.to_json()) == data


def test_a_call_that_writes_a_part() -> None:
    data = manifest_json()
    data["builds"][0]["calls"]["decode"][0]["partial"] = True
    manifest = parsed(data)
    assert manifest.builds[0].calls["decode"][0].partial and json.loads(manifest.to_json()) == data


REFUSED: list[tuple[str, Any, str]] = [
    ("created_by", 3, "the manifest's created_by is not a text"),
    ("model", [], "the manifest's model is not an object"),
    ("model.vocab_size", 0, "the manifest's model.vocab_size is not a whole number from 1"),
    ("model.vocab_size", True, "the manifest's model.vocab_size is not a whole number from 1"),
    ("model.eos_token_ids", 1, "the manifest's model.eos_token_ids is not a list"),
    ("model.eos_token_ids.0", -1, "the manifest's model.eos_token_ids entry is not a whole number from 0"),
    ("builds", [], "the manifest's builds are none"),
    ("builds.0.features", "avx2", "the manifest's builds[0].features is not a list"),
    ("builds.0.code", ..., "the manifest's builds[0].code is not a text"),
    ("builds.0.runtime", None, "the manifest's builds[0].runtime is not a text"),
    ("builds.0.plan", "", "the manifest's builds[0].plan is empty"),
    ("builds.0.plan", "plan.safetensors", "the manifest's builds[0].plan is a weight file"),
    ("builds.0.calls", [], "the manifest's builds[0].calls is not an object"),
    (
        "builds.0.calls.decode.0.partial",
        1,
        "the manifest's builds[0].calls.decode partial is neither true nor false",
    ),
    (
        "builds.0.calls.decode.0.layer",
        -1,
        "the manifest's builds[0].calls.decode layer is not a whole number from 0",
    ),
    ("abi.tvm_ffi", ..., "the manifest's abi.tvm_ffi is not a text"),
    ("entry_points.decode", ..., "the manifest's entry_points lack decode"),
    (
        "entry_points.decode.inputs.1.shape",
        ["n", 0],
        "the manifest's entry_points.decode.inputs seq shape is not a whole number from 1",
    ),
    (
        "entry_points.decode.states.0",
        "cache.7",
        "the manifest's entry_points.decode.states name cache.7, which is not listed",
    ),
    ("entry_points.prefill.weights.0", "x", "the manifest's entry_points.prefill.weights name x, which is not listed"),
    ("bounds.chunk", ..., "the manifest's bounds.chunk is not a whole number from 1"),
    ("bounds.rows", 63, "the manifest's bounds.rows is less than a chunk"),
    ("cache.0.dtype", "f64", "the manifest's cache cache.0 has an unknown type 'f64'"),
    ("cache.0.dtype", ["f32"], "the manifest's cache cache.0 has an unknown type ['f32']"),
    ("weights.0.shape", ["n"], "the manifest's weights norm@raw shape is not fixed"),
    ("memory.weights_bytes", 1.5, "the manifest's memory.weights_bytes is not a whole number from 0"),
    ("passes.0", None, "the manifest's passes is not a text"),
    ("files", {"a": {"size": 1, "sha256": "AB" * 32}}, "the manifest's files.a has no SHA-256"),
    ("files", {"a": {"size": -1, "sha256": "ab" * 32}}, "the manifest's files.a size is not a whole number from 0"),
]


@pytest.mark.parametrize(("path", "value", "what"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_wrong_field_is_named(path: str, value: Any, what: str) -> None:
    assert refusal(edited(path, value)) == f"{what}\n  at: there/manifest.json\n  fix: compile the model again"


def test_another_format() -> None:
    for version in (1, "2", None):
        assert refusal(edited("format", version)) == (
            f"the artifact has format {version!r}, this DeepZig reads 4\n"
            "  at: there/manifest.json\n"
            "  fix: compile the model again with this DeepZig"
        )


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"format": ' + "9" * 5000 + "}", "nul"])
def test_not_json(text: str) -> None:
    assert refusal(text) == "the manifest is not JSON\n  at: there/manifest.json\n  fix: compile the model again"


@pytest.mark.parametrize("text", ["3", '"x"', "[]", "null"])
def test_not_an_object(text: str) -> None:
    assert refusal(text).startswith("the manifest's manifest is not an object\n")


def test_a_key_twice() -> None:
    text = json.dumps(manifest_json()).replace('"rows": 96', '"rows": 96, "rows": 97')
    what = "the manifest names a key twice"
    assert refusal(text) == f"{what}\n  at: there/manifest.json\n  fix: compile the model again"


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


@pytest.mark.parametrize("wrong", [None, True, -1, 1.5, "", "x", [], [[]], {}, {"": None}, 10**30], ids=repr)
def test_any_value_anywhere_is_read_or_refused(wrong: Any) -> None:
    """Never another exception: what is read has the declared types, so it can be written and read again."""
    paths = [p for p in places(manifest_json()) if p]
    refused = 0
    for *steps, last in paths:
        data = manifest_json()
        at: Any = data
        for step in steps:
            at = at[step]
        at[last] = wrong
        try:
            manifest = parsed(data)
        except DeepZigError as error:
            refused += 1
            assert error.where == WHERE
        else:
            assert Manifest.from_text(manifest.to_json(), WHERE) == manifest
    assert refused > len(paths) // 3


def test_every_field_but_optional_ones_is_needed() -> None:
    for field in manifest_json():
        assert refusal(edited(field, ...))
