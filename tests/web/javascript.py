"""Runs the body of a function in node, with the package's modules at hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from deepzig.web import SERVE

WEB = SERVE.parents[1]
SOURCE = WEB / "src"
SECONDS = 120
HELPERS = """
    const message = async (work) => {
      try { await work(); } catch (error) { return error instanceof DeepZigError ? error.message : error.name; }
    };
    const all = async (pieces) => {
      const list = [];
      for await (const piece of pieces) list.push(piece);
      return list;
    };
"""


def run(node: str, /, body: str, given: Any = None, cwd: Path | None = None, **modules: str) -> Any:
    """What a program returns.

    Args:
        node: the program that runs it.
        body: of an asynchronous function; it sees `given`.
        given: goes in as JSON.
        cwd: where it runs.
        modules: file of the package -> the names that the body takes from it.
    """
    imports = "\n".join(
        f"import {{ {names} }} from {json.dumps((SOURCE / f'{module}.js').as_uri())};"
        for module, names in {"errors": "DeepZigError", **modules}.items()
    )
    text = f"""
        {imports}
        import {{ readFileSync }} from "node:fs";
        const given = JSON.parse(readFileSync(0, "utf8"));
        {HELPERS}
        const result = await (async () => {{ {body} }})();
        console.log(JSON.stringify(result));
    """
    command = [node, "--input-type=module", "--eval", text]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, timeout=SECONDS, cwd=cwd, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
