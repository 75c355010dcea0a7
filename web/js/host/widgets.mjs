/** Fields of nodes by name, read and set, and where a node is drawn. */

import { app } from "../../../../scripts/app.js";
import { feedOf, sourceOf } from "./links.mjs";
import { safely } from "./safely.mjs";

/** Blocks whose value is that of their one widget. */
const NUMBERS = /^Primitive/;

const kindOf = (node) => node.comfyClass ?? node.type;

/** What a field of a node holds, or what the block linked to it gives; undefined where that is known only while the graph runs. */
export function widgetValue(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.widget?.name === name);
  const source = slot < 0 ? null : sourceOf(node, slot);
  if (!source) return findWidget(node, name)?.value;
  return NUMBERS.test(kindOf(source)) ? source.widgets?.[0]?.value : undefined;
}

/** The widget that holds a field of a node: its own, or that of the subgraph's block which offers the field instead. */
export function findWidget(node, name) {
  return findField(node, name).widget;
}

/** The same with the node on which it is drawn: {node, widget}; `widget` is undefined if there is no such field. */
export function findField(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.widget?.name === name);
  const feed = slot < 0 ? null : feedOf(node, slot);
  return feed?.widget ? feed : { node, widget: ownWidget(node, name) };
}

/** A widget of a node itself by its name. */
export function ownWidget(node, name) {
  return (node.widgets ?? []).find((widget) => widget.name === name);
}

/** Sets a widget as if a person had, in both kinds of nodes; without change it does nothing. */
export function setWidget(widget, value) {
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, widget.node);
  setTimeout(() => showInBox(widget), 60);
}

/** Early Vue nodes (1.27) keep showing an old text: so the value is put into the box as if it had been typed. */
function showInBox(widget) {
  const boxes = (widget.node?.widgets ?? []).filter((one) => one.type === "customtext");
  // with several boxes it is not known which is whose
  if (boxes.length !== 1 || boxes[0] !== widget) return;
  const box = bodyOf(widget.node)?.querySelector("textarea");
  if (!box || box.value === widget.value) return;
  box.value = widget.value;
  box.dispatchEvent(new InputEvent("input", { bubbles: true }));
}

/** Where Vue nodes draw a block, null elsewhere: only the graph that is open is drawn, and another may have a block of the same number. */
export function bodyOf(node) {
  return node.graph === app.canvas.graph ? document.querySelector(`[data-node-id="${CSS.escape(`${node.id}`)}"]`) : null;
}

/** Calls `changed` whenever a widget's value changes. */
export function watchWidget(widget, changed) {
  const before = widget.callback;
  widget.callback = function (...facts) {
    const result = before?.apply(this, facts);
    safely(changed);
    return result;
  };
}
