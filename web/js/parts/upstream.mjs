/** Which dictionaries a node can name, found by walking the graph against its links. */

import { sourceOf } from "../host/links.mjs";
import { widgetValue } from "../host/widgets.mjs";
import { nameOfFile } from "./dictionaries.mjs";

const DICTIONARY = "BESTIARY_DICTIONARY";
/** Blocks whose CLIP has learned a dictionary. */
const TEACHERS = new Set(["BestiaryLoadDictionary", "BestiaryApplyDictionary", "BestiaryTrainParts"]);

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
