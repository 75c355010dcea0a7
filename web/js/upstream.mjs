/** Which dictionaries a node can name: found by walking the graph against its links. */

import { app } from "../../../scripts/app.js";
import { nameOfFile } from "./dictionaries.mjs";

const FOLLOWED = new Set(["CLIP", "BESTIARY_DICTIONARY", "*"]);
/** Blocks that give a dictionary another name or other numbers, and the input whose numbers stay. */
const KEEPS_NUMBERS_OF = { BestiaryMergeDictionaries: "first" };

/** The dictionaries behind a node's inputs, as [{file, called}], each name once; the nearest come first. */
export function upstreamDictionaries(node) {
  const found = new Map();
  for (const entry of behind(node, new Set())) {
    if (!found.has(entry.called)) found.set(entry.called, entry);
  }
  return [...found.values()];
}

function behind(node, seen) {
  if (!node || seen.has(node)) return [];
  seen.add(node);
  const kind = node.comfyClass ?? node.type;
  const only = KEEPS_NUMBERS_OF[kind];
  const inputs = (node.inputs ?? []).map(({ name, type }, slot) => ({ name, type, slot }));
  const followed = inputs.filter((input) => FOLLOWED.has(input.type) && (!only || input.name === only));
  const others = followed.flatMap((input) => behind(sourceOf(node, input.slot), seen));
  const name = `${widgetValue(node, "name") ?? ""}`.trim();
  if (kind === "BestiaryLoadDictionary") {
    const file = widgetValue(node, "file");
    return file ? [{ file: `${file}`, called: name || nameOfFile(`${file}`) }, ...others] : others;
  }
  if ((kind === "BestiaryApplyDictionary" || only) && name && others.length) {
    return [{ ...others[0], called: name }, ...others.slice(1)];
  }
  return others;
}

/** The node that feeds an input; out of a subgraph to what feeds the subgraph's own input. */
function sourceOf(node, slot) {
  // a block that was removed has no links
  const link = node.graph ? node.getInputLink?.(slot) : null;
  if (!link) return null;
  const source = node.graph?.getNodeById(link.origin_id);
  if (source?.subgraph) return insideOf(source.subgraph, link.origin_slot);
  if (source) return source;
  const host = (app.graph?.nodes ?? []).find((other) => other.subgraph && other.subgraph === node.graph);
  return host ? sourceOf(host, link.origin_slot) : null;
}

/** The node within a subgraph that feeds one of its outputs. */
function insideOf(subgraph, slot) {
  const id = subgraph.outputs?.[slot]?.linkIds?.[0];
  const link = id === undefined ? null : subgraph.getLink?.(id);
  return link ? subgraph.getNodeById(link.origin_id) : null;
}

/** Value of a widget of a node by its name, undefined without one. */
export function widgetValue(node, name) {
  return findWidget(node, name)?.value;
}

/** A widget of a node by its name. */
export function findWidget(node, name) {
  return (node.widgets ?? []).find((widget) => widget.name === name);
}

/** Sets a widget as if a person had, in both kinds of nodes; without change it does nothing. */
export function setWidget(widget, value) {
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, widget.node);
  setTimeout(() => showInBox(widget), 60);
}

/** Early Vue nodes (1.27) keep showing an old text: there the box is told as if it had been typed. */
function showInBox(widget) {
  const boxes = (widget.node?.widgets ?? []).filter((one) => one.type === "customtext");
  // with several boxes it is not known which is whose
  if (boxes.length !== 1 || boxes[0] !== widget) return;
  const box = document.querySelector(`[data-node-id="${CSS.escape(`${widget.node.id}`)}"] textarea`);
  if (!box || box.value === widget.value) return;
  box.value = widget.value;
  box.dispatchEvent(new InputEvent("input", { bubbles: true }));
}

/** Calls `changed` whenever a widget's value changes. */
export function watchWidget(widget, changed) {
  const before = widget.callback;
  widget.callback = function (...facts) {
    const result = before?.apply(this, facts);
    changed();
    return result;
  };
}
