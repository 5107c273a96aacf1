"""Damages the files of an index, opens and searches it, again and again, in this process.

`python -m tests.pipeline.fuzz_index RUN ROUNDS SEED RESEAL`: it ends with 0 if each time there was a
result or a `UserError`. RESEAL also corrects the sizes and digests in index.json, so that the damage
gets as far as it can.
"""

import json
import random
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.search import SimilarityIndex
from tests.vectors import uri
from transforms.errors import UserError


def main(run: Path, rounds: int, seed: int, reseal: bool) -> None:
    rng = random.Random(seed)
    files = sorted(path for path in (run / "index").iterdir() if path.is_file() and path.stat().st_size)
    manifest = (run / "index" / "index.json").read_bytes()
    outcomes = {"answered": 0, "refused": 0}
    for number in range(rounds):
        file = rng.choice(files)
        data = file.read_bytes()
        sys.stderr.write(f"{number} {file.name}\n")  # the last line tells where a crash was
        file.write_bytes(mutated(data, rng))
        if reseal and file.name != "index.json":
            (run / "index" / "index.json").write_text(json.dumps(_resealed(json.loads(manifest), file)))
        outcomes[use(run)] += 1
        file.write_bytes(data)
        (run / "index" / "index.json").write_bytes(manifest)
    sys.stdout.write(json.dumps(outcomes))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut off, lengthened, or with some bytes changed, more often near the front where structure is."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 64))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(min(len(data), 512)) if rng.random() < 0.6 else rng.randrange(len(data))
        changed[at] = rng.choice([0, 255, 128, rng.randrange(256)])
    return bytes(changed)


def use(run: Path) -> str:
    try:
        index = SimilarityIndex.open(run)
        index.similar_by_uri(uri(3), 5)
        index.similar_by_uri(uri(4), 5, "width > 10")
        index.similar_by_vector(np.ones(index.manifest.width, np.float32), 700)
    except UserError:
        return "refused"
    return "answered"


def _resealed(values: Any, file: Path) -> Any:
    if isinstance(values, list):
        return [_resealed(value, file) for value in values]
    if not isinstance(values, dict):
        return values
    if values.get("name") == file.name:
        data = file.read_bytes()
        return {**values, "size": len(data), "sha256": values["sha256"] and sha256(data).hexdigest()}
    return {key: _resealed(value, file) for key, value in values.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "reseal")
