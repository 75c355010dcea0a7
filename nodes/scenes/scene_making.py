"""Scenes of a graph: every layout of a list composed over its place, with all masks and ComfyUI's document of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...scenes.backgrounds import MODES, Background, BackgroundMode, Place, make_background
from ...scenes.collage import CollageOptions, Scene, compose, visible_alphas
from ...scenes.scene_layout import SceneLayout
from ...scenes.soft_edges import put_back, soft_core
from ..host.graph_progress import GraphProgress
from ..host.socket_types import SceneLayouts, SceneSubjects
from .scene_pictures import Plane, as_planes, as_tensor, checked_masks, checked_pictures


@dataclass(frozen=True)
class Scenery:
    """What subjects are laid over."""

    mode: str
    """One of `MODES`."""
    images: Tensor | None = None
    """`(B, h, w, 3)` pictures of places, of which each layout's seed chooses one."""
    color: tuple[int, int, int] = (200, 200, 200)
    """Of `plain`, 0 to 255."""


def compose_all(
    subjects: SceneSubjects, layouts: SceneLayouts, scenery: Scenery, options: CollageOptions, progress: GraphProgress
) -> list[Scene]:
    """A scene for every layout.

    Raises:
        BestiaryError: an unknown mode, a mode that needs a picture and has none, or as `compose`.
        InterruptProcessingException: the user cancelled.
    """
    mode: BackgroundMode | None = next((mode for mode in MODES if mode == scenery.mode), None)
    if mode is None:
        raise BestiaryError(f"background_mode {scenery.mode!r} is not one of {', '.join(MODES)}: choose one of them")
    if mode in ("photo", "blur") and scenery.images is None:
        raise BestiaryError(
            f"background_mode {mode!r} needs a picture of a place: connect one to background, or choose noise or plain"
        )
    places = _places(scenery.images)
    progress.begin(len(layouts.layouts))
    scenes = []
    for layout in layouts.layouts:
        progress.add()
        behind = background_of(layout, mode, places, scenery.color)
        scenes.append(compose(subjects.subjects, layout, behind.pixels, options))
    progress.finish()
    return scenes


def background_of(
    layout: SceneLayout, mode: BackgroundMode, places: Sequence[Place], color: tuple[int, int, int]
) -> Background:
    """What stands behind a layout: the same as the command line takes for its seed."""
    size = (layout.width, layout.height, layout.seed % 2**32)
    return make_background(mode, *size, places=places, color=color)


def _places(images: Tensor | None) -> list[Place]:
    if images is None:
        return []
    pictures = as_planes(checked_pictures(images, "background")[..., :3])  # (B, h, w, 3)
    return [Place(f"background {number}", pixels) for number, pixels in enumerate(pictures, start=1)]


def scene_images(scenes: Sequence[Scene]) -> Tensor:
    """Pictures `(N, H, W, 3)`."""
    return as_tensor([scene.picture for scene in scenes])


def subject_masks(scenes: Sequence[Scene]) -> Tensor:
    """`(N, H, W)`, 1 where any subject is."""
    return as_tensor([scene.union for scene in scenes])


def repaint_masks(scenes: Sequence[Scene], inset: int, feather: int) -> Tensor:
    """`(N, H, W)`, 1 where a model may paint: all but the subjects, which lose `inset` pixels and fade over `feather`."""
    cores = [soft_core(scene.union, inset, feather) for scene in scenes]
    return as_tensor([255 - (core * 255).round().astype(np.uint8) for core in cores])


def masks_of_each(scenes: Sequence[Scene]) -> Tensor:
    """`(N*K, H, W)`, 1 where a subject is to be seen: the K subjects of the first scene, then those of the next."""
    return as_tensor([mask for scene in scenes for mask in visible_alphas(scene)])


def layers_document(scene: Scene) -> dict[str, object]:
    """The scene as ComfyUI's `LAYERS`: the place, then each subject with its shadow, back to front; masks are 1 = transparent."""
    stack: list[tuple[str, Plane]] = [("background", scene.background)]
    stack += [(scene.subjects[index].name, scene.layers[index]) for index in scene.painting_order]
    return {
        "version": 1,
        "canvas": (scene.layout.width, scene.layout.height),
        "layers": [_layer(name, pixels, z) for z, (name, pixels) in enumerate(stack)],
    }


def _layer(name: str, pixels: Plane, z: int) -> dict[str, object]:
    """An item of the document; subjects are cut to what shows of them, so that an editor has something to hold."""
    item: dict[str, object] = {"type": "raster", "name": name, "z_index": z, "x": 0, "y": 0}
    if pixels.shape[2] == 3:
        return {**item, "image": as_tensor([pixels])}
    shown = pixels[..., 3] > 0  # (H, W)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    if not len(rows):
        return {**item, "image": as_tensor([pixels[:1, :1, :3]]), "mask": torch.ones(1, 1, 1)}
    top, left = int(rows[0]), int(columns[0])
    cut = pixels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    placed = {"x": left, "y": top, "image": as_tensor([cut[..., :3]]), "mask": 1 - as_tensor([cut[..., 3]])}
    return {**item, **placed}


def restore(decoded: Tensor, canvas: Tensor, mask: Tensor, feather: int, lightness: float) -> Tensor:
    """Painted pictures `(B, H, W, 3)` with the subjects of the canvas put back.

    Args:
        decoded: `(B, H, W, 3)` in 0..1, what a model painted.
        canvas: `(N, H, W, 3)` in 0..1, the collage; one for all, or as many as there are painted pictures.
        mask: `(N, H, W)`, 1 where a subject is.
        feather: as in `put_back`.
        lightness: as in `put_back`.

    Raises:
        BestiaryError: pictures of other numbers or sizes, or a number out of its range.
    """
    decoded, canvas = checked_pictures(decoded, "decoded")[..., :3], checked_pictures(canvas, "canvas")[..., :3]
    masks = as_planes(checked_masks(mask, canvas))
    if len(canvas) not in (1, len(decoded)):
        raise BestiaryError(
            f"{len(decoded)} decoded pictures for {len(canvas)} canvases: connect one canvas, or one for every picture"
        )
    restored = [
        put_back(
            picture.float().cpu().numpy(),
            canvas[number % len(canvas)].float().cpu().numpy(),
            masks[number % len(masks)],
            feather,
            lightness,
        )
        for number, picture in enumerate(decoded)
    ]
    return torch.from_numpy(np.stack(restored))
