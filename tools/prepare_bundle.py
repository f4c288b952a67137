# SPDX-License-Identifier: Apache-2.0
"""Put a bundle, with weights or without, into the three forms in which bundles are handed out; nothing is uploaded.

    python tools/prepare_bundle.py memorization_audit --models runs/models --url https://host/weights --output-dir dist

writes, for version V of the bundle NAME,

    dist/NAME_vV.zip         the whole bundle, for `python -m monai.bundle download NAME --url ...`
    dist/model_zoo/NAME      for a pull request to the Model Zoo: large_files.yml says where files above 25 MB are
    dist/hugging_face/NAME   the folder that MONAI's push_to_hf_hub uploads, with the model card at its root
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import yaml

BUNDLES = Path(__file__).parent.parent / "bundles"
# what the Model Zoo takes into its repository
LARGEST = 25 * 2**20
CARD = "---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: apache-2.0\n---\n"


def prepare(name: str, models: Path | None, url: str, output_dir: Path) -> None:
    """Write the three forms.

    Args:
        name: folder in `bundles`.
        models: folder of the weights: `model.pt` and what lies beside it; None for a bundle without.
        url: where files above 25 MB will be, without their names.
        output_dir: takes the three; what an earlier call wrote is replaced.

    Raises:
        FileNotFoundError: if there is no such bundle, or no `model.pt` in the folder.
    """
    source = BUNDLES / name
    metadata = json.loads((source / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights = [] if models is None else sorted(path for path in models.iterdir() if path.suffix in (".pt", ".json"))
    if models is not None and models / "model.pt" not in weights:
        raise FileNotFoundError(f"{models}: holds no model.pt; train the bundle first")
    zoo, card = output_dir / "model_zoo" / name, output_dir / "hugging_face" / name
    for folder in (zoo, card):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "models").mkdir(parents=True)
        shutil.copy(source / "LICENSE", folder)
        for part in ("configs", "docs"):
            shutil.copytree(source / part, folder / part)
        for path in weights:
            shutil.copy(path, folder / "models")
    archive = output_dir / f"{name}_v{metadata['version']}"
    shutil.make_archive(str(archive), "zip", card.parent, name)

    text = (source / "docs" / "README.md").read_text(encoding="utf-8")
    (card / "README.md").write_text(CARD + text, encoding="utf-8")
    shutil.copy(source / "configs" / "metadata.json", card)
    _leave_out_large_files(zoo, f"{url.rstrip('/')}/{archive.name}")


def _leave_out_large_files(zoo: Path, url: str) -> None:
    large = [path for path in sorted((zoo / "models").iterdir()) if path.stat().st_size > LARGEST]
    entries = [
        {
            "path": f"models/{path.name}",
            "url": f"{url}/{path.name}",
            "hash_val": hashlib.sha256(path.read_bytes()).hexdigest(),
            "hash_type": "sha256",
        }
        for path in large
    ]
    if entries:
        (zoo / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False))
    for path in large:
        path.unlink()


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder in bundles/")
    parser.add_argument("--models", type=Path, help="folder of the weights, with model.pt; without it there are none")
    parser.add_argument("--url", default="", help="where files above 25 MB will be, without their names")
    parser.add_argument("--output-dir", type=Path, required=True, help="takes the three forms")
    arguments = parser.parse_args()
    prepare(arguments.name, arguments.models, arguments.url, arguments.output_dir)


if __name__ == "__main__":
    main()
