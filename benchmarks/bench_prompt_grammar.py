"""What prompts of 100,000 characters cost to read, and a prompt on a dictionary of ten thousand parts.

    python benchmarks/bench_prompt_grammar.py

Prints CPU seconds of every text through the part grammar and the staged one, and the memory that all of them took beyond
what was there before. Goals: 1 s and 300 MB for any text, 0.1 s for a prompt on 10,000 parts.
"""

import resource
import time
from collections.abc import Callable

import torch
import typer
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources, resolve_staged_prompt

SIZE = 100_000


def filled(piece: str) -> str:
    """A piece again and again."""
    return (piece * (SIZE // len(piece) + 1))[:SIZE]


def nested(opening: str, middle: str, closing: str) -> str:
    """As many brackets within one another as there is room for."""
    count = (SIZE - len(middle)) // (len(opening) + len(closing))
    return opening * count + middle + closing * count


TEXTS = {
    "words": filled("red bird "),
    "round brackets around a spectrum": nested("(", "<a>", ")"),
    "edits around a spectrum": nested("[", "<a>", ":0.5]"),
    "plain square brackets around a spectrum": nested("[x:", "<a>", "]"),
    "64 brackets around spectra": "(" * 64 + filled("<a>")[: SIZE - 129] + ")" * 64,
    "weights around spectra": filled("(<a>:1.2) "),
    "weights around parts": filled("(<1:0>:1.2) "),
    "spectra": filled("<a>"),
    "strengths of a spectrum": "".join(f"<a*{number / 20000:.5f}>" for number in range(8300)),
    "spectra at stages, with other words": "".join(f"<a@{number % 10 + 1}|{number}>" for number in range(8500)),
    "ten thousand parts": "".join(f"<{number}:0>" for number in range(10_000)),
    "a blend of 24,000 kinds": "<1:" + "+".join(["0*1"] * 24_000) + ">",
    "edits at 990 shares": "".join(f"[a:b:{number % 990 / 1000 + 0.001:.3f}]" for number in range(8300)),
    "edits at 18 shares": "".join(f"[a:b:{number % 18 / 20 + 0.05:.3f}]" for number in range(8300)),
    "open mentions": "<" * SIZE,
    "text between angles": filled("< "),
    "a name of one piece": "<" + "a" * (SIZE - 4) + ":1>",
    "a name of dots": "<" + filled("a.")[: SIZE - 4] + ":1>",
    "signs of factors": "<a:" + filled("*+")[: SIZE - 6] + "1>",
    "escapes": filled("\\<"),
}


def seconds(work: Callable[[], object]) -> tuple[float, str]:
    """CPU seconds of a piece of work, and how it ended."""
    begun = time.process_time()
    try:
        work()
        end = "read"
    except BestiaryError as fault:
        end = f"refused: {str(fault)[:70]}"
    return time.process_time() - begun, end


def dictionary(count: int = 10_000) -> PartDictionary:
    """As many parts of one kind."""
    rows = torch.tensor([(part, 0) for part in range(count)])
    names = tuple(f"part {part}" for part in range(count))
    kinds = tuple({0: "red"} for _ in names)
    return PartDictionary("sd15", names, kinds, None, rows, {"clip_l": torch.randn(count, 768)})


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    vectors = {"clip_l": torch.randn(10, 2, 768)}
    spectrum = PromptSpectrum("sd15", vectors, StageBounds.equal(10), neutral={"clip_l": torch.randn(2, 768)})
    sources = PromptSources({"a": spectrum}, {"birds": dictionary()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, text in TEXTS.items():
        for grammar, work in (
            ("parts", lambda text=text: resolve_prompt(parse_part_prompt(text), sources.dictionaries)),
            ("staged", lambda text=text: resolve_staged_prompt(text, sources)),
        ):
            taken, end = seconds(work)
            typer.echo(f"{taken:6.2f} s  {grammar:6}  {name}: {end}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    typer.echo(f"memory beyond the start: {(peak - before) / 1024:.0f} MiB")
    fresh, prompt = {"birds": dictionary()}, "a <part 77:red> with <9000:0>"
    for when in ("first", "second"):
        taken, _ = seconds(lambda: resolve_prompt(parse_part_prompt(prompt), fresh))
        typer.echo(f"{taken:.4f} s  {when} prompt on 10,000 parts")


if __name__ == "__main__":
    main()
