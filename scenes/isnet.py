"""IS-Net, the network that cuts the most striking thing out of a photograph, under the names of its published weights.

Dichotomous Image Segmentation (Qin et al., ECCV 2022, arXiv 2203.03041): a U-Net whose stages are U-Nets themselves. Written from
the description of the architecture; names and shapes are those of `isnet-general-use.pth`, 798 tensors with 44,046,790 parameters.
The only file of this package that imports torch.

Letters: B pictures, (H, W) pixels of the network's input, (h, w) of the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..concepts.errors import BestiaryError

EDGE = 1024
"""Pixels a picture is brought to. The weights were trained at this size; at 512 they take surroundings for the thing."""
_MEAN = 0.5
_DILATED = (1, 2, 4, 8)
# channels into a stage, inside it and out of it, and the levels of its U; 0 for the stages that widen their view by dilation
_ENCODERS = (
    (64, 32, 64, 7),
    (64, 32, 128, 6),
    (128, 64, 256, 5),
    (256, 128, 512, 4),
    (512, 256, 512, 0),
    (512, 256, 512, 0),
)
_DECODERS = ((128, 16, 64, 7), (256, 32, 64, 6), (512, 64, 128, 5), (1024, 128, 256, 4), (1024, 256, 512, 0))
_SIDES = (64, 64, 128, 256, 512, 512)


class _NormedConvolution(nn.Module):
    """A 3 x 3 convolution, its batch norm and a ReLU."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels_in, H, W)` to `(B, channels_out, H, W)`."""
        return F.relu(self.bn_s1(self.conv_s1(x)))


class _ResidualU(nn.Module):
    """A small U-Net on top of one convolution, whose result is added to that of the U."""

    rebnconv1: _NormedConvolution

    def __init__(self, channels_in: int, inside: int, channels_out: int, levels: int) -> None:
        super().__init__()
        self.pools = levels > 0
        # without pooling, each level looks twice as far as the one before
        dilations = (1,) * (levels - 1) + (2,) if self.pools else _DILATED
        self.levels = len(dilations)
        self.rebnconvin = _NormedConvolution(channels_in, channels_out)
        for level, dilation in enumerate(dilations, start=1):
            down = _NormedConvolution(channels_out if level == 1 else inside, inside, dilation)
            self.add_module(f"rebnconv{level}", down)
        for level in range(self.levels - 1, 0, -1):
            up = _NormedConvolution(2 * inside, inside if level > 1 else channels_out, dilations[level - 1])
            self.add_module(f"rebnconv{level}d", up)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels_in, H, W)` to `(B, channels_out, H, W)`."""
        entered = self.rebnconvin(x)
        downs = [self.rebnconv1(entered)]  # level n: (B, inside, H / 2^(n-1), W / 2^(n-1))
        for level in range(2, self.levels + 1):
            # the lowest level works at the size of the one above it
            halved = self.pools and level < self.levels
            downs.append(getattr(self, f"rebnconv{level}")(_halved(downs[-1]) if halved else downs[-1]))
        x = downs[-1]
        for level in range(self.levels - 1, 0, -1):
            skip = downs[level - 1]
            if self.pools and level < self.levels - 1:
                x = _sized_as(x, skip)
            x = getattr(self, f"rebnconv{level}d")(torch.cat((x, skip), 1))
        return x + entered


class IsNet(nn.Module):
    """The network; its weights come from isnet_weights.py."""

    stage1: _ResidualU
    side1: nn.Conv2d

    def __init__(self) -> None:
        """With weights as torch makes them, which cut out nothing."""
        super().__init__()
        self.conv_in = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        for stage, shape in enumerate(_ENCODERS, start=1):
            self.add_module(f"stage{stage}", _ResidualU(*shape))
        for stage, shape in enumerate(_DECODERS, start=1):
            self.add_module(f"stage{stage}d", _ResidualU(*shape))
        for side, channels in enumerate(_SIDES, start=1):
            self.add_module(f"side{side}", nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """How far each pixel belongs to the thing, `(B, 1, H, W)` in 0..1, of pictures `(B, 3, H, W)` in -0.5..0.5.

        Sizes that halve with a remainder are fine. The finest of the six side outputs counts, the others served training.
        """
        return _answer(self.side1(self._decoded(x)[0]), x)

    def side_outputs(self, x: Tensor) -> list[Tensor]:
        """All six side outputs `(B, 1, H, W)` in 0..1, the finest first, of pictures `(B, 3, H, W)` in -0.5..0.5."""
        sides = enumerate(self._decoded(x), start=1)
        return [_answer(getattr(self, f"side{side}")(y), x) for side, y in sides]

    def _decoded(self, x: Tensor) -> list[Tensor]:
        """What the side outputs are made of, the finest first, each half the size `(H, W)` of the one before."""
        stages = [self.stage1(self.conv_in(x))]
        for stage in range(2, len(_ENCODERS) + 1):
            stages.append(getattr(self, f"stage{stage}")(_halved(stages[-1])))
        decoded = stages[-1:]
        for stage in range(len(_DECODERS), 0, -1):
            skip = stages[stage - 1]
            joined = torch.cat((_sized_as(decoded[0], skip), skip), 1)
            decoded.insert(0, getattr(self, f"stage{stage}d")(joined))
        return decoded


def _halved(x: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, C, H / 2, W / 2)`, rounded up."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _sized_as(x: Tensor, other: Tensor) -> Tensor:
    """`(B, C, h, w)` to `(B, C, H, W)`, the size of `other`."""
    return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


