"""Puts the demo page together: a folder for any server of static files.

The folder has artifacts already, each in a folder named as its row in `DEVICES` of page.js; what they and the page
consist of is listed in site.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

DEMO = Path(__file__).parent
WEB = DEMO.parent
NOT_FOR_PAGES = {"node.js", "serve.js"}
PACKAGES = {
    "packages/jinja.js": "@huggingface/jinja/dist/index.js",
    "packages/tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}


def build(out: Path) -> None:
    """Copy the page, the package and what it depends on, and list them with the artifacts that are there."""
    page = {p.name: p for p in DEMO.iterdir() if p.suffix in (".html", ".css", ".js")}
    library = {f"deepzig/{p.name}": p for p in (WEB / "src").glob("*.js") if p.name not in NOT_FOR_PAGES}
    packages = {name: WEB / "node_modules" / path for name, path in PACKAGES.items()}
    files = {**page, **library, **packages}
    for name, source in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)
    models = sorted(p.parent.name for p in out.glob("*/manifest.json"))
    listed = sorted([*files, *(f"{model}/manifest.json" for model in models)])
    (out / "site.json").write_text(json.dumps({"files": listed, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
