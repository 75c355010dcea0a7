"""IS-Net's weights as people have them: safetensors, the authors' .pth, ONNX with folded batch norms, or pieces of a package.

In an ONNX file the convolutions have lost their names together with their batch norms. They are identified by what they compute: every
value of the graph is described by the operation that makes it and the descriptions of what that takes, back to the picture. Our own
network is described alike (isnet.wiring), and a convolution of the file is the one of ours with the same description.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError
from ..concepts.features.dino_weights import plain_weights
from ..concepts.files.concept_file import read_header, read_tensors, write_tensors
from ..concepts.files.safe_pickle import load_inert
from . import isnet
from .onnx_graph import OnnxGraph, OnnxNode, decoded, parsed_onnx, read_onnx

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".safetensors", ".pth", ".onnx")
"""Of files of weights, the one that reads fastest first."""
QUANTISED = frozenset(
    (
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    )
)
"""Operations of networks whose weights were rounded to whole numbers: their masks are full of specks."""
PACKAGE = "@imgly/background-removal-data"
MODELS_IN_PACKAGE = ("/models/isnet", "/models/isnet_fp16", "/models/medium")
"""Entries of a package's resources.json that are this network, the most exact first."""
_PASSED = ("Cast", "Identity", "Dropout")
_HASH = re.compile(r"[0-9a-f]{64}")
_LARGEST_LISTING = 1 << 20


@dataclass(frozen=True)
class ImportedWeights:
    """What an import read and wrote."""

    source: Path
    target: Path
    tensors: int
    sha256: str
    """Of what was read, the pieces of a package joined."""
    bytes_written: int


def load_isnet(path: Path) -> isnet.IsNet:
    """The network with the weights of a file.

    Raises:
        BestiaryError: unreadable, cut off, unsafe, quantised, or the weights of another network.
    """
    state = read_isnet_weights(path)
    try:
        return isnet.network_with(state)
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault


def read_isnet_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of any shape of a .safetensors, .pth or .onnx file under the names of IS-Net; nothing in the file is run.

    Raises:
        BestiaryError: as `load_isnet`; names and shapes of the first two are checked only there.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".onnx":
        return _named_weights(read_onnx(path), str(path))
    if ending == ".safetensors":
        read_header(path)
        return plain_weights(read_tensors(path))
    if ending in (".pth", ".pt", ".bin"):
        return plain_weights(load_inert(path))
    raise _no_weights(path)


def check_ending(path: Path) -> None:
    """Raises BestiaryError where the ending is not that of a file of weights; the file is not opened."""
    if Path(path).suffix.lower() not in (*ENDINGS, ".pt", ".bin"):
        raise _no_weights(path)


def _no_weights(path: Path) -> BestiaryError:
    return BestiaryError(
        f"{path} is not a file of IS-Net weights: give a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file"
    )


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder such as `models/bestiary/segmentation`: by its ending, then by its name; None without one."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    found = [entry for entry in folder.iterdir() if entry.suffix.lower() in ENDINGS and entry.is_file()]
    return min(found, key=lambda entry: (ENDINGS.index(entry.suffix.lower()), entry.name), default=None)


