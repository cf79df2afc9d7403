"""The reader: what is damaged, foreign or hostile is refused before any code is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepzig.artifacts import cpu_features, reader
from deepzig.artifacts.machines import Machine
from deepzig.artifacts.reader import map_weights, open_artifact
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from . import made

MACHINE = Machine("x86_64-linux", frozenset({"avx2", "fma", "amx-tile", "f16c", "bmi2"}))
COPY_AGAIN = "copy or compile the artifact again"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return made.write(tmp_path / "out", shard_bytes=600)


class Auxiliary:
    """getauxval as ctypes has it."""

    restype: Any = None

    def __init__(self, values: dict[int, int]) -> None:
        self.values = values

    def __call__(self, entry: int) -> int:
        return self.values[entry]


def refusal(path: Path, full: bool = False, machine: Machine = MACHINE) -> str:
    with pytest.raises(DeepZigError) as caught:
        open_artifact(path, full, machine)
    return str(caught.value)


def lines(what: str, where: object, hint: str = COPY_AGAIN) -> str:
    return f"{what}\n  at: {where}\n  fix: {hint}"


def test_what_was_written_is_read(artifact: Path) -> None:
    checked = open_artifact(artifact, full=True, machine=MACHINE)
    weights = map_weights(checked)
    assert set(weights) == set(made.WEIGHTS)
    for name, (_, weight) in made.WEIGHTS.items():
        entry, data = weights[name]
        assert data.ctypes.data % 64 == 0 and data.tobytes() == weight.tobytes() and entry.shape == weight.shape


def test_mapped_weights_are_private(artifact: Path) -> None:
    checked = open_artifact(artifact, machine=MACHINE)
    map_weights(checked)["norm@raw"][1][:] = 9
    open_artifact(artifact, full=True, machine=MACHINE)


def test_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "nothing" / "inner", tmp_path / ("x" * 3000)):
        assert refusal(path) == lines("there is no artifact", path, "make one with deepzig-compile")


def test_a_manifest_that_cannot_be_read(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_bytes(b"\xff\xfe{}")
    assert refusal(artifact) == lines("the manifest is not UTF-8", path)
    path.unlink()
    path.mkdir()
    assert refusal(artifact) == lines("a part is not a plain file", path)


def test_a_huge_manifest(artifact: Path) -> None:
    """Refused by its size, without reading it."""
    path = artifact / "manifest.json"
    os.truncate(path, 3 << 40)
    assert refusal(artifact) == lines("the manifest is too large", path)


def test_another_tvm_ffi(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "version", lambda name: "9.9")
    made.edit(artifact, lambda m: m["abi"].update(tvm_ffi="0.1.2"))
    assert refusal(artifact) == lines(
        "the artifact needs apache-tvm-ffi 0.1.2, 9.9 is installed",
        artifact,
        "pip install apache-tvm-ffi==0.1.2, or compile the model again",
    )


def test_a_cpu_that_lacks_something(artifact: Path) -> None:
    assert refusal(artifact, machine=Machine("x86_64-linux", frozenset({"sse4.2", "fma"}))) == lines(
        "this CPU lacks avx2, which the artifact needs",
        artifact,
        "deepzig-compile m --target llvm:cpu=x86-64-v2 -o DIR",
    )


@pytest.mark.parametrize(("platform", "kind"), [("aarch64-macos", "aarch64-macos"), ("riscv64-linux", "native")])
def test_another_platform(platform: str, kind: str, artifact: Path) -> None:
    assert refusal(artifact, machine=Machine(platform, frozenset({"neon", "dotprod"}))) == lines(
        f"the artifact is for x86_64-linux, this machine is {platform}",
        artifact,
        f"deepzig-compile m --target llvm:cpu={kind} -o DIR",
    )


def test_a_command_that_is_shown_can_be_pasted(artifact: Path) -> None:
    made.edit(artifact, lambda m: m["model"].update(name="my model; rm x"))
    told = refusal(artifact, machine=Machine("aarch64-macos", frozenset({"neon", "dotprod"})))
    assert told.endswith("fix: deepzig-compile 'my model; rm x' --target llvm:cpu=aarch64-macos -o DIR")


def test_the_most_demanding_code_that_fits_is_chosen(artifact: Path) -> None:
    def more(manifest: dict[str, Any]) -> None:
        (build,) = manifest["builds"]
        for name, features in (("none", []), ("neon", ["neon"]), ("more", ["avx2", "avx512f", "fma"])):
            manifest["builds"].insert(1, {**build, "name": name, "features": features})
        manifest["builds"].append({**build, "name": "elsewhere", "platform": "aarch64-linux", "features": []})

    made.edit(artifact, more)
    for features, name in ({"avx2", "fma"}, "x86-64-v3"), ({"avx2"}, "none"), ({"avx2", "fma", "avx512f"}, "more"):
        assert open_artifact(artifact, machine=Machine("x86_64-linux", frozenset(features))).build.name == name


def test_truncated_weights(artifact: Path) -> None:
    path = artifact / "weights-00002.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert refusal(artifact) == lines(f"the file has {size - 1} bytes, not {size}", path)
    made.edit(artifact, lambda m: m["files"]["weights-00002.safetensors"].update(size=size - 1))
    assert "the file ends 1 bytes before the tensor does" in refusal(artifact)


@pytest.mark.parametrize("name", ["code/x86-64-v3.so", made.RUNTIME])
def test_changed_code(artifact: Path, name: str) -> None:
    path = artifact / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert refusal(artifact) == lines("the file was changed: its SHA-256 differs from the manifest's", path)


def test_changed_weights_are_found_when_asked(artifact: Path) -> None:
    path = artifact / "weights-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    open_artifact(artifact, machine=MACHINE)
    assert refusal(artifact, full=True) == lines("the file was changed: its SHA-256 differs from the manifest's", path)


@pytest.mark.parametrize("name", ["code/x86-64-v3.so", made.RUNTIME, "weights-00001.safetensors"])
def test_a_missing_part(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    assert refusal(artifact) == lines("a part is missing", artifact / name)


@pytest.mark.parametrize("name", ["code/x86-64-v3.so", made.RUNTIME])
def test_code_that_is_not_listed(artifact: Path, name: str) -> None:
    made.edit(artifact, lambda m: m["files"].pop(name))
    assert refusal(artifact) == lines(f"the manifest does not list {name}", artifact / "manifest.json")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "a\\b", ""])
def test_a_part_outside(artifact: Path, name: str) -> None:
    (artifact.parent / "secret").write_text("x")
    made.edit(artifact, lambda m: m["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    where = f"{artifact / 'manifest.json'}, file {name!r}"
    assert refusal(artifact) == lines("a part lies outside the artifact", where)


@pytest.mark.parametrize("name", ["code/x86-64-v3.so", "lib"])
def test_a_symbolic_link(artifact: Path, name: str) -> None:
    (artifact / name).rename(artifact.parent / "elsewhere")
    (artifact / name).symlink_to(artifact.parent / "elsewhere")
    assert refusal(artifact) == lines("a part is a symbolic link", artifact / name, "copy the file itself")


def test_a_folder_for_a_part(artifact: Path) -> None:
    made.edit(artifact, lambda m: m["files"].update(lib={"size": 1, "sha256": "0" * 64}))
    assert refusal(artifact) == lines("a part is not a plain file", artifact / "lib")


def reshape(artifact: Path, change: Any) -> Path:
    """Rewrite the header of the first weight file, payload and its size kept."""
    path = artifact / "weights-00001.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes((len(text) + -(8 + len(text)) % 64).to_bytes(8, "little") + text.ljust(
        len(text) + -(8 + len(text)) % 64) + raw[8 + length :])  # fmt: skip
    made.edit(artifact, lambda m: m["files"][path.name].update(size=path.stat().st_size))
    return path


def test_a_weight_of_another_shape(artifact: Path) -> None:
    path = reshape(artifact, lambda h: h["norm@raw"].update(shape=[7, 1]))
    assert refusal(artifact) == lines("a weight is F32[7, 1], not F32[7]", f"{path}, tensor norm@raw")


def test_a_weight_of_another_type(artifact: Path) -> None:
    path = reshape(artifact, lambda h: h["norm@raw"].update(dtype="I32"))
    assert refusal(artifact) == lines("a weight is I32[7], not F32[7]", f"{path}, tensor norm@raw")


def test_a_missing_weight(artifact: Path) -> None:
    reshape(artifact, lambda h: h.update({"other": h.pop("norm@raw")}))
    assert refusal(artifact) == lines("a weight is missing", f"{artifact}, tensor norm@raw")


def test_a_weight_in_two_files(artifact: Path) -> None:
    path = reshape(artifact, lambda h: h.update({"embed@raw": h.pop("norm@raw")}))
    embed = next(i for i, name in enumerate(made.WEIGHTS) if name == "embed@raw")
    made.edit(artifact, lambda m: m["weights"].pop(embed))
    made.edit(artifact, lambda m: [p.update(weights=[]) for p in m["entry_points"].values()])
    second = next(p for p in artifact.glob("weights-*") if p != path and "embed@raw" in read_header(p))
    assert refusal(artifact) == lines("a weight is in two files", f"{second}, tensor embed@raw")


def test_a_misaligned_weight(artifact: Path) -> None:
    def move(header: dict[str, Any]) -> None:
        """The padding in front of the weight instead of behind it."""
        pad = header.pop("_pad.1")
        weight = header.pop("norm@raw")
        size, gap = 28, 36
        header["_pad.1"] = {**pad, "data_offsets": [0, gap]}
        header["norm@raw"] = {**weight, "data_offsets": [gap, gap + size]}

    path = reshape(artifact, move)
    assert refusal(artifact) == lines("a weight is not aligned to 64 bytes", f"{path}, tensor norm@raw")


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
vmx flags\t: avx512f
flags\t\t: fpu sse2 avx avx2 fma f16c avx512_vnni amx_bf16 hypervisor made_up

processor\t: 1
flags\t\t: fpu avx512f
"""


