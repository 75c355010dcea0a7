"""Language models behind an OpenAI-compatible address: asked only where a command names one, every answer kept in a file."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...concepts.errors import BestiaryError

LARGEST_ANSWER = 4_000_000
"""Bytes of an answer that are read."""
SECONDS = 120.0
"""How long an answer is waited for."""

Message = Mapping[str, Any]


class EndpointFault(BestiaryError):
    """The endpoint gave no answer that can be used."""


@dataclass(frozen=True)
class ChatEndpoint:
    """Where a language model answers.

    Raises:
        BestiaryError: the address is not one of http or https, or the variable of the key is not set.
    """

    url: str
    """Base address, such as `http://127.0.0.1:8080/v1`; `/chat/completions` is added."""
    model: str = ""
    """Name of the model; empty leaves the choice to the server."""
    key_env: str = ""
    """Name of the environment variable that holds the key; the key itself is written nowhere."""
    cache: Path | None = None
    """File of answers by hash of the request, so that a run is repeated without the endpoint."""
    timeout: float = SECONDS

    def __post_init__(self) -> None:
        """Checks the address and the key."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BestiaryError(f"endpoint {self.url!r} is not an address: give one such as http://127.0.0.1:8080/v1")
        if parts.username or parts.password:
            raise BestiaryError(
                "the endpoint's address holds a password: leave it out, and name the environment variable of the key"
            )
        if self.key_env and not os.environ.get(self.key_env):
            raise BestiaryError(
                f"environment variable {self.key_env!r} is not set: set it to the key of {self.url}, or leave the option out"
            )

    def ask(
        self,
        messages: Sequence[Message],
        *,
        schema: Mapping[str, Any] | None = None,
        seed: int = 0,
        temperature: float = 0.7,
    ) -> str:
        """The answer to a conversation, from the file of answers where the same was asked before.

        Args:
            messages: as the protocol has them: `role` and `content`.
            schema: JSON schema that the answer should keep; servers that do not know schemas are asked without.
            seed: of the sampling.
            temperature: 0 and above.

        Raises:
            EndpointFault: the server cannot be reached, is too slow, refuses, or does not answer with such JSON.
        """
        body: dict[str, Any] = {"messages": list(messages), "seed": seed, "temperature": temperature, "stream": False}
        if self.model:
            body["model"] = self.model
        # images make requests large: their hash names them
        named = hashlib.sha256(json.dumps([self.url, body, schema], sort_keys=True).encode()).hexdigest()
        known = self._known(named)
        if known is not None:
            return known
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"name": "layout", "schema": dict(schema)}}
            try:
                answer = self._post({**body, "response_format": form})
            except _Refused:
                answer = self._post(body)
        else:
            answer = self._post(body)
        self._keep(named, answer)
        return answer

    def _post(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                content = answer.read(LARGEST_ANSWER + 1)
        except urllib.error.HTTPError as fault:
            kind = _Refused if fault.code in (400, 404, 415, 422, 501) else EndpointFault
            raise kind(f"{address} answered with status {fault.code} {fault.reason}") from fault
        except TimeoutError as fault:
            raise EndpointFault(f"{address} did not answer within {self.timeout:g} seconds") from fault
        except (urllib.error.URLError, HTTPException, OSError) as fault:
            cause = getattr(fault, "reason", fault)
            raise EndpointFault(f"{address} cannot be reached: {cause}") from fault
        if len(content) > LARGEST_ANSWER:
            raise EndpointFault(f"{address} answered with more than {LARGEST_ANSWER // 1_000_000} MB")
        return _text_of(content, address)

    def _known(self, named: str) -> str | None:
        if self.cache is None or not self.cache.is_file():
            return None
        for line in self.cache.read_text("utf-8", "replace").splitlines():
            # a process that was killed may have left half a line
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("request") == named and isinstance(entry.get("answer"), str):
                return entry["answer"]
        return None

    def _keep(self, named: str, answer: str) -> None:
        if self.cache is None:
            return
        line = json.dumps({"request": named, "answer": answer}, ensure_ascii=False) + "\n"
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            whole = not self.cache.is_file() or self.cache.read_bytes()[-1:] in (b"", b"\n")
            with open(self.cache, "a", encoding="utf-8") as stream:
                stream.write(line if whole else "\n" + line)
        except OSError as fault:
            raise BestiaryError(f"could not write {self.cache}: {fault.strerror or fault}") from fault


class _Refused(EndpointFault):
    """The server does not take this form of request."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another address."""

    def redirect_request(self, *args: object, **options: object) -> None:
        """Follows none."""


def _text_of(content: bytes, address: str) -> str:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as fault:
        start = content[:60].decode("utf-8", "replace")
        raise EndpointFault(
            f"{address} did not answer as an OpenAI-compatible server does, but with {start!r}"
        ) from fault
    if not isinstance(text, str) or not text.strip():
        raise EndpointFault(f"{address} answered without any text")
    return text
