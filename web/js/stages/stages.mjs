/** Stages as people write them, "layout, 3, 5-7, 0%-30%", and who has which; the same rules as concepts/spectrum/stage_claims.py. */

import { sameNamed } from "../parts/mentions.mjs";

/** Attribute -> ranges as shares of the way from noise (0) to picture (1). */
export const PRESETS = {
  layout: [[0, 0.1]],
  content: [[0.2, 1]],
  material: [[0.5, 1]],
  style: [[0.7, 1]],
};

const TIMESTEPS = 1000;
const ROUNDING = 1e-9;
const LINE_ENDS = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;
const PERCENTS = /^(\d{1,3}(?:\.\d+)?)\s*%?\s*-\s*(\d{1,3}(?:\.\d+)?)\s*%$/;
const NUMBERS = /^(\d{1,4})\s*(?:-\s*(\d{1,4}))?$/;

/** Where stages begin and end as shares of the way, `count` + 1 of them: at whole timesteps, as concepts/spectrum/stage_bounds.py has them. */
function edges(count) {
  return Array.from({ length: count + 1 }, (_, stage) => 1 - Math.ceil((TIMESTEPS * (count - stage)) / count) / TIMESTEPS);
}

/** Stages, from 0, whose middle lies in one of the ranges. */
export function stagesInRanges(ranges, count) {
  const shares = edges(count);
  const middles = Array.from({ length: count }, (_, stage) => (shares[stage] + shares[stage + 1]) / 2);
  return middles.flatMap((middle, stage) => (ranges.some(([start, end]) => start - ROUNDING <= middle && middle <= end + ROUNDING) ? [stage] : []));
}

/** Attributes as typed, one line each such as "layout: 0%-10%"; the usual ones for an empty text, null where it cannot be read. */
export function readPresets(text, count) {
  if (!text.trim()) return PRESETS;
  // whatever an attribute is called, "constructor" too
  const found = Object.create(null);
  for (const line of text.split(LINE_ENDS)) {
    const plain = line.split("#")[0].trim();
    if (!plain) continue;
    const colon = plain.indexOf(":");
    const name = plain.slice(0, Math.max(0, colon)).trim();
    const ranges = plain.slice(colon + 1).split(",").map((item) => readRange(item.trim(), count));
    if (!name || name in found || ranges.includes(null)) return null;
    found[name] = ranges;
  }
  return Object.keys(found).length ? found : null;
}

function readRange(item, count) {
  const percents = PERCENTS.exec(item);
  if (percents) {
    const [start, end] = [Number(percents[1]) / 100, Number(percents[2]) / 100];
    return start < end && end <= 1 ? [start, end] : null;
  }
  const stages = readItem(item, count, {})?.stages;
  return stages ? [edges(count)[stages[0]], edges(count)[stages.at(-1) + 1]] : null;
}

/** Items of a selection as [{stages, exact}], `exact` where typed as numbers or percents; null where one cannot be read. */
export function readClaims(text, count, presets = PRESETS) {
  const claims = text.split(",").map((item) => readItem(item.trim(), count, presets));
  return claims.includes(null) ? null : claims;
}

/** Set of the stages, from 0, that a text selects; null where it cannot be read. */
export function readStages(text, count, presets = PRESETS) {
  if (!text.trim()) return new Set();
  const claims = readClaims(text, count, presets);
  return claims && new Set(claims.flatMap(({ stages }) => stages));
}

function readItem(item, count, presets) {
  const preset = sameNamed(item, Object.keys(presets));
  if (preset !== undefined) return { stages: stagesInRanges(presets[preset], count), exact: false };
  const percents = PERCENTS.exec(item);
  if (percents) {
    const [start, end] = [Number(percents[1]) / 100, Number(percents[2]) / 100];
    return start < end && end <= 1 ? { stages: stagesInRanges([[start, end]], count), exact: true } : null;
  }
  const numbers = NUMBERS.exec(item);
  if (!numbers) return null;
  const first = Number(numbers[1]);
  const last = Number(numbers[2] ?? numbers[1]);
  if (first < 1 || last < first || last > count) return null;
  return { stages: Array.from({ length: last - first + 1 }, (_, place) => first - 1 + place), exact: true };
}

/** A set of stages as text: an attribute's name where it is exactly that, else numbers and ranges. */
export function writtenStages(chosen, count, presets = PRESETS) {
  const stages = [...chosen].sort((one, other) => one - other);
  const same = (other) => other.length === stages.length && other.every((stage, place) => stage === stages[place]);
  const preset = Object.keys(presets).find((name) => stages.length > 0 && same(stagesInRanges(presets[name], count)));
  if (preset) return preset;
  const runs = [];
  for (const stage of stages) {
    if (runs.length && runs.at(-1)[1] === stage - 1) runs.at(-1)[1] = stage;
    else runs.push([stage, stage]);
  }
  return runs.map(([first, last]) => (first === last ? `${first + 1}` : `${first + 1}-${last + 1}`)).join(", ");
}

/**
 * Which of several owners has each stage, -1 for nobody; `claims` has a list of claims per owner, or null. Numbers and percents go
 * before attributes, narrow attributes before wide ones, of equals the later. `double` are stages that two claim by number.
 */
export function assignStages(claims, count) {
  const owners = Array(count).fill(-1);
  const all = claims.flatMap((own, owner) => (own ?? []).map((claim) => ({ ...claim, owner })));
  const loose = all.filter(({ exact }) => !exact).sort((one, other) => other.stages.length - one.stages.length);
  for (const { stages, owner } of loose) for (const stage of stages) owners[stage] = owner;
  const taken = new Map();
  const double = new Set();
  for (const { stages, owner } of all.filter(({ exact }) => exact)) {
    for (const stage of stages) {
      if (taken.has(stage) && taken.get(stage) !== owner) double.add(stage);
      taken.set(stage, owner);
      owners[stage] = owner;
    }
  }
  return { owners, double: [...double].sort((one, other) => one - other) };
}

/**
 * Lines such as "layout: a meadow" as [{start, end, selection, words, claims, empty}], places in the text; `claims` is null where the
 * stages cannot be read, `empty` says that no stage lies in them.
 */
export function readLines(text, count, presets = PRESETS) {
  const lines = [];
  let start = 0;
  for (const line of text.split(LINE_ENDS)) {
    const end = start + line.length;
    const colon = line.indexOf(":");
    if (line.trim()) {
      const selection = colon < 0 ? "" : line.slice(0, colon);
      const words = line.slice(colon + 1).trim();
      const claims = colon < 0 ? null : readClaims(selection, count, presets);
      const empty = claims !== null && claims.every(({ stages }) => !stages.length);
      lines.push({ start, end, colon: colon < 0 ? -1 : start + colon, selection, words, claims, empty });
    }
    start = end + (text.startsWith("\r\n", end) ? 2 : 1);
  }
  return lines;
}
