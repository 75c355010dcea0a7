/** What the texts of spectrum blocks may name, and what in them is wrong. */

import { isFed } from "../host/links.mjs";
import { findWidget, setWidget } from "../host/widgets.mjs";
import { nearest } from "../parts/dictionaries.mjs";
import { linkedDictionaries } from "../parts/linked.mjs";
import { findMentions } from "../parts/mentions.mjs";
import { resolveMention } from "../parts/picks.mjs";
import { linkedSpectra } from "./spectra.mjs";
import { PRESETS, readPresets, readStages } from "./stages.mjs";

/** Blocks with staged prompts, and the fields that hold them: each side's text, then its lines. */
export const STAGED_FIELDS = {
  BestiarySpectrumPrompt: ["text", "negative_text", "stage_texts", "negative_stage_texts"],
  BestiaryStageText: ["text", "lines"],
};
/** The text whose first spectrum says how many stages there are. */
const SIDES = { stage_texts: "text", negative_stage_texts: "negative_text", lines: "text" };

/** What a field of a node may name; see suggest.mjs. */
export function stagedChoices(node, name) {
  const linked = linkedSpectra(node);
  const value = (field) => `${findWidget(node, field)?.value ?? ""}`;
  const first = linked.firstNamed(value(SIDES[name] ?? name));
  const count = first?.stages ?? Number(findWidget(node, "stages")?.value ?? 10);
  const typed = value("presets").trim() ? readPresets(value("presets"), count) : null;
  const presets = typed ?? first?.presets ?? PRESETS;
  return {
    spectra: linked.all,
    find: (wanted) => linked.find(wanted),
    countOf: (spectrum) => spectrum?.stages ?? count,
    presetsOf: () => presets,
  };
}

/** What is wrong with a mention of a staged prompt, if anything; `staged` as in suggest.mjs, and find(name) a spectrum or null. */
function resolveStaged(mention, set, staged) {
  if (mention.fault) return { fault: mention.fault, nearest: null };
  const spectrum = mention.spectrum === undefined ? null : staged.find(mention.spectrum);
  if (mention.spectrum !== undefined && !spectrum) {
    const [close] = nearest(mention.spectrum, staged.spectra.map(({ called }) => called));
    return staged.spectra.length ? { fault: "unknownSpectrum", wrong: mention.spectrum, nearest: close ?? null } : {};
  }
  if (mention.stages && !readStages(mention.stages, staged.countOf(spectrum), staged.presetsOf(spectrum))) {
    const [close] = nearest(mention.stages, Object.keys(staged.presetsOf(spectrum)));
    return { fault: "unknownStages", wrong: mention.stages, nearest: close ?? null };
  }
  return mention.spectrum === undefined && set.parts.length ? resolveMention(mention, set) : {};
}

/** Mentions of a text in a field that are malformed or name nothing, as [{mention, fault, wrong, nearest}]. */
export function stagedFaults(node, name, text) {
  const { set } = linkedDictionaries(node);
  const choices = stagedChoices(node, name);
  return findMentions(text, true)
    .map((mention) => ({ mention, ...resolveStaged(mention, set, choices) }))
    .filter(({ fault }) => fault && !(fault === "unknownStages" && isFed(node, "presets")));
}

/** Puts the nearest valid choice where a wrong one stands. */
export function repairStaged(node, name, { mention, fault, nearest }) {
  const widget = findWidget(node, name);
  const text = `${widget.value}`;
  const { start, end, nameStart, nameEnd, stagesStart, stagesEnd } = mention;
  const put = (from, to, words) => setWidget(widget, text.slice(0, from) + words + text.slice(to));
  if (fault === "unknownSpectrum") put(nameStart, nameEnd, nearest.replace(/[\\:*@|<>]/g, "\\$&"));
  else if (fault === "unknownStages") put(stagesStart, stagesEnd, nearest);
  // a part keeps its stages
  else put(start, end, stagesStart === undefined ? nearest : nearest.slice(0, -1) + text.slice(stagesStart - 1, end));
}