def _answer(side: Tensor, picture: Tensor) -> Tensor:
    """A side output `(B, 1, h, w)` at the size of its picture, `(B, 1, H, W)` in 0..1."""
    return torch.sigmoid(_sized_as(side, picture))


@dataclass(frozen=True)
class Step:
    """One operation of the network and where its inputs come from."""

    operation: str
    """As ONNX calls it: Conv, Relu, MaxPool, Resize, Concat, Add or Sigmoid; Input for the picture."""
    output: str
    """Name of its result."""
    inputs: tuple[str, ...]
    """Results that it takes, in order."""
    convolution: str = ""
    """Of a Conv: its module, such as `stage1.rebnconvin.conv_s1`."""
    form: tuple[int, ...] = ()
    """Of a Conv: its weight's shape, its stride and its dilation."""


class _Sides(nn.Module):
    """Calls a network for all its side outputs, so that all of it is traced."""

    def __init__(self, network: IsNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """Side outputs `(B, 1, H, W)` of pictures `(B, 3, H, W)`."""
        return self.network.side_outputs(x)


_FUNCTIONS = {
    F.relu: "Relu",
    F.max_pool2d: "MaxPool",
    F.interpolate: "Resize",
    torch.cat: "Concat",
    torch.sigmoid: "Sigmoid",
}


@functools.cache
def wiring() -> tuple[Step, ...]:
    """Every operation of the network that leads to a side output, in an order in which it can be computed.

    Traced from the code that computes it. Batch norms are left out: a folded one is part of its convolution.
    """
    with torch.device("meta"):
        network = IsNet()
    graph = torch.fx.Tracer().trace(_Sides(network))
    results: dict[str, str] = {}  # of a batch norm, the result of its convolution
    steps = []
    for node in graph.nodes:
        # sizes are traced as well; no tensor comes out of them
        sources = tuple(results[source.name] for source in _taken(node) if source.name in results)
        results[node.name] = node.name
        if node.op == "placeholder":
            steps.append(Step("Input", node.name, ()))
        elif node.op == "call_module":
            name = str(node.target).removeprefix("network.")
            module = network.get_submodule(name)
            if isinstance(module, nn.BatchNorm2d):
                results[node.name] = sources[0]
            elif isinstance(module, nn.Conv2d):
                form = (*module.weight.shape, module.stride[0], module.dilation[0])
                steps.append(Step("Conv", node.name, sources, name, form))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            steps.append(Step(_FUNCTIONS[node.target], node.name, sources))
        elif node.op == "call_function" and len(sources) == 2:
            steps.append(Step("Add", node.name, sources))
        else:
            del results[node.name]
    return tuple(steps)


def _taken(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes whose tensors a traced node takes, those of a joint in a tuple of their own."""
    joined = node.args[0] if node.args and isinstance(node.args[0], tuple) else ()
    return [one for one in (*joined, *node.args) if isinstance(one, torch.fx.Node)]


@functools.cache
def expected_shapes() -> Mapping[str, tuple[int, ...]]:
    """Name and shape of all 798 tensors of the network's weights."""
    with torch.device("meta"):
        state = IsNet().state_dict()
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in state.items()})


