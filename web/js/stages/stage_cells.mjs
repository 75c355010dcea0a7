/** A row of stages that are chosen by dragging over them or with keys. */

import { make } from "../host/elements.mjs";

let drag = null;
addEventListener("pointerup", () => (drag = null));
addEventListener("pointercancel", () => (drag = null));

/** `events` has chosen() -> Set or null, set(stage, on), and label(stage) for those who do not see the row. */
export class CellRow {
  constructor(label, events) {
    this.events = events;
    this.cells = [];
    this.element = make("div", { className: "bst-cells", role: "group", "aria-label": label });
  }

  /** Shows what is chosen of so many stages. */
  render(count) {
    while (this.cells.length < count) this.cells.push(this.cell(this.cells.length));
    if (this.element.childElementCount !== count) {
      this.cells.length = count;
      this.element.replaceChildren(...this.cells);
    }
    const chosen = this.events.chosen() ?? new Set();
    this.cells.forEach((cell, stage) => {
      cell.setAttribute("aria-pressed", `${chosen.has(stage)}`);
      cell.setAttribute("aria-label", this.events.label(stage + 1));
    });
  }

  cell(stage) {
    return make("button", {
      type: "button",
      className: "bst-cell",
      textContent: `${stage + 1}`,
      tabIndex: stage ? -1 : 0,
      onpointerdown: (event) => this.begin(event, stage),
      onpointerenter: () => drag?.row === this && this.events.set(stage, drag.on),
      onkeydown: (event) => this.keyed(event, stage),
    });
  }

  isOn(stage) {
    return Boolean(this.events.chosen()?.has(stage));
  }

  begin(event, stage) {
    if (event.button) return;
    // the pointer is not captured, so that it enters the other cells
    event.target.releasePointerCapture?.(event.pointerId);
    drag = { row: this, on: !this.isOn(stage) };
    this.events.set(stage, drag.on);
  }

  keyed(event, stage) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === " " || event.key === "Enter") this.events.set(stage, !this.isOn(stage));
    else if (step && this.cells[stage + step]) {
      // with Shift the range grows or shrinks
      if (event.shiftKey) this.events.set(stage + step, this.isOn(stage));
      this.cells[stage + step].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** A choice of attributes for a row; `taken` is called with the name. */
export function presetChoice(label, taken) {
  const choose = make("select", { "aria-label": label, onchange: () => taken(choose.value) });
  const show = (presets, text) => {
    const names = Object.keys(presets);
    if (choose.dataset.names !== names.join("\n")) {
      choose.dataset.names = names.join("\n");
      choose.replaceChildren(make("option", { value: "", textContent: "…" }), ...names.map((name) => make("option", { value: name, textContent: name })));
    }
    choose.value = text in presets ? text : "";
  };
  return { element: choose, show };
}

/** Row that shows who has each stage. */
export function ownerCells(owners, mark) {
  return owners.map((owner) => {
    const cell = make("span", { className: "bst-cell", textContent: owner < 0 ? "·" : `${owner + 1}` });
    mark(cell, owner);
    return cell;
  });
}
