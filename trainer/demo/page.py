"""The demo's HTML page: composed creatures first, then how they were made and the measured figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..discovery.page import color_parts, part_color
from ..evaluation.page import figures_table, source_crop, test_title
from ..learning.discovery.discovery_folder import Discovery
from ..learning.pictures.image_files import fit_square, read_image
from ..learning.run.progress_report import duration
from ..pages import pages
from .drawn_masks import DrawnTruth, load_truth
from .pictures import COMPOSED, DemoPicture, read_composed

_FOUND_SHOWN = 12
_KINDS_SHOWN = 14
_STORED_NAMES = {
    "ours": "this method",
    "no_attention_loss": "without the attention loss",
    "textual_inversion": "textual inversion, one token per species",
}
_STYLE = """<style>
.recipe.three { grid-template-columns: minmax(0, 1fr) auto minmax(0, 1.05fr); }
.recipe.three .result { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.recipe.three .source, .recipe.three .source img { width: 86px; }
.recipe.three .sources { gap: 7px; } .recipe.three .plus { padding-bottom: 40px; }
.thumbs { display: flex; flex-wrap: wrap; gap: 6px; margin: .2em 0 1em; }
.thumbs img { width: 56px; height: 56px; border-radius: 6px; display: block; }
.thumbs.large img { width: 70px; height: 70px; }
@media (max-width: 760px) { .recipe.three { grid-template-columns: 1fr; } }
</style>"""


def write_demo_page(out: Path, discovery: Discovery, dictionary: PartDictionary, metrics: Mapping[str, Any]) -> Path:
    """Write `index.html` from the results in the demo's folder, and return its path."""
    composed = read_composed(out)
    truth = load_truth(out).ordered_like([path.name for path in discovery.image_paths])
    page = _DemoPage(out, discovery, dictionary, truth, metrics)
    # results come first; the figures that qualify them come last
    body = [
        _STYLE,
        page.summary(),
        page.mixes([picture for picture in composed if picture.group == "mix"]),
        page.attention([picture for picture in composed if picture.attention]),
        page.blends([picture for picture in composed if picture.group == "blend"]),
        page.scenes([picture for picture in composed if picture.group == "scene"]),
        page.found(),
        page.kinds(),
        page.figures(),
        page.again(composed[0].prompt),
    ]
    return pages.write_page(out / "index.html", "Creatures nobody drew", "\n".join(body))


class _DemoPage:
    """The sections of the page, one method each."""

    def __init__(
        self,
        out: Path,
        discovery: Discovery,
        dictionary: PartDictionary,
        truth: DrawnTruth,
        metrics: Mapping[str, Any],
    ) -> None:
        self.out, self.discovery, self.dictionary, self.truth, self.metrics = out, discovery, dictionary, truth, metrics
        self.background = discovery.codebook.background
        self.names = discovery.codebook.part_names
        self.foreground = [part for part in range(len(self.names)) if part != self.background]

    # each section is one method, in the order of the page

    def summary(self) -> str:
        """Summary: two sentences and four figures."""
        tokens = sum(len(self.dictionary.kinds_of(part)) for part in self.foreground)
        lead = (
            f"{len(self.discovery.image_paths)} pictures of {len(set(self.truth.species))} species, no labels: the program "
            f"found {len(self.foreground)} parts, learned {tokens} part tokens, and put creatures together from parts of "
            "several species. Everything on this page was produced by one command on this machine."
        )
        reconstruction, mix = self.metrics["reconstruction"], self.metrics["mix4"]
        # headline figures: time, parts found, parts rebuilt, parts mixed
        return pages.paragraph(lead, "lead") + pages.tiles(
            [
                (duration(self.metrics["seconds"]["total"]), "total run time"),
                (self.metrics["discovery"]["part_miou"], "agreement of found and drawn parts (mean IoU)"),
                (reconstruction["emr"], "exact matches, creatures rebuilt from their parts (EMR)"),
                (mix["emr"], "exact matches, mixes of four species (EMR)"),
            ]
        )

    def mixes(self, pictures: Sequence[DemoPicture]) -> str:
        """Rows of source pictures and the creatures composed from their parts."""
        rows = [self._recipe(row) for row in _by_number(pictures)]
        note = (
            "Left: the source pictures, with everything but the used parts faded. Right: the first three seeds of each "
            "prompt; no picture was selected or regenerated."
        )
        return pages.section("Creatures composed of four sources", pages.paragraph(note), *rows)

    def attention(self, pictures: Sequence[DemoPicture]) -> str:
        """Heat maps of the tokens of some pictures."""
        rows = []
        for picture in pictures:
            tiles = [pages.figure(self._embedded(picture.file), "the picture")]
            # only some pictures have heat maps stored, so the lengths may differ
            for part, file in zip(picture.parts, picture.attention, strict=False):
                tiles.append(pages.figure(self._embedded(file), self.names[part]))
            rows.append(pages.strip(tiles))
        note = "Cross-attention of each part token during sampling, averaged over all steps."
        return pages.section("Attention of the part tokens", pages.paragraph(note), *rows)

    def blends(self, pictures: Sequence[DemoPicture]) -> str:
        """Rows that blend one creature into another."""
        rows = []
        for row in _by_number(pictures):
            one, other = row[0].sources[:2]
            # the two creatures themselves at the ends of the row
            tiles = [
                self._source(one),
                *(pages.figure(self._embedded(p.file), p.caption) for p in row),
                self._source(other),
            ]
            rows.append(pages.strip(tiles))
        note = (
            "Every part token is a weighted mean of two kinds, as in <head:3*0.5+8*0.5>; seed and scene stay the same."
        )
        return pages.section("Blends between two species", pages.paragraph(note), *rows)

    def scenes(self, pictures: Sequence[DemoPicture]) -> str:
        """The same creature in scenes described in words."""
        rows = [
            pages.strip([pages.figure(self._embedded(p.file), p.caption) for p in row]) for row in _by_number(pictures)
        ]
        note = "Part tokens combine with ordinary words: the rest of the prompt describes the scene."
        return pages.section("Other scenes", pages.paragraph(note), *rows)

    def found(self) -> str:
        """Pictures with the discovered parts in colour."""
        key = pages.color_key([(self.names[part], part_color(part)) for part in self.foreground])
        tiles = []
        for number in range(min(_FOUND_SHOWN, len(self.discovery.image_paths))):
            picture = fit_square(read_image(self.discovery.image_paths[number]), 128)
            # the picture and, to its right, its parts in colour
            pair = Image.new("RGB", (256, 128))
            pair.paste(picture, (0, 0))
            pair.paste(color_parts(picture, self.discovery.maps.labels[number], self.background), (128, 0))
            tiles.append(pages.figure(pages.data_uri(pair), self.truth.species[number].name))
        # the drawn masks are used only for these figures
        score = self.metrics["discovery"]
        matched = ", ".join(f"{found} = {drawn}" for found, drawn in score["matched"].items())
        rows = [[part, iou] for part, iou in score["part_iou"].items()]
        rows += [["all parts (mean)", score["part_miou"]], ["creature against scene", score["foreground_iou"]]]
        note = (
            "The parts were discovered from the pictures alone. The masks of the drawings are used only for scoring: IoU on "
            f"the patch grid after matching discovered to drawn parts ({matched})."
        )
        table = pages.table(["drawn part", "IoU"], rows)
        return pages.section(
            "Parts discovered without labels", key, pages.gallery(tiles, 240), pages.paragraph(note), table
        )

    def kinds(self) -> str:
        """A row of thumbnails for every part."""
        rows = []
        for part in self.foreground:
            known = self.dictionary.kinds_of(part)
            shown = [self._thumbnail(part, kind) for kind in known[:_KINDS_SHOWN]]
            heading = f"<h3>{pages.escaped(self.names[part])}: {len(known)} kinds</h3>"
            rows.append(f'{heading}<div class="thumbs large">{"".join(shown)}</div>')
        link = '<p>Details: <a href="discovery/index.html">the page of the discovery</a>.</p>'
        note = "The dictionary contains one token per kind of each part, with this thumbnail."
        return pages.section("The dictionary", pages.paragraph(note), *rows, link)

    def figures(self) -> str:
        """Figures of this run, of the independent judge, and of the stored evaluation, in separate tables."""
        tests = {name: self.metrics[name] for name in ("reconstruction", "mix4")}
        # stored figures come last and are labelled: this run did not measure them
        own = figures_table({"methods": {"this demo": tests}, "ceiling": self.metrics["ceiling"]})
        meaning = (
            "EMR: share of the prompted parts that the codebook classifies as exactly the requested kind. CoSim: cosine "
            "similarity between the detected and the requested kind. The codebook is not perfect: the rows on real pictures "
            "show its scores on the training pictures, unchanged and after the model's autoencoder."
        )
        content = [pages.paragraph(meaning), own, "<h3>Judged independently</h3>", pages.paragraph(_JUDGE_NOTE)]
        content += [self._judge_table(tests), *self._stored()]
        return pages.section("How faithful are the pictures?", *content)

    def again(self, prompt: str) -> str:
        """Commands to continue with."""
        lines = [
            f'bestiary compose creatures.safetensors "{prompt}" --count 4 --sheet',
            "bestiary inspect creatures.safetensors",
            "bestiary evaluate parts creatures.safetensors --discovery discovery",
            "bestiary export creatures.safetensors",
        ]
        commands = "".join(f"<p>{pages.code(line)}</p>" for line in lines)
        seconds = self.metrics["seconds"]
        stages = ", ".join(f"{stage} {duration(value)}" for stage, value in seconds.items() if stage != "total")
        footer = f"Seed {self.metrics['seed']}. Time: {stages}. Figures: metrics.json."
        note = "In the folder of this page:"
        return (
            pages.section("Next steps", pages.paragraph(note), commands) + f"<footer>{pages.escaped(footer)}</footer>"
        )

    def _recipe(self, row: Sequence[DemoPicture]) -> str:
        # a picture that contributed only the background is not shown as a source
        sources = []
        for picture in dict.fromkeys(source for source in row[0].sources if source >= 0):
            parts = [part for part in self.foreground if row[0].sources[part] == picture]
            if not parts:
                continue
            crop = pages.image(
                pages.data_uri(source_crop(self.discovery, picture, parts)), self.truth.species[picture].name
            )
            text = f"<b>{pages.escaped(' and '.join(self.names[part] for part in parts))}</b>"
            sources.append(
                f'<div class="source">{crop}{text}<br>of {pages.escaped(self.truth.species[picture].name)}</div>'
            )
        results = "".join(pages.image(self._embedded(picture.file), picture.prompt) for picture in row)
        joined = '<div class="plus">+</div>'.join(sources)
        return (
            f'<div class="recipe three"><div class="sources">{joined}</div><div class="equals">=</div>'
            f'<div class="result">{results}</div><p class="prompt">{pages.code(row[0].prompt)}</p></div>'
        )

    def _source(self, picture: int) -> str:
        image = fit_square(read_image(self.discovery.image_paths[picture]), 128)
        return pages.figure(pages.data_uri(image), "drawn", self.truth.species[picture].name)

    def _thumbnail(self, part: int, kind: int) -> str:
        atlas = self.dictionary.thumbnails
        tile = atlas.tile(part, kind) if atlas is not None else None
        return pages.image(pages.data_uri(tile), f"{self.names[part]} {kind}") if tile is not None else ""

    def _embedded(self, file: str) -> str:
        with Image.open(self.out / COMPOSED / file) as image:
            return pages.data_uri(image)

    def _judge_table(self, tests: Mapping[str, Any]) -> str:
        rows = [[test_title(test), *_judged(scores["judge"])] for test, scores in tests.items()]
        ceiling = self.metrics["ceiling"]
        rows.append(["the drawings themselves", *_judged(ceiling["real"]["judge"])])
        rows.append(["the drawings through the autoencoder", *_judged(ceiling["reencoded"]["judge"])])
        return pages.table(["pictures", "parts judged", "colour", "pattern", "shape", "all three"], rows)

    def _stored(self) -> list[str]:
        stored = self.metrics.get("stored_evaluation")
        if not stored:
            return []
        rows = []
        for name, tests in stored["means"].items():
            for test, scores in tests.items():
                judged = scores.get("judge", {})
                title = _STORED_NAMES.get(name, name)
                rows.append(
                    [
                        title,
                        test_title(test),
                        scores["emr"],
                        scores["cosim"],
                        scores["attention_iou"],
                        judged.get("color"),
                        judged.get("shape"),
                    ]
                )
        header = ["method", "test", "EMR", "CoSim", "attention IoU", "colour (judge)", "shape (judge)"]
        note = (
            f"Not measured by this run: these figures are shipped with the program, as means over the seeds "
            f"{', '.join(map(str, stored['seeds']))}, with every method trained for {stored['steps']} steps on the same pictures."
        )
        return [
            "<h3>Compared with other methods: a stored evaluation</h3>",
            pages.paragraph(note, "note"),
            pages.table(header, rows),
        ]


_JUDGE_NOTE = (
    "A small classifier, trained on drawings and independent of the codebook, predicts colour, pattern and shape of every "
    "part. The shares count agreement with the species that the part was taken from."
)


def _judged(judge: Mapping[str, Any]) -> list[Any]:
    return [judge.get(name) for name in ("parts", "color", "pattern", "shape", "all_three")]


def _by_number(pictures: Sequence[DemoPicture]) -> list[list[DemoPicture]]:
    rows: dict[int, list[DemoPicture]] = {}
    for picture in pictures:
        rows.setdefault(picture.number, []).append(picture)
    return list(rows.values())