def test_features_of_x86(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Linux")
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    want = {"avx", "avx2", "fma", "f16c", "avx512vnni", "amx-bf16"}
    assert cpu_features.cpuinfo_features(tmp_path / "cpuinfo") == want


@pytest.mark.parametrize(("answer", "left"), [(0, {"avx2", "amx-tile", "amx-bf16"}), (-1, {"avx2"})])
def test_tiles_are_asked_for(answer: int, left: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not at all where the CPU has none."""
    asked = []

    def syscall(*arguments: Any) -> int:
        asked.append([a.value for a in arguments])
        return answer

    cpu_features._request_tiles.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(cpu_features.ctypes, "CDLL", lambda name: SimpleNamespace(syscall=syscall))
        assert cpu_features.permitted(frozenset({"avx2"})) == {"avx2"} and not asked
        for _ in range(2):
            assert cpu_features.permitted(frozenset({"avx2", "amx-tile", "amx-bf16"})) == left
    cpu_features._request_tiles.cache_clear()
    assert asked == [[158, 0x1023, 18]]


def test_features_of_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Linux")
    bits = {16: 1 << 1 | 1 << 20 | 1 << 5, 26: 1 << 13}
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "aarch64")
    process = SimpleNamespace(getauxval=Auxiliary(bits))
    monkeypatch.setattr(cpu_features.ctypes, "CDLL", lambda name: process)
    assert cpu_features.detect() == {"neon", "dotprod", "i8mm"}


@pytest.mark.parametrize(
    ("present", "want"),
    [({38, 40}, {"sse4.2", "avx", "avx2", "bmi2", "f16c", "fma"}), ({38}, {"sse4.2"}), (set(), set())],
)
def test_features_of_windows(present: set[int], want: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Windows")
    kernel = SimpleNamespace(kernel32=SimpleNamespace(IsProcessorFeaturePresent=lambda number: number in present))
    monkeypatch.setattr(cpu_features.ctypes, "windll", kernel, raising=False)
    assert cpu_features.detect() == want


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [("Linux", "x86_64", "x86_64-linux"), ("Windows", "AMD64", "x86_64-windows"), ("Darwin", "arm64", "aarch64-macos")],
)
def test_names_of_platforms(system: str, machine: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "detect", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setattr(cpu_features.platform, "system", lambda: system)
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: machine)
    assert cpu_features.this_machine() == Machine(name, frozenset({"avx2", "fma"}))
    monkeypatch.setenv("DEEPZIG_CPU_FEATURES", "fma, neon")
    assert cpu_features.this_machine().features == {"fma"}


def test_features_of_the_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Linux")
    (tmp_path / "cpuinfo").write_text("cpu : POWER9\n")
    assert cpu_features.cpuinfo_features(tmp_path / "cpuinfo") == frozenset()
    assert cpu_features.cpuinfo_features(tmp_path / "nothing") == frozenset()


def test_features_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\nhw.optional.arm.FEAT_I8MM: 1\n"
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "arm64")
    done = cpu_features.subprocess.CompletedProcess([], 0, asked)
    monkeypatch.setattr(cpu_features.subprocess, "run", lambda *a, **k: done)
    assert cpu_features.detect() == {"neon", "dotprod", "i8mm"}
    done.stdout = ""  # macOS 11 knows none of these names
    assert cpu_features.detect() == {"neon", "dotprod"}
