/** Which dictionaries a node can name, found by walking the graph against its links; and fields of nodes by name. */

import { app } from "../../../scripts/app.js";
import { nameOfFile } from "./dictionaries.mjs";
import { feedOf, sourceOf } from "./links.mjs";
import { safely } from "./safely.mjs";

const DICTIONARY = "BESTIARY_DICTIONARY";
/** Blocks whose CLIP has learned a dictionary. */
const TEACHERS = new Set(["BestiaryLoadDictionary", "BestiaryApplyDictionary", "BestiaryTrainParts"]);
/** Blocks whose value is that of their one widget. */
const NUMBERS = /^Primitive/;

/**
 * The dictionaries behind a node's inputs, each name once; the nearest come first. One of a file is {file, called}, a merged one
 * {merge: [one, other], called}.
 */
export function upstreamDictionaries(node) {
  const found = new Map();
  for (const entry of everyCarried(node).filter(Boolean)) {
    if (!found.has(entry.called)) found.set(entry.called, entry);
  }
  return [...found.values()];
}

/** Whether a node can also name parts of a dictionary that only the graph's run knows, such as one that is trained there. */
export function hasUnknownDictionary(node) {
  return everyCarried(node).includes(null);
}

function everyCarried(node) {
  return inputsOf(node).flatMap(({ type, slot }) => carried(node, slot, type, new Set()));
}

function inputsOf(node) {
  return (node.inputs ?? []).map(({ name, type }, slot) => ({ name, type, slot }));
}

const kindOf = (node) => node.comfyClass ?? node.type;

/** Dictionaries that come through an input, null for one not known yet: all that a CLIP knows, or the one of a dictionary's own socket. */
function carried(node, slot, type, seen) {
  const source = type === "CLIP" || type === DICTIONARY ? sourceOf(node, slot) : null;
  if (!source) return [];
  if (type === DICTIONARY) return [dictionaryOf(source, seen)];
  if (seen.has(source)) return [];
  const further = new Set(seen).add(source);
  const own = TEACHERS.has(kindOf(source)) ? [dictionaryOf(source, seen)] : [];
  const before = inputsOf(source).filter((input) => input.type === "CLIP").flatMap((input) => carried(source, input.slot, "CLIP", further));
  return [...own, ...before];
}

/** The dictionary that a node gives; null where only the graph's run can tell. */
function dictionaryOf(node, seen) {
  if (seen.has(node)) return null;
  const further = new Set(seen).add(node);
  const name = `${widgetValue(node, "name") ?? ""}`.trim();
  if (kindOf(node) === "BestiaryLoadDictionary") {
    const file = widgetValue(node, "file");
    return file ? { file: `${file}`, called: name || nameOfFile(`${file}`) } : null;
  }
  const given = inputsOf(node).filter(({ type }) => type === DICTIONARY);
  const inputs = given.map(({ slot }) => sourceOf(node, slot)).map((source) => source && dictionaryOf(source, further));
  if (kindOf(node) === "BestiaryMergeDictionaries") return merged(inputs, name);
  if (!inputs[0]) return null;
  return kindOf(node) === "BestiaryApplyDictionary" && name ? { ...inputs[0], called: name } : inputs[0];
}

function merged([first, second], name) {
  // numbers of the second depend on the first
  if (!first || !second) return first ? { ...first, called: name || first.called } : null;
  const joined = first.called === second.called ? first.called : `${first.called}_${second.called}`;
  return { merge: [first, second], called: name || joined };
}

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

/** The same with the block on which it is drawn: {node, widget}; no widget where there is no such field. */
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

/** Early Vue nodes (1.27) keep showing an old text: there the box is told as if it had been typed. */
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
