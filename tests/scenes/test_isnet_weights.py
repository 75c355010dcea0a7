"""Weights in every form that people have them in; the ONNX files are written here, with an encoder of a few lines."""

import hashlib
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import read_header, write_tensors
from bestiary.scenes.isnet import IsNet, expected_shapes
from bestiary.scenes.isnet_weights import import_isnet, load_isnet, read_isnet_weights, weights_in


def random_isnet() -> IsNet:
    """Weights under which every convolution matters, with batch norms that are no identities."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = IsNet()
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            for norm in norms:
                norm.momentum = 1.0
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
            # one pass in training measures what the norms divide by
            network.train()(torch.rand(4, 3, 64, 64) - 0.5)
            for norm in norms:
                norm.get_buffer("running_var").clamp_(min=0.05)
            network.side1.weight *= 8
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def network() -> IsNet:
    return random_isnet()


@pytest.fixture(scope="module")
def onnx_file(network: IsNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """176 MB, removed when the module is done."""
    path = tmp_path_factory.mktemp("onnx") / "isnet.onnx"
    path.write_bytes(IsNetWriter(network.state_dict()).write())
    yield path
    path.unlink()


def picture(height: int = 64, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, height, width, generator=generator) - 0.5


def largest_difference(ours: IsNet, theirs: IsNet) -> float:
    pairs = zip(ours.side_outputs(picture()), theirs.side_outputs(picture()), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_bytes(name: str, array: np.ndarray) -> bytes:
    kind = {"float32": 1, "float16": 10, "int8": 3}[str(array.dtype)]
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def node_bytes(operation: str, inputs: list[str], output: str, **integers: list[int]) -> bytes:
    attributes = b"".join(
        field(5, field(1, name) + b"".join(field(8, value) for value in values) + field(20, 7))
        for name, values in integers.items()
    )
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operation) + attributes


def model_bytes(nodes: list[bytes], stored: list[bytes], inputs: list[str], outputs: list[str]) -> bytes:
    graph = b"".join(field(1, node) for node in nodes) + b"".join(field(5, tensor) for tensor in stored)
    graph += b"".join(field(11, field(1, name)) for name in inputs)
    graph += b"".join(field(12, field(1, name)) for name in outputs)
    # version, the graph, the version of the operations
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


class IsNetWriter:
    """Writes IS-Net as an exporter does: batch norms folded in, no names left, operations in any order.

    The architecture stands here once more, by the operations of its paper, so that nothing of ours is taken for granted.
    """

    def __init__(self, state: dict[str, torch.Tensor], seed: int = 0) -> None:
        self.state, self.random = state, random.Random(seed)
        self.nodes: list[bytes] = []
        self.stored: list[bytes] = []

    def name(self) -> str:
        return f"v{self.random.getrandbits(60)}"

    def operation(self, operation: str, inputs: list[str], **integers: list[int]) -> str:
        output = self.name()
        self.nodes.append(node_bytes(operation, inputs, output, **integers))
        return output

    def convolution(self, module: str, x: str, stride: int = 1, dilation: int = 1) -> str:
        folded = f"{module}.bn_s1.weight" in self.state
        place = f"{module}.conv_s1" if folded else module
        weight, bias = self.state[f"{place}.weight"], self.state[f"{place}.bias"]
        if folded:
            gamma, beta, mean, var = (
                self.state[f"{module}.bn_s1.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / (var + 1e-5).sqrt()
            weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + beta
        names = [self.name(), self.name()]
        self.stored += [tensor_bytes(n, t.numpy()) for n, t in zip(names, (weight, bias), strict=True)]
        pads = [dilation] * 4
        y = self.operation("Conv", [x, *names], dilations=[dilation] * 2, group=[1], pads=pads, strides=[stride] * 2)
        return self.operation("Relu", [y]) if folded else y

    def resized(self, x: str, other: str) -> str:
        size = self.operation("Slice", [self.operation("Shape", [other])])
        return self.operation("Resize", [x, "", "", self.operation("Concat", [size, size])])

    def stage(self, name: str, x: str, levels: int) -> str:
        entered = self.convolution(f"{name}.rebnconvin", x)
        dilations = [1] * (levels - 1) + [2] if levels else [1, 2, 4, 8]
        downs = []
        for level, dilation in enumerate(dilations, start=1):
            last = level == len(dilations)
            below = entered if level == 1 else downs[-1]
            if levels and level > 1 and not last:
                below = self.operation("MaxPool", [below], kernel_shape=[2, 2], strides=[2, 2])
            downs.append(self.convolution(f"{name}.rebnconv{level}", below, dilation=dilation))
        y = downs.pop()
        while downs:
            skip, level = downs.pop(), len(downs) + 1
            if levels and level < levels - 1:
                y = self.resized(y, skip)
            joined = self.operation("Concat", [y, skip])
            y = self.convolution(f"{name}.rebnconv{level}d", joined, dilation=dilations[level - 1])
        return self.operation("Add", [entered, y])

    def write(self) -> bytes:
        x = self.operation("Cast", ["input"])
        stages = [self.stage("stage1", self.convolution("conv_in", x, stride=2), 7)]
        for number, levels in ((2, 6), (3, 5), (4, 4), (5, 0), (6, 0)):
            stages.append(self.stage(f"stage{number}", self.operation("MaxPool", [stages[-1]]), levels))
        decoded = [stages.pop()]
        for number, levels in ((5, 0), (4, 4), (3, 5), (2, 6), (1, 7)):
            skip = stages.pop()
            joined = self.operation("Concat", [self.resized(decoded[0], skip), skip])
            decoded.insert(0, self.stage(f"stage{number}d", joined, levels))
        sides = [self.convolution(f"side{number}", y) for number, y in enumerate(decoded, start=1)]
        outputs = [self.operation("Sigmoid", [self.resized(side, x)]) for side in sides]
        self.random.shuffle(self.nodes)
        self.random.shuffle(self.stored)
        return model_bytes(self.nodes, self.stored, ["input"], outputs)


def test_a_folded_onnx_file_computes_what_its_module_does(network: IsNet, onnx_file: Path) -> None:
    read = load_isnet(onnx_file)
    assert largest_difference(read, network) < 1e-3
    assert float(read.stage3.rebnconv2.bn_s1.running_var[0]) == pytest.approx(1 - 1e-5)
    # that is worth something: the answer varies, and two convolutions of one shape in each other's place change it
    assert float(network(picture()).std()) > 0.01
    for stage in (read.stage1, read.stage6):
        one, other = stage.rebnconv2.conv_s1, stage.rebnconv3.conv_s1
        one.weight, other.weight = other.weight, one.weight
        assert largest_difference(read, network) > 1e-3
        one.weight, other.weight = other.weight, one.weight


def test_import_of_the_authors_pth_in_half_precision(network: IsNet, tmp_path: Path) -> None:
    source, target = tmp_path / "isnet-general-use.pth", tmp_path / "models" / "isnet.safetensors"
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, source)
    told = import_isnet(source, target)
    assert told.tensors == 798 and told.bytes_written == target.stat().st_size < 90_000_000
    header = read_header(target)
    assert header.entries["stage1.rebnconvin.conv_s1.weight"].dtype == "F16"
    assert header.entries["stage1.rebnconvin.bn_s1.running_var"].dtype == "F32"
    assert header.metadata["source_sha256"] == told.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert weights_in(tmp_path / "models") == target
    assert largest_difference(load_isnet(target), network) < 0.05
    # cut off, each is told from a whole one
    for path, fault in (
        (target, "has a broken header: tensor .* does not match"),
        (source, "is not a readable torch file"),
    ):
        with path.open("r+b") as stream:
            stream.truncate(1_000_000)
        with pytest.raises(BestiaryError, match=f"{path.name} {fault}"):
            load_isnet(path)
        path.unlink()


def package_of(folder: Path, content: bytes, piece: int) -> Path:
    """A folder as the unpacked package is one: pieces named by hash, and their list."""
    (folder / "dist").mkdir(parents=True)
    chunks = []
    for start in range(0, len(content), piece):
        part = content[start : start + piece]
        name = hashlib.sha256(part).hexdigest()
        (folder / "dist" / name).write_bytes(part)
        chunks.append({"hash": name, "offsets": [start, start + len(part)]})
    listing = {"/models/medium": {"chunks": chunks, "size": len(content), "mime": "application/octet-stream"}}
    (folder / "dist" / "resources.json").write_text(json.dumps(listing))
    return folder


def test_a_broken_package_names_the_piece(tmp_path: Path) -> None:
    target = tmp_path / "isnet.safetensors"
    folder = package_of(tmp_path / "a", b"0123456789", 4)
    last = folder / "dist" / hashlib.sha256(b"89").hexdigest()
    last.write_bytes(b"88")
    with pytest.raises(BestiaryError, match=f"{last.name}.* has another sha256"):
        import_isnet(folder, target)
    last.unlink()
    with pytest.raises(BestiaryError, match=f"could not read .*{last.name}, a piece of /models/medium"):
        import_isnet(folder, target)
    with pytest.raises(BestiaryError, match="holds no resources.json"):
        import_isnet(tmp_path, target)
    whole = package_of(tmp_path / "b", b"0123456789", 4)
    with pytest.raises(BestiaryError, match="the model in .*b is not an ONNX file"):
        import_isnet(whole, target)
    listing = whole / "dist" / "resources.json"
    content = json.loads(listing.read_text())
    content["/models/medium"]["size"] = 11
    listing.write_text(json.dumps(content))
    with pytest.raises(BestiaryError, match="have 10 bytes, its list says 11"):
        import_isnet(whole, target)
    listing.write_text(json.dumps({"/models/medium": {"chunks": [{"hash": "../../secret"}], "size": 3}}))
    with pytest.raises(BestiaryError, match="does not list /models/medium as pieces named by sha256"):
        import_isnet(whole, target)
    listing.write_text(json.dumps({"/models/small": {}}))
    with pytest.raises(BestiaryError, match="lists /models/small, not .*/models/medium: the others are quantised"):
        import_isnet(whole, target)
    assert not target.exists()


def convolution_nodes(weight: np.ndarray, *, operation: str = "Conv") -> bytes:
    stored = [tensor_bytes("w", weight), tensor_bytes("b", np.zeros(len(weight), np.float32))]
    node = node_bytes(operation, ["x", "w", "b"], "y", strides=[2, 2], dilations=[1, 1])
    return model_bytes([node], stored, ["x"], ["y"])


def test_pieces_of_a_package_are_joined_in_the_order_of_its_list(tmp_path: Path) -> None:
    """In any other order the pieces are no ONNX file: the fault that is told is that of the whole one."""
    content = convolution_nodes(np.random.default_rng(0).random((64, 3, 3, 3), np.float32))
    folder = package_of(tmp_path / "package", content, 900)
    pieces = [path.name for path in (folder / "dist").iterdir() if path.suffix == ""]
    assert len(pieces) > 5
    for place in (folder, folder / "dist", tmp_path):
        with pytest.raises(BestiaryError, match="the model in .* it has 1 of IS-Net's 119 convolutions"):
            import_isnet(place, tmp_path / "isnet.safetensors")
    assert not (tmp_path / "isnet.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (convolution_nodes(np.zeros((64, 3, 3, 3), np.float32), operation="ConvInteger"), "computes with ConvInteger"),
        (convolution_nodes(np.zeros((64, 3, 3, 3), np.int8)), r"are whole numbers \(int8\): it is quantised"),
        (convolution_nodes(np.zeros((32, 3, 3, 3), np.float32)), "another network: nothing in IS-Net takes what"),
        (convolution_nodes(np.zeros((64, 3, 3, 3), np.float32)), "another network: it has 1 of IS-Net's 119 conv"),
        (
            model_bytes([node_bytes("BatchNormalization", ["x"], "y")], [], ["x"], ["y"]),
            "batch norms are not folded",
        ),
        (
            model_bytes([node_bytes("Relu", ["b"], "a"), node_bytes("Relu", ["a"], "b")], [], ["x"], ["b"]),
            "one of its values is computed from itself",
        ),
        (model_bytes([node_bytes("Conv", ["x", "w"], "y")], [], ["x"], ["y"]), "has no bias"),
        (model_bytes([node_bytes("Conv", ["x", "w", "b"], "y")], [], ["x"], ["y"]), "'w' are not stored in it"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"", r"is empty \(0 bytes\)"),
    ],
)
def test_other_onnx_files_are_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(BestiaryError, match=told) as fault:
        load_isnet(path)
    assert "odd.onnx" in str(fault.value)


def test_an_onnx_file_that_is_cut_off_is_told(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    with onnx_file.open("rb") as stream:
        path.write_bytes(stream.read(2_000_000))
    with pytest.raises(BestiaryError, match=r"half\.onnx is not an ONNX file, or is truncated: a field of .* are left"):
        load_isnet(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "u2net.safetensors"
    write_tensors(path, {"stage1.rebnconvin.conv_s1.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(
        BestiaryError, match=r"u2net.* another network: it lacks 685 of .* 798 tensors, such as conv_in.weight"
    ):
        load_isnet(path)
    shapes = {name: (1,) for name in expected_shapes()}
    write_tensors(path, {name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(BestiaryError, match=r"conv_in.weight is \[1\], IS-Net's is \[64, 3, 3, 3\]"):
        load_isnet(path)


class Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("this line must never be printed",))


def test_a_pickle_in_a_pth_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "isnet.pth"
    torch.save({"conv_in.weight": Harmful()}, path)
    with pytest.raises(BestiaryError, match="print"):
        load_isnet(path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(BestiaryError, match=r"isnet\.pth"):
        load_isnet(path)
    assert "never" not in capsys.readouterr().out


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="isnet.txt is not a file of IS-Net weights"):
        read_isnet_weights(tmp_path / "isnet.txt")
    with pytest.raises(BestiaryError, match="could not read .*gone.onnx"):
        read_isnet_weights(tmp_path / "gone.onnx")
    with pytest.raises(BestiaryError, match="written as a .safetensors file, not as 'x.pth'"):
        import_isnet(tmp_path / "isnet.onnx", tmp_path / "x.pth")


def test_weights_in_a_folder_by_ending(tmp_path: Path) -> None:
    assert weights_in(tmp_path / "none") is None and weights_in(tmp_path) is None
    for name in ("a.onnx", "b.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert weights_in(tmp_path) == tmp_path / "b.pth"
    (tmp_path / "c.safetensors").touch()
    assert weights_in(tmp_path) == tmp_path / "c.safetensors"
