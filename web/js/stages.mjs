/** Stages as people write them: "layout, 3, 5-7, 0%-30%"; the same rules as concepts/spectrum/attribute_presets.py. */

import { plainName } from "./mentions.mjs";

/** Attribute -> ranges as shares of the way from noise (0) to picture (1). */
export const PRESETS = {
  layout: [[0, 0.1]],
  content: [[0.2, 1]],
  material: [[0.5, 1]],
  style: [[0.7, 1]],
};

/** Stages, from 0, whose middle lies in one of the ranges. */
export function stagesInRanges(ranges, count) {
  const stages = Array.from({ length: count }, (_, stage) => stage);
  return stages.filter((stage) => ranges.some(([start, end]) => start <= (stage + 0.5) / count && (stage + 0.5) / count <= end));
}

/** Set of the stages, from 0, that a text selects; null where it cannot be read. */
export function readStages(text, count) {
  const chosen = new Set();
  if (!text.trim()) return chosen;
  for (const item of text.split(",")) {
    const stages = readItem(item.trim(), count);
    if (!stages) return null;
    for (const stage of stages) chosen.add(stage);
  }
  return chosen;
}

function readItem(item, count) {
  const preset = Object.keys(PRESETS).find((name) => plainName(name) === plainName(item));
  if (preset) return stagesInRanges(PRESETS[preset], count);
  const percents = /^(\d{1,3}(?:\.\d+)?)\s*%?\s*-\s*(\d{1,3}(?:\.\d+)?)\s*%$/.exec(item);
  if (percents) {
    const [start, end] = [Number(percents[1]) / 100, Number(percents[2]) / 100];
    return start < end && end <= 1 ? stagesInRanges([[start, end]], count) : null;
  }
  const numbers = /^(\d{1,4})\s*(?:-\s*(\d{1,4}))?$/.exec(item);
  if (!numbers) return null;
  const first = Number(numbers[1]);
  const last = Number(numbers[2] ?? numbers[1]);
  if (first < 1 || last < first || last > count) return null;
  return Array.from({ length: last - first + 1 }, (_, place) => first - 1 + place);
}

/** A set of stages as text: a preset's name where it is exactly that, else numbers and ranges. */
export function writtenStages(chosen, count) {
  const stages = [...chosen].sort((one, other) => one - other);
  const same = (other) => other.length === stages.length && other.every((stage, place) => stage === stages[place]);
  const preset = Object.keys(PRESETS).find((name) => stages.length > 0 && same(stagesInRanges(PRESETS[name], count)));
  if (preset) return preset;
  const runs = [];
  for (const stage of stages) {
    if (runs.length && runs.at(-1)[1] === stage - 1) runs.at(-1)[1] = stage;
    else runs.push([stage, stage]);
  }
  return runs.map(([first, last]) => (first === last ? `${first + 1}` : `${first + 1}-${last + 1}`)).join(", ");
}

/** Which of several selections has each stage: the one with fewer stages, the first of equals; -1 for nobody. */
export function winners(selections, count) {
  return Array.from({ length: count }, (_, stage) => {
    const takers = selections.map((chosen, place) => ({ chosen, place })).filter(({ chosen }) => chosen?.has(stage));
    takers.sort((one, other) => one.chosen.size - other.chosen.size || one.place - other.place);
    return takers[0]?.place ?? -1;
  });
}
