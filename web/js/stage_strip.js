/** The stage strip on Mix Attributes: ten stages from noise to picture, drag to say which reference has which. */

import { app } from "../../../scripts/app.js";
import { addStyle, make, ownEvents } from "./elements.mjs";
import { after, debounced } from "./linked.mjs";
import { keepMounted } from "./mounting.mjs";
import { PRESETS, readStages, winners, writtenStages } from "./stages.mjs";
import { loadStrings, t } from "./strings.mjs";
import { findWidget, setWidget, watchWidget } from "./upstream.mjs";

const REFERENCES = [1, 2, 3, 4];
const STAGES = 10;
const HEIGHT = 236;
const SIZE = [430, 720];

/** What one node shows; the texts of its fields are what is kept. */
class StageStrip {
  constructor(node) {
    this.node = node;
    this.drag = null;
    this.tracks = REFERENCES.map((number) => this.track(number));
    this.result = make("div", { className: "bst-cells bst-result", role: "img" });
    this.status = make("p", { className: "bst-hint", role: "status" });
    const ends = make("div", { className: "bst-ends" }, make("span", { textContent: t("stages.noise") }), make("span", { textContent: t("stages.picture") }));
    this.element = make(
      "div",
      { className: "bst-picker bst-strips", role: "group", "aria-label": t("stages.title") },
      ends,
      ...this.tracks.map(({ element }) => element),
      make("div", { className: "bst-track" }, make("b", { textContent: "=", title: t("stages.result") }), this.result),
      this.status,
    );
    ownEvents(this.element);
    addEventListener("pointerup", () => (this.drag = null));
  }

  track(number) {
    const cells = Array.from({ length: STAGES }, (_, stage) =>
      make("button", {
        type: "button",
        className: "bst-cell",
        textContent: `${stage + 1}`,
        tabIndex: stage ? -1 : 0,
        onpointerdown: (event) => this.begin(event, number, stage),
        onpointerenter: () => this.drag?.number === number && this.set(number, stage, this.drag.on),
        onkeydown: (event) => this.keyed(event, number, stage),
      }),
    );
    const choose = make("select", { "aria-label": t("stages.preset", { number }), onchange: () => this.write(number, choose.value) });
    choose.append(make("option", { value: "", textContent: "…" }), ...Object.keys(PRESETS).map((name) => make("option", { value: name, textContent: name })));
    const row = make("div", { className: "bst-cells", role: "group", "aria-label": t("stages.track", { number }) }, ...cells);
    const element = make("div", { className: "bst-track" }, make("b", { textContent: `${number}` }), row, choose);
    element.dataset.reference = number;
    return { element, cells, choose };
  }

  field(number) {
    return findWidget(this.node, `takes_${number}`);
  }

  chosen(number) {
    return readStages(`${this.field(number)?.value ?? ""}`, STAGES);
  }

  begin(event, number, stage) {
    if (event.button) return;
    // the pointer is not captured, so that it enters the other cells
    event.target.releasePointerCapture?.(event.pointerId);
    this.drag = { number, on: !this.chosen(number)?.has(stage) };
    this.set(number, stage, this.drag.on);
  }

  set(number, stage, on) {
    const chosen = this.chosen(number) ?? new Set();
    if (on) chosen.add(stage);
    else chosen.delete(stage);
    this.write(number, writtenStages(chosen, STAGES));
  }

  write(number, text) {
    setWidget(this.field(number), text);
    this.render();
  }

  keyed(event, number, stage) {
    const { cells } = this.tracks[number - 1];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === " " || event.key === "Enter") this.set(number, stage, !this.chosen(number)?.has(stage));
    else if (step && cells[stage + step]) {
      // with Shift the range grows or shrinks
      if (event.shiftKey) this.set(number, stage + step, Boolean(this.chosen(number)?.has(stage)));
      cells[stage + step].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  render() {
    // a block that was removed has no links
    if (!this.node.graph) return;
    const selections = REFERENCES.map((number) => this.chosen(number));
    const linked = REFERENCES.map((number) => this.node.isInputConnected?.((this.node.inputs ?? []).findIndex((input) => input.name === `reference_${number}`)));
    this.tracks.forEach(({ element, cells, choose }, place) => {
      element.classList.toggle("bst-unlinked", !linked[place]);
      const text = `${this.field(place + 1)?.value ?? ""}`.trim();
      choose.value = text in PRESETS ? text : "";
      cells.forEach((cell, stage) => {
        const on = Boolean(selections[place]?.has(stage));
        cell.setAttribute("aria-pressed", `${on}`);
        cell.setAttribute("aria-label", t("stages.cell", { stage: stage + 1, number: place + 1 }));
      });
    });
    const active = selections.map((chosen, place) => (linked[place] ? chosen : null));
    const owners = winners(active, STAGES);
    const cells = owners.map((owner) => {
      const cell = make("span", { className: "bst-cell", textContent: owner < 0 ? "·" : `${owner + 1}` });
      cell.dataset.owner = owner + 1;
      return cell;
    });
    this.result.replaceChildren(...cells);
    this.result.setAttribute("aria-label", `${t("stages.result")}: ${owners.map((owner) => owner + 1 || "–").join(" ")}`);
    const broken = REFERENCES.find((_, place) => !selections[place]);
    this.status.textContent = broken ? t("stages.unreadable", { text: this.field(broken).value }) : t("stages.hint");
  }
}

app.registerExtension({
  name: "Bestiary.StageStrip",
  async init() {
    addStyle();
    await loadStrings();
  },
  nodeCreated(node) {
    if (node.comfyClass !== "BestiaryMixAttributes") return;
    const strip = new StageStrip(node);
    const widget = node.addDOMWidget("stages", "BESTIARY_STAGE_STRIP", strip.element, {
      serialize: false,
      hideOnZoom: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => HEIGHT,
      getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
    const later = debounced(() => strip.render());
    for (const number of REFERENCES) watchWidget(findWidget(node, `takes_${number}`), later);
    for (const method of ["onConnectionsChange", "onConfigure"]) after(node, method, later);
    keepMounted(node, strip.element);
    later();
  },
});
