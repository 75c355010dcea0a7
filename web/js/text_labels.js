/** Every text box of our blocks says what it is: to readers always, to the eye in early Vue nodes, which draw boxes without labels. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, make } from "./host/elements.mjs";
import { debounced, safely } from "./host/safely.mjs";
import { bodyOf } from "./host/widgets.mjs";

const OURS = /^Bestiary/;
const LATER = [300, 1200, 3000];

function labelBoxes(node) {
  const boxes = (node.widgets ?? []).filter((widget) => widget.type === "customtext");
  const drawn = [...(bodyOf(node)?.querySelectorAll("textarea") ?? [])];
  boxes.forEach((widget, place) => {
    const name = `${widget.label ?? widget.localized_name ?? widget.name}`.replaceAll("_", " ");
    // where some boxes are hidden it is not known which is whose
    const box = widget.element?.isConnected ? widget.element : drawn.length === boxes.length ? drawn[place] : null;
    if (!box || box.labels?.length) return;
    box.setAttribute("aria-label", name);
    const holder = box.parentElement;
    if (box === widget.element || !holder || holder.querySelector(":scope > .bst-box-label")) return;
    holder.style.position ||= "relative";
    holder.append(make("span", { className: "bst-box-label", "aria-hidden": "true", textContent: name }));
  });
}

const labelAll = debounced(() => {
  for (const node of app.canvas?.graph?.nodes ?? []) if (OURS.test(node.comfyClass ?? "")) safely(labelBoxes, node);
});

const soon = debounced(() => {
  for (const pause of LATER) setTimeout(labelAll, pause);
});

app.registerExtension({
  name: "Bestiary.TextLabels",
  init: addStyle,
  setup() {
    api.addEventListener("graphChanged", labelAll);
    app.canvas?.canvas?.addEventListener("litegraph:set-graph", soon);
  },
  nodeCreated: (node) => {
    if (OURS.test(node.comfyClass ?? "")) soon();
  },
});
