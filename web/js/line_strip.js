/** The stage strip on blocks with a text per stage: one row for each line, drag to say which stages it covers. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, iconButton, make, ownEvents } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { isFed } from "./host/links.mjs";
import { refill } from "./host/pressed.mjs";
import { after, debounced, safely } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, setWidget, watchWidget } from "./host/widgets.mjs";
import { linkedDictionaries } from "./parts/linked.mjs";
import { fetchSpectraAgain, linkedSpectra } from "./stages/spectra.mjs";
import { CellRow, ownerCells, presetChoice } from "./stages/stage_cells.mjs";
import { STAGED_FIELDS, repairStaged, stagedChoices, stagedFaults } from "./stages/staged_texts.mjs";
import { assignStages, readLines, writtenStages } from "./stages/stages.mjs";
import { StepRow } from "./stages/step_row.mjs";

/** Blocks, their fields of lines, and what a side is called. */
const BLOCKS = {
  BestiarySpectrumPrompt: { sides: { positive: "stage_texts", negative: "negative_stage_texts" }, size: [440, 1180] },
  BestiaryStageText: { sides: { positive: "lines" }, size: [430, 830] },
};
const HEIGHT = 270;
const COLORS = 10;
const MOST_FAULTS = 3;
/** Stages that fit into a row. */
const MOST = 40;
const FIRST_WORDS = "…";

/** What one node shows; its lines are what is kept. */
class LineStrip {
  constructor(node) {
    this.node = node;
    this.sides = BLOCKS[node.comfyClass].sides;
    this.side = Object.keys(this.sides)[0];
    this.rows = [];
    this.build();
    ownEvents(this.element);
    this.element.addEventListener("pointerenter", () => this.steps.update(this.count, this.clock));
    this.panel = new Panel(node, { name: "stages", property: "bestiary_stages", element: this.element, height: HEIGHT, size: BLOCKS[node.comfyClass].size });
    this.tools.prepend(this.panel.button);
  }

  build() {
    const names = Object.keys(this.sides);
    this.sideTabs = names.map((side) => make("button", { type: "button", className: "bst-chip", textContent: t(`stages.${side}`), onclick: () => this.turn(side) }));
    if (names.length < 2) this.sideTabs = [];
    this.title = make("b", { className: "bst-run", textContent: t("stages.lines") });
    this.addButton = iconButton("add", t("stages.addLine"), () => this.addLine());
    this.tools = make("div", { className: "bst-tools" }, this.title, make("span", { className: "bst-space" }), ...this.sideTabs, this.addButton);
    const ends = make("div", { className: "bst-ends" }, make("span", { textContent: t("stages.noise") }), make("span", { textContent: t("stages.picture") }));
    this.list = make("div", { className: "bst-lines" });
    this.result = make("div", { className: "bst-cells bst-result", role: "img" });
    this.steps = new StepRow(this.node);
    this.status = make("p", { className: "bst-hint", role: "status" });
    this.faults = make("div", { className: "bst-status", role: "status", "aria-live": "polite" });
    const sums = make("div", { className: "bst-track" }, make("b", { textContent: "=", title: t("stages.who") }), this.result);
    this.element = make("div", { className: "bst-picker bst-strips bst-line-strips", role: "group", "aria-label": t("stages.title") }, this.tools, ends, this.list, sums, this.steps.element, this.steps.note, this.status, this.faults);
  }

  get field() {
    return findWidget(this.node, this.sides[this.side]);
  }

  get text() {
    return `${this.field?.value ?? ""}`;
  }

  /** Stages: those of the first spectrum that the side's text names, else those that the block is set to. */
  get count() {
    return this.choices.countOf(null);
  }

  get choices() {
    return stagedChoices(this.node, this.sides[this.side]);
  }

  get clock() {
    return `${findWidget(this.node, "clock")?.value ?? "timesteps"}`;
  }

  get presets() {
    return this.choices.presetsOf(null);
  }

  get lines() {
    return readLines(this.text, this.count, this.presets);
  }

  turn(side) {
    this.side = side;
    this.render();
  }

  chosen(place) {
    const claims = this.lines[place]?.claims;
    return claims && new Set(claims.flatMap(({ stages }) => stages));
  }

  set(place, stage, on) {
    const chosen = this.chosen(place) ?? new Set();
    if (on) chosen.add(stage);
    else chosen.delete(stage);
    // a line without a stage could not be read
    if (chosen.size) this.write(place, writtenStages(chosen, this.count, this.presets));
  }

  /** Puts other stages in front of the colon of a line. */
  write(place, selection) {
    const line = this.lines[place];
    if (!line || !selection) return;
    const after = line.colon < 0 ? `: ${this.text.slice(line.start, line.end).trim()}` : this.text.slice(line.colon, line.end);
    setWidget(this.field, this.text.slice(0, line.start) + selection + after + this.text.slice(line.end));
    this.render();
  }

  /** A new line for the stages that none has yet, else for the last one. */
  addLine() {
    const { owners } = assignStages(this.lines.map(({ claims }) => claims), this.count);
    const free = owners.flatMap((owner, stage) => (owner < 0 ? [stage] : []));
    const line = `${writtenStages(free.length ? free : [this.count - 1], this.count, {})}: ${FIRST_WORDS}`;
    setWidget(this.field, this.text.trim() ? `${this.text.trimEnd()}\n${line}` : line);
    this.render();
  }

