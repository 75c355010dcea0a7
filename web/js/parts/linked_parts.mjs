/** The parts that come by link into a prompt, as far as the graph tells them before it runs. */

import { feedOf } from "../host/links.mjs";
import { findWidget, widgetValue } from "../host/widgets.mjs";
import { plainName } from "./mentions.mjs";
import { FieldPicks } from "./picks.mjs";

const ALL = "all";
const MOST = 64;
const PARTS = "BESTIARY_PART";
const FIELDS = { part: "part", kind: "kind", weight: "weight", blend: "blend_with", amount: "blend_amount" };

const kindOf = (node) => node.comfyClass ?? node.type;
const inputsOf = (node) => (node.inputs ?? []).map((input, slot) => ({ ...input, slot }));

/**
 * Parts of a set that a node's socket brings, each once: Map part -> {kinds, weight, source, entry}. `kinds` is null where only the
 * run knows them. `source` is the block that makes the part, `entry` {node, slot} the socket that brings nothing else, or null.
 */
export function linkedParts(node, set) {
  const found = new Map();
  for (const input of inputsOf(node).filter(({ type }) => type === PARTS)) collect(node, input.slot, set, found, MOST);
  return found;
}

function collect(node, slot, set, found, left) {
  const source = left > 0 ? feedOf(node, slot) : null;
  if (!source?.node || source.widget) return;
  const { node: maker } = source;
  if (kindOf(maker) === "BestiaryCombineParts") {
    for (const input of inputsOf(maker).filter(({ type }) => type === PARTS)) collect(maker, input.slot, set, found, left - 1);
    return;
  }
  const parts = madeBy(maker, set);
  const entry = parts.length === 1 ? { node, slot } : null;
  for (const { part, kinds, weight } of parts) if (!found.has(part)) found.set(part, { kinds, weight, source: maker, entry });
}

/** The parts that a block makes, kinds null where its run draws or mixes them. */
function madeBy(maker, set) {
  const name = `${widgetValue(maker, "part") ?? ""}`;
  const weight = Number(widgetValue(maker, "weight") ?? 1);
  if (kindOf(maker) === "BestiaryPart") {
    const picks = [...fieldPicks(maker).read(set).picks.values()];
    if (picks.length) return picks;
  }
  if (kindOf(maker) === "BestiaryRandomKind" && plainName(name) === ALL) {
    const drawn = set.parts.filter((part) => !part.background && part.kinds.length);
    return drawn.map((part) => ({ part, kinds: null, weight }));
  }
  const part = set.named(name);
  return part ? [{ part, kinds: null, weight }] : [];
}

function fieldPicks(node) {
  return new FieldPicks(() => Object.fromEntries(Object.entries(FIELDS).map(([key, name]) => [key, findWidget(node, name)])));
}

/** Whether the block itself can be given other kinds, or its link be taken away, so that one source is left. */
export function canReplace({ source, entry }) {
  return kindOf(source) === "BestiaryPart" || entry !== null;
}

/** Puts kinds where a linked part comes from: into the fields of its block. False where it has none; then its link is taken away. */
export function replaceLinked({ source, entry, weight }, set, part, kinds) {
  if (kindOf(source) === "BestiaryPart") {
    fieldPicks(source).write(set, part, { part, kinds, weight });
    return true;
  }
  entry?.node.disconnectInput(entry.slot);
  return false;
}

/** Lets a block's title follow what is picked on it, as long as nobody gave it another one; `titled` is the one it had. */
export function followTitle(node, title, titled) {
  const own = node.constructor.title ?? node.title;
  const before = plainName(`${node.title ?? ""}`);
  if (![own, titled, title].some((one) => one && plainName(one) === before)) return;
  const wanted = title || own;
  if (node.title !== wanted) node.title = wanted;
}
