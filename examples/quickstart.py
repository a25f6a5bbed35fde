"""From photos to tokens, and what they cost: python examples/quickstart.py [PHOTOS [OUTPUT]]. Needs the extra `report`.

Encodes with a small tower of random weights, opens the output, and plots how many tokens the photos have.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from visionbake import EmbeddingDataset
from visionbake.cli import main as visionbake

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PHOTOS = str(Path(__file__).parent.parent / "tests" / "data" / "photos")


def plot(dataset: EmbeddingDataset, file: Path) -> list[int]:
    """Plots the token counts, and each photo's grid; returns the counts."""
    items = [(item["key"], item["grid_thw"].tolist(), len(item["image_embeds"])) for item in dataset]
    items.sort(key=lambda item: item[2])
    figure, (counts, grids) = plt.subplots(1, 2, figsize=(11, 0.35 * len(items) + 2), layout="constrained")
    counts.barh([key for key, _, _ in items], [tokens for _, _, tokens in items])
    counts.set_xlabel("tokens")
    grids.scatter([width // 2 for _, (_, _, width), _ in items], [height // 2 for _, (_, height, _), _ in items])
    grids.set(xlabel="tokens across", ylabel="tokens down", xlim=0, ylim=0)
    figure.savefig(file)
    return [tokens for _, _, tokens in items]


def main(photos: str = PHOTOS, output: str = "out/quickstart") -> list[int]:
    code = visionbake(["run", photos, output, "--model", "random:tiny", "--set", "cluster.engine=inline"])
    if code:
        sys.exit(code)
    dataset = EmbeddingDataset(output)
    first = dataset[0]
    print(f"{first['key']}: grid {first['grid_thw'].tolist()}, tokens {tuple(first['image_embeds'].shape)}")
    file = Path(output, "tokens.png")
    counts = plot(dataset, file)
    print(f"{sum(counts):,} tokens of {len(counts)} photos, {file}")
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