  row(place) {
    const number = place + 1;
    const row = new CellRow(t("stages.lineStages", { number }), {
      chosen: () => this.chosen(place),
      set: (stage, on) => this.set(place, stage, on),
      label: (stage) => t("stages.lineCell", { stage, number }),
    });
    const choice = presetChoice(t("stages.linePreset", { number }), (name) => this.write(place, name));
    const words = make("span", { className: "bst-line-words" });
    const track = make("div", { className: "bst-track" }, make("b", { textContent: `${number}` }), row.element, choice.element);
    track.dataset.line = place % COLORS;
    return { row, choice, words, element: make("div", { className: "bst-line-track" }, words, track) };
  }

  render() {
    if (!this.node.graph) return;
    const { count, lines, presets } = this;
    const fits = count <= MOST;
    while (this.rows.length < lines.length) this.rows.push(this.row(this.rows.length));
    const rows = fits ? this.rows.slice(0, lines.length) : [];
    if (this.list.childElementCount !== rows.length) this.list.replaceChildren(...rows.map(({ element }) => element));
    rows.forEach(({ row, choice, words, element }, place) => {
      const { selection, words: said, claims } = lines[place];
      words.textContent = said;
      words.title = said;
      element.classList.toggle("bst-broken", lines[place].empty || (!claims && !this.waits(lines[place])));
      choice.show(presets, selection.trim());
      row.render(count);
    });
    const { owners, double } = assignStages(lines.map(({ claims }) => claims), count);
    this.result.replaceChildren(...ownerCells(fits ? owners : [], (cell, owner) => owner >= 0 && (cell.dataset.line = owner % COLORS)));
    this.result.setAttribute("aria-label", `${t("stages.who")}: ${owners.map((owner) => owner + 1 || "–").join(" ")}`);
    this.sideTabs.forEach((tab, place) => tab.setAttribute("aria-pressed", `${Object.keys(this.sides)[place] === this.side}`));
    this.status.textContent = this.message(lines, double, fits);
    this.showFaults();
    if (fits) this.steps.update(count, this.clock);
    this.steps.element.hidden = this.steps.note.hidden = !fits;
  }

  /** Shows unknown names in the texts, each with the closest valid one. */
  showFaults() {
    const { node } = this;
    const found = STAGED_FIELDS[node.comfyClass].flatMap((name) => stagedFaults(node, name, `${findWidget(node, name)?.value ?? ""}`).map((fault) => ({ name, ...fault })));
    const rows = found.slice(0, MOST_FAULTS).map(({ name, ...fault }) => {
      const text = t(`fault.${fault.fault}`, { text: fault.wrong ?? fault.mention.target });
      const repair = fault.nearest && make("button", { type: "button", textContent: t("picker.useNearest", { text: fault.nearest }), onclick: () => repairStaged(node, name, fault) });
      return make("p", { className: "bst-fault" }, make("span", { textContent: text }), repair || null);
    });
    refill(this.faults, ...rows);
  }

  /** Whether a line may name what linked presets say when the graph runs. */
  waits({ claims, colon }) {
    return !claims && colon >= 0 && isFed(this.node, "presets");
  }

  message(lines, double, fits) {
    if (!fits) return t("stages.tooMany", { most: MOST });
    const broken = lines.find((line) => !line.claims && !this.waits(line));
    if (broken) return t("stages.brokenLine", { text: this.text.slice(broken.start, broken.end) });
    const empty = lines.find((line) => line.empty);
    if (empty) return t("stages.emptyLine", { text: empty.selection.trim(), count: this.count });
    if (lines.some((line) => this.waits(line))) return t("stages.linkedPresets");
    if (double.length) return t("stages.doubleLine", { stages: double.map((stage) => stage + 1).join(", ") });
    return t(lines.length ? "stages.lineHint" : "stages.noLine");
  }
}

const strips = new Set();
const lookAgain = debounced(() => strips.forEach((strip) => safely(() => strip.render())));

app.registerExtension({
  name: "Bestiary.LineStrip",
  async init() {
    addStyle();
    await loadStrings();
    api.addEventListener("graphChanged", lookAgain);
  },
  refreshComboInNodes: fetchSpectraAgain,
  nodeCreated(node) {
    if (!(node.comfyClass in BLOCKS)) return;
    const strip = new LineStrip(node);
    strips.add(strip);
    const later = debounced(() => strip.render());
    linkedSpectra(node).listeners.add(later);
    linkedDictionaries(node).listeners.add(later);
    for (const name of [...STAGED_FIELDS[node.comfyClass], "presets", "stages", "clock"]) {
      const field = ownWidget(node, name);
      if (!field) continue;
      watchWidget(field, later);
      field.element?.addEventListener("input", later);
    }
    for (const method of ["onConnectionsChange", "onConfigure"]) after(node, method, later);
    after(node, "onRemoved", () => strips.delete(strip));
    later();
  },
});