def folded_state(convolutions: Mapping[str, tuple[NDArray, NDArray]]) -> dict[str, Tensor]:
    """The network's 798 tensors, of any shape, from 119 convolutions that batch norms are folded into.

    Args:
        convolutions: module's name -> weight `(out, in, 3, 3)` and bias `(out,)`. The batch norms become identities.
    """
    state = {}
    for name, shape in expected_shapes().items():
        module, kind = name.rsplit(".", 1)
        if module in convolutions:
            weight, bias = convolutions[module]
            state[name] = torch.from_numpy(np.array(weight if kind == "weight" else bias, np.float32))
        elif kind == "num_batches_tracked":
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif kind == "running_var":
            # what a batch norm adds to it before it divides
            state[name] = torch.full(shape, 1 - nn.BatchNorm2d(1).eps)
        else:
            state[name] = torch.full(shape, 1.0 if kind == "weight" else 0.0)
    return state


def smaller_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any shape with those of convolutions in half precision where they fit; batch norms keep theirs."""
    smaller = {}
    for name, tensor in state.items():
        halved = tensor.half() if tensor.is_floating_point() and ".bn_s1." not in name else tensor
        smaller[name] = halved if not halved.is_floating_point() or bool(halved.isfinite().all()) else tensor
    return smaller


def network_with(state: Mapping[str, Tensor]) -> IsNet:
    """The network with these weights of any shape, in float32, ready to cut out.

    Raises:
        BestiaryError: names or shapes of another network, or numbers that are not finite.
    """
    state = {
        **{name: torch.zeros((), dtype=torch.int64) for name in expected_shapes() if name.endswith("_tracked")},
        **state,
    }
    _check_state(state)
    # made without numbers: those of the file take their places
    with torch.device("meta"):
        network = IsNet()
    kept = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    network.load_state_dict(kept, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def _check_state(state: Mapping[str, Tensor]) -> None:
    """Refuses tensors of any shape but those of the network."""
    # names before shapes: what is missing says most
    expected = expected_shapes()
    lacking = [name for name in expected if name not in state]
    foreign = [name for name in state if name not in expected]
    if lacking or foreign:
        difference = (
            f"it lacks {len(lacking)} of IS-Net's {len(expected)} tensors" if lacking else "it holds more than IS-Net's"
        )
        first = f"such as {lacking[0]}" if lacking else f"such as {foreign[0][:80]!r}"
        raise BestiaryError(f"these are the weights of another network: {difference}, {first}")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise BestiaryError(
                f"these are the weights of another network: {name} is {list(state[name].shape)[:8]}, IS-Net's is {list(shape)}"
            )
        if state[name].is_floating_point() and not bool(state[name].isfinite().all()):
            raise BestiaryError(f"{name} holds numbers that are not finite: the file is broken, fetch it again")


@torch.inference_mode()
def segment(network: IsNet, picture: NDArray[np.uint8], *, edge: int = EDGE, bf16: bool = False) -> NDArray[np.float32]:
    """How far each pixel of a picture belongs to its most striking thing.

    Nothing is stretched afterwards: a picture without a striking thing gives a mask that is dark everywhere.

    Args:
        network: with weights, on any device.
        picture: `(h, w, 3)` RGB.
        edge: pixels, width and height that the network sees; 1024 but in tests.
        bf16: compute in bfloat16, which is faster where the processor knows it.

    Returns:
        `(h, w)` in 0..1.
    """
    height, width = picture.shape[:2]
    device = next(network.parameters()).device
    # smooth both ways: the nearest pixel would give stairs
    small = Image.fromarray(np.ascontiguousarray(picture)).resize((edge, edge), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.asarray(small, np.float32) / 255 - _MEAN)  # (H, W, 3)
    # channels last, as the picture lies in memory already
    x = x.permute(2, 0, 1)[None].to(device, memory_format=torch.channels_last)  # (1, 3, H, W)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        answer = network(x)[0, 0].float().cpu().numpy()  # (H, W)
    alpha = Image.fromarray(answer).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(alpha).clip(0, 1)