def import_isnet(source: Path, target: Path) -> ImportedWeights:
    """Write weights as a safetensors file in half precision, which is read fastest and takes the least room.

    Args:
        source: a file that `load_isnet` reads, or the folder of an unpacked `@imgly/background-removal-data`: the pieces that its
            resources.json lists are checked and joined.
        target: the file to write, whole or not at all; it ends in .safetensors.

    Raises:
        BestiaryError: as `load_isnet`; a piece that is missing or broken; the file cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() != ".safetensors":
        raise BestiaryError(f"weights are written as a .safetensors file, not as {target.name!r}")
    if source.is_dir():
        content, digest = _joined(source)
        state = _named_weights(parsed_onnx(content, f"the model in {source}"), f"the model in {source}")
    else:
        state, digest = read_isnet_weights(source), _sha256_of(source)
    try:
        # whatever is written can be read again
        state = isnet.network_with(state).state_dict()
    except BestiaryError as fault:
        raise BestiaryError(f"{source}: {fault}") from fault
    write_tensors(target, isnet.smaller_state(state), {"network": "IS-Net", "source_sha256": digest})
    return ImportedWeights(source, target, len(state), digest, target.stat().st_size)


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _joined(folder: Path) -> tuple[bytes, str]:
    """The ONNX file that lies in pieces in an unpacked package, and its sha256."""
    places = (folder, folder / "dist", folder / "package" / "dist")
    home = next((place for place in places if (place / "resources.json").is_file()), None)
    if home is None:
        raise BestiaryError(
            f"{folder} holds no resources.json, neither itself nor in dist: give the folder of an unpacked {PACKAGE}"
        )
    name, pieces, size = _listed(home / "resources.json")
    content = bytearray()
    for piece in pieces:
        path = home / piece
        try:
            part = path.read_bytes()
        except OSError as fault:
            raise BestiaryError(
                f"could not read {path}, a piece of {name}: {fault.strerror or fault}; unpack {PACKAGE} again"
            ) from fault
        if _digest(part) != piece:
            raise BestiaryError(
                f"{path}, a piece of {name}, has another sha256 than its name says: it is broken, unpack {PACKAGE} again"
            )
        content += part
    if len(content) != size:
        raise BestiaryError(f"the pieces of {name} in {home} have {len(content):,} bytes, its list says {size:,}")
    return bytes(content), _digest(bytes(content))


def _listed(listing: Path) -> tuple[str, list[str], int]:
    """Name, pieces in order and bytes of the network in a package's list."""
    try:
        if listing.stat().st_size > _LARGEST_LISTING:
            raise BestiaryError(f"{listing} has more than {_LARGEST_LISTING:,} bytes: it is not the list of {PACKAGE}")
        content = json.loads(listing.read_bytes())
    except OSError as fault:
        raise BestiaryError(f"could not read {listing}: {fault.strerror or fault}") from fault
    except (ValueError, RecursionError) as fault:
        raise BestiaryError(f"{listing} is not valid JSON: {fault}; unpack {PACKAGE} again") from fault
    table = content if isinstance(content, dict) else {}
    name = next((name for name in MODELS_IN_PACKAGE if name in table), None)
    if name is None:
        there = ", ".join(sorted(key[:40] for key in table if "models" in key)) or "no model"
        raise BestiaryError(f"{listing} lists {there}, not {' or '.join(MODELS_IN_PACKAGE)}: the others are quantised")
    pieces, size = [], None
    with suppress(KeyError, TypeError):
        pieces, size = [chunk["hash"] for chunk in table[name]["chunks"]], table[name]["size"]
    # their names become paths
    if not pieces or not isinstance(size, int) or not all(_HASH.fullmatch(str(piece)) for piece in pieces):
        raise BestiaryError(f"{listing} does not list {name} as pieces named by sha256: unpack {PACKAGE} 1.4.5")
    return name, pieces, size


def _named_weights(graph: OnnxGraph, called: str) -> dict[str, Tensor]:
    """Tensors of any shape under IS-Net's names from the graph of an ONNX file."""
    try:
        return isnet.folded_state(_convolutions(graph))
    except BestiaryError as fault:
        raise BestiaryError(f"{called}: {fault}") from fault


def _convolutions(graph: OnnxGraph) -> dict[str, tuple[NDArray, NDArray]]:
    """IS-Net's convolutions by name, each with its weight `(out, in, 3, 3)` and bias `(out,)`."""
    operations = {node.operation for node in graph.nodes}
    if rounded := sorted(operations & QUANTISED):
        raise BestiaryError(
            f"it is quantised (it computes with {rounded[0]}), which cuts out specks: take the file in float32 or float16"
        )
    if "BatchNormalization" in operations:
        raise BestiaryError(
            "its batch norms are not folded into the convolutions: export it with constant folding, or take the .pth file"
        )
    descriptions = _Descriptions()
    ours = {description: name for description, name in descriptions.of_network() if name}
    makers = {output: node for node in graph.nodes for output in node.outputs if output}
    found: dict[str, tuple[NDArray, NDArray]] = {}
    for node, description in descriptions.of_graph(graph, makers):
        if (name := ours.get(description)) is None or name in found:
            raise BestiaryError(
                f"it is another network: nothing in IS-Net takes what the convolution {node.outputs[0][:80]!r} takes"
            )
        found[name] = (_held(graph, makers, node.inputs[1]), _held(graph, makers, node.inputs[2]))
    if len(found) != len(ours):
        lacking = next(name for name in ours.values() if name not in found)
        raise BestiaryError(
            f"it is another network: it has {len(found)} of IS-Net's {len(ours)} convolutions, and not {lacking}"
        )
    return found


