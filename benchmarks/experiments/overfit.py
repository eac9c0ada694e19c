"""python -m benchmarks.experiments.overfit RUN: how well does an encoder know its training assets?

The gate that a generator has to pass before anything else is worth training: a few assets, by heart.
`make overfit` prepares eight, trains and asks this; the exit status is 1 below the PSNR that it is asked for.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from encoder.model import load_encoder, read_for_encoding
from shapeloom.metrics import mask_iou, psnr
from shapeloom.pictures import read_views, to_uint8
from shapeloom.shards import AssetShards
from shapeloom.storage import write_atomic

ROW = 4  # views of an asset in the picture


def held_in(run: Path) -> tuple[dict[str, float], UInt8[np.ndarray, "height width 3"]]:
    """Returns the scores over all training assets and views, and a picture: truth beside render.

    run: the folder with `data` and a finished `encoder`. The renders know no depth, like anyone's.
    """
    model, shards = load_encoder(run / "encoder"), AssetShards(run / "data", "train")
    size, views = shards.resolution, range(model.num_views, shards.num_views)
    scores: dict[str, list[float]] = {"psnr": [], "iou": []}
    rows = []
    for index in range(len(shards)):
        truth = read_views(shards, index, views, size=size)
        weights = model.decoder.weights(model.encode([read_for_encoding(shards, index, model)]))
        poses, matrices = torch.from_numpy(truth.cam_to_world), torch.from_numpy(truth.intrinsics)
        render = model.decoder.render(weights, poses[None], matrices[None], size, size)
        rgb, alpha = render.rgb[0].clamp(0, 1).numpy(), render.alpha[0].numpy()
        scores["psnr"] += psnr(rgb, truth.rgb).tolist()
        scores["iou"] += mask_iou(alpha, truth.alpha).tolist()
        rows.append(np.hstack([np.hstack([truth.rgb[i], rgb[i]]) for i in range(min(ROW, len(rgb)))]))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    return means | {"worst_psnr": float(np.min(scores["psnr"]))}, to_uint8(np.vstack(rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the scores, writes RUN/overfit.json and RUN/overfit.png; exits with 1 below the wanted PSNR."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.overfit", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--wanted", type=float, default=32.0, help="dB, the mean over all pictures")
    arguments = parser.parse_args(argv)
    scores, picture = held_in(arguments.run)
    write_atomic(arguments.run / "overfit.json", json.dumps(scores, indent=2))
    Image.fromarray(picture).save(arguments.run / "overfit.png")
    sys.stdout.write(
        f"held-in PSNR {scores['psnr']:.2f} dB (worst picture {scores['worst_psnr']:.2f} dB), "
        f"IoU {scores['iou']:.4f}; pictures in {arguments.run / 'overfit.png'}\n"
    )
    if scores["psnr"] < arguments.wanted:
        sys.exit(f"The encoder doesn't know its own assets: below {arguments.wanted:g} dB.")


if __name__ == "__main__":
    main()
