/** Weights of words and mentions in a prompt: whole mentions are weighed, never pieces of one. */

import { findMentions, writtenNumber } from "./mentions.mjs";

const MOST = 10;
const WEIGHT_AFTER = /^\s*:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)/;

/**
 * What a text becomes when the selection from `start` to `end` is weighed by `step` more: {from, to, insert, selected: [start, end]}, or
 * null where no mention is touched.
 */
export function weighed(text, start, end, step, staged = false) {
  const touched = findMentions(text, staged).filter((one) => !one.fault && one.outerStart <= end && start <= one.outerEnd);
  // beside a mention as in it; between two that stand together only the first
  const chosen = start === end ? touched.slice(0, 1) : touched.filter((one) => one.outerStart < end && start < one.outerEnd);
  if (!chosen.length) return null;
  const [first, last] = [chosen[0], chosen.at(-1)];
  if (chosen.length === 1 && start >= first.outerStart && end <= first.outerEnd) {
    return put(first.outerStart, first.outerEnd, text.slice(first.start, first.end), first.weight + step);
  }
  const [from, to] = [Math.min(start, first.outerStart), Math.max(end, last.outerEnd)];
  const after = WEIGHT_AFTER.exec(text.slice(to));
  if (text[from - 1] === "(" && text[from - 2] !== "\\" && after) return put(from - 1, to + after[0].length, text.slice(from, to), Number(after[1]) + step);
  return put(from, to, text.slice(from, to), 1 + step);
}

function put(from, to, inside, weight) {
  const kept = Math.round(Math.max(0, Math.min(MOST, weight)) * 1e6) / 1e6;
  const insert = kept === 1 ? inside : `(${inside}:${writtenNumber(kept)})`;
  const lead = kept === 1 ? 0 : 1;
  return { from, to, insert, selected: [from + lead, from + lead + inside.length] };
}
