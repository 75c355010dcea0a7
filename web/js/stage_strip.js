/** The stage strip on Mix Attributes: ten stages from noise to picture, drag to say which reference has which. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, make, ownEvents } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { isFed } from "./host/links.mjs";
import { after, debounced, safely } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, setWidget, watchWidget } from "./host/widgets.mjs";
import { CellRow, ownerCells, presetChoice } from "./stages/stage_cells.mjs";
import { PRESETS, assignStages, readClaims, readPresets, readStages, writtenStages } from "./stages/stages.mjs";
import { StepRow } from "./stages/step_row.mjs";

const REFERENCES = [1, 2, 3, 4];
const STAGES = 10;
const HEIGHT = 318;
const SIZE = [430, 770];

/** What one node shows; the texts of its fields are what is kept. */
class StageStrip {
  constructor(node) {
    this.node = node;
    this.tracks = REFERENCES.map((number) => this.track(number));
    this.result = make("div", { className: "bst-cells bst-result", role: "img" });
    this.steps = new StepRow(node);
    this.status = make("p", { className: "bst-hint", role: "status" });
    const tools = make("div", { className: "bst-tools" }, make("b", { className: "bst-run", textContent: t("stages.title") }));
    const ends = make("div", { className: "bst-ends" }, make("span", { textContent: t("stages.noise") }), make("span", { textContent: t("stages.picture") }));
    this.element = make(
      "div",
      { className: "bst-picker bst-strips", role: "group", "aria-label": t("stages.title") },
      tools,
      ends,
      ...this.tracks.map(({ element }) => element),
      make("div", { className: "bst-track" }, make("b", { textContent: "=", title: t("stages.result") }), this.result),
      this.steps.element,
      this.steps.note,
      this.status,
    );
    ownEvents(this.element);
    this.element.addEventListener("pointerenter", () => this.steps.update(STAGES));
    const panel = new Panel(node, { name: "stages", property: "bestiary_stages", element: this.element, height: HEIGHT, size: SIZE, fixed: true });
    tools.prepend(panel.button);
  }

  track(number) {
    const row = new CellRow(t("stages.track", { number }), {
      chosen: () => this.chosen(number),
      set: (stage, on) => this.set(number, stage, on),
      label: (stage) => t("stages.cell", { stage, number }),
    });
    const choice = presetChoice(t("stages.preset", { number }), (name) => this.write(number, name));
    const element = make("div", { className: "bst-track" }, make("b", { textContent: `${number}` }), row.element, choice.element);
    element.dataset.reference = number;
    return { element, row, choice };
  }

  field(number) {
    return findWidget(this.node, `takes_${number}`);
  }

  text(number) {
    return `${this.field(number)?.value ?? ""}`;
  }

  get presets() {
    return readPresets(`${findWidget(this.node, "presets")?.value ?? ""}`, STAGES) ?? PRESETS;
  }

  chosen(number) {
    return readStages(this.text(number), STAGES, this.presets);
  }

  set(number, stage, on) {
    const chosen = this.chosen(number) ?? new Set();
    if (on) chosen.add(stage);
    else chosen.delete(stage);
    this.write(number, writtenStages(chosen, STAGES, this.presets));
  }

  write(number, text) {
    setWidget(this.field(number), text);
    this.render();
  }

  isLinked(number) {
    return isFed(this.node, `reference_${number}`);
  }

  render() {
    // a block that was removed has no links
    if (!this.node.graph) return;
    const { presets } = this;
    const linked = REFERENCES.map((number) => this.isLinked(number));
    this.tracks.forEach(({ element, row, choice }, place) => {
      element.classList.toggle("bst-unlinked", !linked[place]);
      choice.show(presets, this.text(place + 1).trim());
      row.render(STAGES);
    });
    const { owners, double } = assignStages(REFERENCES.map((number, place) => (linked[place] ? readClaims(this.text(number), STAGES, presets) : null)), STAGES);
    this.result.replaceChildren(...ownerCells(owners, (cell, owner) => (cell.dataset.owner = owner + 1)));
    this.result.setAttribute("aria-label", `${t("stages.result")}: ${owners.map((owner) => owner + 1 || "–").join(" ")}`);
    const broken = REFERENCES.find((number) => !this.chosen(number));
    if (broken && isFed(this.node, "presets")) this.status.textContent = t("stages.linkedPresets");
    else if (broken) this.status.textContent = t("stages.unreadable", { text: this.text(broken) });
    else this.status.textContent = double.length ? t("stages.double", { stages: double.map((stage) => stage + 1).join(", ") }) : t("stages.hint");
    this.steps.update(STAGES);
  }
}

const strips = new Set();
const lookAgain = debounced(() => strips.forEach((strip) => strip.node.graph && safely(() => strip.render())));

app.registerExtension({
  name: "Bestiary.StageStrip",
  async init() {
    addStyle();
    await loadStrings();
    // a sampler further on may have other steps now
    api.addEventListener("graphChanged", lookAgain);
  },
  nodeCreated(node) {
    if (node.comfyClass !== "BestiaryMixAttributes") return;
    const strip = new StageStrip(node);
    strips.add(strip);
    const later = debounced(() => strip.render());
    for (const name of [...REFERENCES.map((number) => `takes_${number}`), "presets"]) {
      const field = ownWidget(node, name);
      watchWidget(field, later);
      field.element?.addEventListener("input", later);
    }
    for (const method of ["onConnectionsChange", "onConfigure"]) after(node, method, later);
    after(node, "onRemoved", () => strips.delete(strip));
    later();
  },
});
