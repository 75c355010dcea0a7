/** What could stand where the cursor is inside a mention: parts and kinds, and in staged prompts spectra, attributes and stages. */

import { nearest } from "./dictionaries.mjs";
import { nextPlain, plainName, unescaped } from "./mentions.mjs";

const MOST = 60;
const MOST_NEAREST = 5;
const MOST_STAGES = 40;

/** Where an unfinished or finished mention around the cursor begins, or -1. */
export function mentionStart(text, cursor) {
  const line = text.lastIndexOf("\n", cursor - 1) + 1;
  let start = -1;
  for (let place = nextPlain(text, "<>", line); place < cursor; place = nextPlain(text, "<>", place + 1)) {
    start = text[place] === "<" ? place : -1;
  }
  // "a < b" is text
  return start >= 0 && text[start + 1] !== " " ? start : -1;
}

/**
 * Suggestions at the cursor: {from, to, options: [{label, detail, kind or null, insert, closes}]}, or null outside of mentions.
 * `insert` replaces the text from `from` to `to`. `staged` has what a staged prompt can name besides parts: spectra [{called,
 * stages}], presetsOf(spectrum or null) and countOf(spectrum or null).
 */
export function suggestions(text, cursor, set, staged = null) {
  const start = mentionStart(text, cursor);
  if (start < 0 || (!set.parts.length && !staged)) return null;
  const inside = text.slice(start + 1, cursor);
  const at = staged ? nextPlain(inside, "@") : inside.length;
  if (at < inside.length) return stageSuggestions(text, start, start + 2 + at, cursor, staged);
  const colon = nextPlain(inside, ":");
  if (colon === inside.length) return nameSuggestions(text, start + 1, cursor, inside, set, staged);
  const part = set.part(inside.slice(0, colon).trim());
  if (!part) return null;
  return kindSuggestions(text, start + 2 + colon, cursor, part);
}

/** Spectra, then parts. */
function nameSuggestions(text, from, cursor, typed, set, staged) {
  // behind a strength or words there is nothing to suggest
  if (staged && nextPlain(typed, "*|") < typed.length) return null;
  const to = endOf(text, cursor, staged ? ":<>@*|\n" : ":<>\n");
  const choices = [...(staged?.spectra ?? []).map((spectrum) => ({ spectrum })), ...set.parts.map((part) => ({ part }))];
  const namesOf = ({ spectrum, part }) => (spectrum ? [spectrum.called] : [set.target(part), part.name]);
  const options = ranked(typed, choices, namesOf).map(({ spectrum, part }) => (spectrum ? spectrumOption(spectrum, text[to]) : partOption(part, text[to], set)));
  return { from, to, options };
}

function partOption(part, next, set) {
  return { label: set.target(part), detail: `${part.kinds.length}`, kind: part.kinds[0] ?? null, insert: `${set.target(part)}${next === ":" ? "" : ":"}`, closes: false };
}

function spectrumOption({ called, stages }, next) {
  const written = called.replace(/[\\:*@|<>]/g, "\\$&");
  return { label: called, detail: stages ? `@ ${stages}` : "@", kind: null, insert: `${written}${next && ">@*|".includes(next) ? "" : ">"}`, closes: next === ">" };
}

/** Attributes, then single stages; several may stand behind each other with commas. */
function stageSuggestions(text, start, begin, cursor, staged) {
  if (nextPlain(text.slice(begin, cursor), "|") < cursor - begin) return null;
  const from = begin + text.slice(begin, cursor).lastIndexOf(",") + 1;
  const lead = /^\s*/.exec(text.slice(from, cursor))[0].length;
  const typed = text.slice(from + lead, cursor);
  const head = text.slice(start + 1, begin - 1);
  const spectrum = nextPlain(head, ":") < head.length ? null : staged.spectra.find(({ called }) => plainName(called) === plainName(unescaped(head.split("*")[0]))) ?? null;
  const numbers = Array.from({ length: Math.min(MOST_STAGES, staged.countOf(spectrum)) }, (_, stage) => ({ name: `${stage + 1}`, ranges: null }));
  const presets = Object.entries(staged.presetsOf(spectrum)).map(([name, ranges]) => ({ name, ranges }));
  const wanted = plainName(typed);
  // a range is being typed
  if (/^\d+\s*[-%]/.test(typed)) return null;
  const fitting = [...presets, ...numbers].filter(({ name }) => plainName(name).startsWith(wanted));
  const found = fitting.length ? fitting : nearest(typed, presets.map(({ name }) => name), 3).map((name) => presets.find((one) => one.name === name));
  const to = endOf(text, cursor, ",|<>\n");
  const closed = to < text.length && ",|>".includes(text[to]);
  const options = found.map(({ name, ranges }) => ({
    label: name,
    detail: ranges ? ranges.map(([first, last]) => `${Math.round(first * 100)}–${Math.round(last * 100)} %`).join(", ") : "",
    kind: null,
    insert: `${name}${closed ? "" : ">"}`,
    closes: text[to] === ">",
  }));
  return { from: from + lead, to, options };
}

function kindSuggestions(text, begin, cursor, part) {
  let from = begin;
  for (let plus = nextPlain(text, "+", begin); plus < cursor; plus = nextPlain(text, "+", plus + 1)) from = plus + 1;
  const typed = text.slice(from, cursor);
  // behind a factor there is nothing to suggest
  if (nextPlain(typed, "*") < typed.length) return null;
  const to = endOf(text, cursor, "+*>@<\n");
  const closed = text[to] === ">" || text[to] === "+" || text[to] === "*";
  const options = ranked(unescaped(typed), part.kinds, (kind) => [kind.label, `${kind.number}`]).map((kind) => ({
    label: kind.label,
    detail: kind.name === null ? "" : `${kind.number}`,
    kind,
    insert: `${kind.written}${closed ? "" : ">"}`,
    closes: true,
  }));
  return { from, to, options };
}

/** Those whose names begin with what was typed, then those that contain it; the nearest where none does. */
function ranked(typed, choices, namesOf) {
  const wanted = plainName(typed);
  const all = choices.map((choice) => ({ choice, names: namesOf(choice).map(plainName) }));
  const begins = all.filter(({ names }) => names.some((name) => name.startsWith(wanted)));
  const holds = all.filter((entry) => !begins.includes(entry) && entry.names.some((name) => name.includes(wanted)));
  const found = [...begins, ...holds].slice(0, MOST).map(({ choice }) => choice);
  if (found.length) return found;
  const close = nearest(typed, choices.map((choice) => namesOf(choice)[0]), MOST_NEAREST);
  return close.map((name) => choices.find((choice) => namesOf(choice)[0] === name));
}

/** End of the name under the cursor: what follows it up to one of `stops`, where that is near. */
function endOf(text, cursor, stops) {
  const end = nextPlain(text, stops, cursor);
  const rest = text.slice(cursor, end);
  // a mention that is still open must not swallow the words behind it
  return end < text.length && stops.includes(text[end]) && !/[\s,]/.test(rest) && text[end] !== "<" ? end : cursor;
}