class _Descriptions:
    """Numbers values by how they are computed: equal numbers are computed alike, in whichever graph."""

    def __init__(self) -> None:
        self._numbers: dict[tuple, int] = {}

    def _number(self, *description: object) -> int:
        return self._numbers.setdefault(description, len(self._numbers))

    def _made(self, operation: str, inputs: Iterable[int], form: tuple[int, ...]) -> int:
        # a sum is the same in either order, a joint is not
        ordered = sorted(inputs) if operation == "Add" else inputs
        return self._number(operation, tuple(ordered), form)

    def of_network(self) -> Iterable[tuple[int, str]]:
        """The number of every value of our network, and its module's name where a convolution makes it."""
        known: dict[str, int] = {}
        for step in isnet.wiring():
            known[step.output] = self._made(step.operation, [known[name] for name in step.inputs], step.form)
            yield known[step.output], step.convolution

    def of_graph(self, graph: OnnxGraph, makers: Mapping[str, OnnxNode]) -> list[tuple[OnnxNode, int]]:
        """Every convolution of a graph and the number of its result."""
        known = {name: self._made("Input", (), ()) for name in graph.inputs if name not in graph.stored}
        convolutions = []
        for name in _in_order(makers):
            node = makers.get(name)
            if node is None or name in known:
                continue
            sources = [known[source] for source in _tensors_taken(node) if source in known]
            if node.operation in _PASSED and sources:
                known[name] = sources[0]
            elif sources:
                known[name] = self._made(node.operation, sources, _form(graph, makers, node))
            if node.operation == "Conv":
                convolutions.append((node, known.get(name, -1)))
        return convolutions


def _tensors_taken(node: OnnxNode) -> tuple[str, ...]:
    """Names of the inputs that are computed on; the others are weights and sizes."""
    return node.inputs if node.operation in ("Concat", "Add") else node.inputs[:1]


def _in_order(makers: Mapping[str, OnnxNode]) -> list[str]:
    """Names of all values, each after those that it is made from: files do not always list them so."""
    sorter = graphlib.TopologicalSorter({name: [one for one in node.inputs if one] for name, node in makers.items()})
    try:
        return list(sorter.static_order())
    except graphlib.CycleError as fault:
        raise BestiaryError("its graph is circular: one of its values is computed from itself") from fault


def _form(graph: OnnxGraph, makers: Mapping[str, OnnxNode], node: OnnxNode) -> tuple[int, ...]:
    """What distinguishes a convolution from others on the same input: the shape of its weight, its stride and its dilation."""
    if node.operation != "Conv":
        return ()
    if len(node.inputs) < 3 or not node.inputs[2]:
        raise BestiaryError(f"it is another network: the convolution {node.outputs[0][:80]!r} has no bias")
    weight = _held(graph, makers, node.inputs[1])
    strides, dilations = (set(node.integers.get(name, (1,))) for name in ("strides", "dilations"))
    even = len(strides) == 1 and len(dilations) == 1 and set(node.integers.get("group", (1,))) == {1}
    return (*weight.shape, strides.pop(), dilations.pop()) if even else ()


def _held(graph: OnnxGraph, makers: Mapping[str, OnnxNode], name: str) -> NDArray:
    """The numbers of a stored value of any shape, or of a constant, through casts."""
    for _ in range(len(_PASSED) + 1):
        if name in graph.stored:
            held = graph.stored[name]
            break
        node = makers.get(name)
        if node is not None and node.operation == "Constant" and node.tensor is not None:
            held = node.tensor
            break
        if node is None or node.operation not in _PASSED or not node.inputs:
            raise BestiaryError(f"the weights {name[:80]!r} are not stored in it, but computed")
        name = node.inputs[0]
    else:
        raise BestiaryError(f"the weights {name[:80]!r} are not stored in it, but computed")
    numbers = decoded(held)
    if numbers.dtype.kind != "f":
        raise BestiaryError(f"the weights {name[:80]!r} are whole numbers ({numbers.dtype}): it is quantised")
    return numbers.astype(np.float32, copy=False)
