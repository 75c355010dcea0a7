"""P9: what a training sample costs on the way from the cache to the model, and what the training process holds.

    python benchmarks/bench_data_path.py [--size 512] [--pictures 256] [--batches 50]

Builds a cache of random moments in the shape of SD1.5 at 512 px and prints, per sample on one thread with a warm page cache:
reading moments and labels alone; a whole batch with captions, noise and timesteps; and, for comparison, decoding and
resizing one JPEG, which the reference (kamwoh/partcraft @ dfe64e1, train_dreamcreature_sd.py:438) does in every step.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import find_bestiary  # noqa: F401  # isort: skip

from bestiary.concepts.denoiser.denoiser import EncoderLayout, PromptLayout, PromptPiece
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.part_prompt.part_captions import CaptionStyle
from bestiary.trainer.learning.parts.concept_images import BatchPlan, ConceptImages
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.image_files import fit_square, image_to_tensor
from bestiary.trainer.learning.pictures.latent_cache import LatentCache

PARTS, GRID, BATCH = 8, 16, 8


def random_images(folder: Path, pictures: int, size: int) -> ConceptImages:
    """Training pictures of random moments `(N, 1, 2, 4, h, w)` and labels `(N, g, g)`."""
    cells = size // 8
    shape = (pictures, 1, 2, 4, cells, cells)
    moments = np.memmap(folder / "moments", np.float16, "w+", shape=shape)
    rng = np.random.default_rng(0)
    for row in range(pictures):
        moments[row] = rng.standard_normal(shape[1:])
    # parts and kinds at random: their values do not change what reading them costs
    labels = rng.integers(0, PARTS, (pictures, GRID, GRID), dtype=np.uint8)
    codes = rng.integers(0, 32, (pictures, PARTS))
    names = tuple(f"part {i}" for i in range(PARTS))
    kinds = TrainingKinds(names, ({},) * PARTS, PARTS - 1, labels, codes, {})
    plan = BatchPlan(BATCH, 1, cells, GRID, FlowProcess(), "stratified", 0.0, 0)
    return ConceptImages(
        [f"{row}.jpg" for row in range(pictures)], LatentCache(moments), kinds, _tokens, CaptionStyle(), plan
    )


def _tokens(pieces: Sequence[PromptPiece]) -> PromptLayout:
    """A layout of one chunk `(1, 77)`, as the tokenizer would give it, without its cost."""
    places = [place for place, piece in enumerate(pieces) if piece.text is None]
    return {"clip_l": EncoderLayout(torch.zeros(1, 77, dtype=torch.long), torch.tensor(places), torch.ones(1, 77))}


def milliseconds(call: Callable[[int], object], repeats: int, samples: int) -> float:
    """Median process CPU milliseconds per sample of `call(i)`; the first fifth warms up."""
    times = []
    for number in range(repeats):
        started = time.process_time()
        call(number)
        times.append((time.process_time() - started) / samples * 1e3)
    return float(np.median(times[repeats // 5 :]))


def read_only(images: ConceptImages, number: int) -> None:
    """Moments `(B, 2, 4, h, w)` and labels `(B, g, g)` of one batch."""
    rows = [(number * BATCH + i) % len(images) for i in range(BATCH)]
    zeros = [0] * BATCH
    images._cache.read(rows, zeros, zeros, zeros, images.plan.latent_size)
    torch.from_numpy(images._kinds.labels[rows])


def decode_jpeg(content: bytes, size: int) -> None:
    """What a training without a cache does for every sample before its autoencoder runs."""
    image_to_tensor(fit_square(Image.open(io.BytesIO(content)).convert("RGB"), size))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--size", 512), ("--pictures", 256), ("--batches", 50)):
        parser.add_argument(option, type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # a picture as photographs compress: smooth, not noise
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((500, 375)).save(stream, "JPEG", quality=90)
    with tempfile.TemporaryDirectory() as folder:
        # the same batches once as they are read and once as they are trained on
        images = random_images(Path(folder), arguments.pictures, arguments.size)
        loader = milliseconds(lambda number: read_only(images, number), arguments.batches, BATCH)
        whole = milliseconds(lambda number: images.draw(number, 0), arguments.batches, BATCH)
    decoding = milliseconds(lambda number: decode_jpeg(stream.getvalue(), arguments.size), arguments.batches, 1)
    loaded = sorted({"diffusers", "timm", "transformers"} & sys.modules.keys())
    sys.stdout.write(
        f"moments and labels {loader:.4f} ms a sample (goal 0.1): {decoding / loader:.0f} times faster than a JPEG ({decoding:.2f} ms)\n"
        f"with captions, noise and timesteps {whole:.4f} ms a sample\n"
        f"libraries of autoencoders and feature extractors in this process: {', '.join(loaded) or 'none'}\n"
    )


if __name__ == "__main__":
    main()
