"""Options shared by the commands of `bestiary scenes`, and the command group."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...concepts.errors import BestiaryError

if TYPE_CHECKING:
    from ..scenes.chat_endpoint import ChatEndpoint

scenes = typer.Typer(
    help="Put several things into one picture, and make training sets of such scenes.\n\n"
    "Start with `bestiary scenes build photos/ --out pets`, where photos/ has a subfolder for each subject, then "
    "`bestiary scenes export pets --for kohya`. Photographs without transparency or masks need the weights of IS-Net: "
    "see `bestiary import isnet --help`.",
    no_args_is_help=True,
)

WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="IS-Net weights; default: the file in models/bestiary/segmentation."),
]
LayoutOption = Annotated[Literal["solver", "llm"], typer.Option("--layout", help="Layout method; llm needs --llm-url.")]
UrlOption = Annotated[
    str | None,
    typer.Option("--llm-url", help="OpenAI-compatible URL of a language model, such as http://127.0.0.1:8080/v1."),
]
ModelOption = Annotated[str, typer.Option("--llm-model", help="Name of the model, if the server offers several.")]
KeyOption = Annotated[
    str, typer.Option("--llm-key-env", metavar="NAME", help="Environment variable that contains the API key.")
]


def layout_endpoint(layout: str, url: str | None, model: str, key_env: str, folder: Path) -> "ChatEndpoint | None":
    """The language model for layouts; None with the solver."""
    if layout != "llm":
        if url is not None:
            raise BestiaryError("--llm-url needs --layout llm")
        return None
    if url is None:
        raise BestiaryError("--layout llm needs --llm-url, such as http://127.0.0.1:8080/v1")
    from ..scenes.chat_endpoint import ChatEndpoint

    return ChatEndpoint(url, model, key_env, folder / "layout_cache.jsonl")


def language_layouts(endpoint: "ChatEndpoint | None") -> Any:
    from ..scenes.language_layouts import LanguageLayouts

    return None if endpoint is None else LanguageLayouts(endpoint)
