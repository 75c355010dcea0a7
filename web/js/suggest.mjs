/** What could stand where the cursor is inside a mention. */

import { nearest } from "./dictionaries.mjs";
import { nextPlain, plainName, unescaped } from "./mentions.mjs";

const MOST = 60;
const MOST_NEAREST = 5;

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
 * `insert` replaces the text from `from` to `to`.
 */
export function suggestions(text, cursor, set) {
  const start = mentionStart(text, cursor);
  if (start < 0 || !set.parts.length) return null;
  const inside = text.slice(start + 1, cursor);
  const colon = nextPlain(inside, ":");
  if (colon === inside.length) return partSuggestions(text, start + 1, cursor, inside, set);
  const part = set.part(inside.slice(0, colon).trim());
  if (!part) return null;
  return kindSuggestions(text, start + 2 + colon, cursor, part);
}

function partSuggestions(text, from, cursor, typed, set) {
  const to = endOf(text, cursor, ":<>\n");
  const options = ranked(typed, set.parts, (part) => [set.target(part), part.name]).map((part) => ({
    label: set.target(part),
    detail: `${part.kinds.length}`,
    kind: part.kinds[0] ?? null,
    insert: `${set.target(part)}${text[to] === ":" ? "" : ":"}`,
    closes: false,
  }));
  return { from, to, options };
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
