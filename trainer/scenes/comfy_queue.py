"""A running ComfyUI as a painter: pictures are uploaded, a workflow is queued, its last picture is fetched."""

import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from copy import deepcopy
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.files.text_file import read_text
from ...scenes.set_files import png_bytes

Plane = NDArray[np.uint8]
Workflow = Mapping[str, Any]
"""Nodes by number, each with `class_type`, `inputs` and `_meta.title`, as ComfyUI exports for its API."""

CANVAS, MASK, PROMPT, RESULT = "canvas", "mask", "prompt", "result"
"""Titles of the nodes that are filled in, and of the one whose picture is taken."""
_LARGEST = 200_000_000
_SECONDS_OF_A_REQUEST = 30.0
_PAUSE = 0.25


class ComfyQueue:
    """The queue of one ComfyUI."""

    def __init__(self, url: str, *, timeout: float = 1800.0) -> None:
        """Check the address; nothing is sent yet.

        Args:
            timeout: seconds that one workflow may take.

        Raises:
            BestiaryError: the address is not one of http or https.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BestiaryError(f"--url {url!r} is not an address: give one such as http://127.0.0.1:8188")
        self._url, self._timeout = url.rstrip("/"), timeout

    def upload(self, name: str, pixels: Plane) -> str:
        """Put a picture `(H, W, 3)` or `(H, W, 4)` into ComfyUI's input folder; returns how a Load Image node names it.

        Raises:
            BestiaryError: the server cannot be reached or refuses.
        """
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        )
        fields = "".join(
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}'
            for field, value in (("subfolder", "bestiary"), ("overwrite", "true"))
        )
        body = head.encode() + png_bytes(pixels) + fields.encode() + f"\r\n--{boundary}--\r\n".encode()
        answer = self._json("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else str(answer["name"])

    def run(self, workflow: Workflow, size: tuple[int, int]) -> Plane:
        """Queue a workflow and wait for its picture.

        Args:
            size: (height, width) that the picture must have.

        Returns:
            `(H, W, 3)`.

        Raises:
            BestiaryError: the server refuses the workflow, a node of it fails, it makes no picture or one of another size, or it
                takes too long.
        """
        queued = self._json("/prompt", json.dumps({"prompt": workflow}).encode(), "application/json")
        if faults := queued.get("node_errors"):
            raise BestiaryError(f"ComfyUI refuses the workflow: {json.dumps(faults)[:500]}")
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            entry = self._json(f"/history/{queued['prompt_id']}").get(queued["prompt_id"])
            if entry is not None:
                return self._picture(entry, workflow, size)
            time.sleep(_PAUSE)
        raise BestiaryError(f"ComfyUI did not finish a workflow within {self._timeout:g} seconds")

    def _picture(self, entry: Mapping[str, Any], workflow: Workflow, size: tuple[int, int]) -> Plane:
        status = entry.get("status", {})
        if status.get("status_str") == "error":
            details = [detail for kind, detail in status.get("messages", []) if kind == "execution_error"]
            fault = details[0] if details else {}
            where = f"{fault.get('node_type', 'a node')}: {fault.get('exception_message', 'see its console')}"
            raise BestiaryError(f"the workflow failed in ComfyUI at {where.strip()}")
        outputs: Mapping[str, Any] = entry.get("outputs", {})
        wanted = [node for node in outputs if _title(workflow.get(node, {})) == RESULT] or list(outputs)
        shown = [image for node in wanted for image in outputs[node].get("images", [])]
        if not shown:
            raise BestiaryError("the workflow made no picture: end it with a Save Image or Preview Image node")
        last = shown[-1]
        query = urlencode({key: last.get(key, "") for key in ("filename", "subfolder", "type")})
        try:
            with Image.open(io.BytesIO(self._bytes(f"/view?{query}"))) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as fault:
            raise BestiaryError(f"ComfyUI gave a picture that cannot be read: {fault}") from fault
        if pixels.shape[:2] != tuple(size):
            raise BestiaryError(
                f"the workflow made a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels from a canvas of {size[1]} x "
                f"{size[0]}: take nodes out that scale it, or build the set with sides that are multiples of 64"
            )
        return pixels

    def _json(self, path: str, body: bytes | None = None, kind: str = "") -> dict[str, Any]:
        content = self._bytes(path, body, kind)
        try:
            answer = json.loads(content)
        except ValueError as fault:
            raise BestiaryError(
                f"{self._url}{path} did not answer as ComfyUI does, but with {content[:60]!r}: check --url"
            ) from fault
        if not isinstance(answer, dict):
            raise BestiaryError(f"{self._url}{path} did not answer as ComfyUI does: check --url")
        return answer

    def _bytes(self, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        request = urllib.request.Request(f"{self._url}{path}", body, {"Content-Type": kind} if kind else {})
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_OF_A_REQUEST) as answer:
                content: bytes = answer.read(_LARGEST)
        except urllib.error.HTTPError as fault:
            said = fault.read(2000).decode("utf-8", "replace")
            raise BestiaryError(f"ComfyUI refuses {path}: {fault.code} {said or fault.reason}") from fault
        except (urllib.error.URLError, HTTPException, OSError) as fault:
            cause = getattr(fault, "reason", fault)
            raise BestiaryError(f"no ComfyUI answers at {self._url} ({cause}): start it, or check --url") from fault
        return content


def checked_workflow(path: Path) -> Workflow:
    """A workflow in ComfyUI's API form whose Load Image nodes `canvas` and `mask` can be filled.

    Raises:
        BestiaryError: no such file, another form of workflow, or not one node of each title.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as fault:
        raise BestiaryError(f"{path} is not a workflow: {fault}") from fault
    if isinstance(content, dict) and "nodes" in content:
        raise BestiaryError(f"{path} is a workflow for the editor: save it with Export (API) instead")
    if not isinstance(content, dict) or not all(
        isinstance(node, dict) and "class_type" in node for node in content.values()
    ):
        raise BestiaryError(f"{path} is not a workflow of ComfyUI: save one with Export (API)")
    for title in (CANVAS, MASK):
        found = [node for node in content.values() if _title(node) == title and "image" in node.get("inputs", {})]
        if len(found) != 1:
            raise BestiaryError(
                f"{path} has {len(found)} Load Image nodes titled {title}, and needs one: rename the node in the editor, "
                "then save with Export (API)"
            )
    return content


def filled_workflow(workflow: Workflow, canvas: str, mask: str, prompt: str, seed: int) -> Workflow:
    """The workflow with its pictures, every seed, and the text of a node titled `prompt` filled in."""
    filled = deepcopy(dict(workflow))
    for node, inputs in _inputs(filled):
        title = _title(node)
        if title in (CANVAS, MASK) and "image" in inputs:
            inputs["image"] = canvas if title == CANVAS else mask
        if title == PROMPT and isinstance(inputs.get("text"), str):
            inputs["text"] = prompt
        for name in ("seed", "noise_seed"):
            # a linked seed comes from another node, which is filled itself
            if isinstance(inputs.get(name), int):
                inputs[name] = seed
    return filled


def _inputs(workflow: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for node in workflow.values():
        if isinstance(node.get("inputs"), dict):
            yield node, node["inputs"]


def _title(node: Mapping[str, Any]) -> str:
    return str(node.get("_meta", {}).get("title", "")).strip().casefold()
