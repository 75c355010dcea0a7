/**
 * The prompt grammar in the browser: <part:kind>, <dictionary.part:17*0.6+18*0.4>, ComfyUI's weights around them; in staged prompts
 * also <spectrum*0.7@layout|a dog> and <part:kind@1-3>.
 *
 * It says the same as concepts/part_prompt/part_mention.py and concepts/spectrum/stage_mention.py, but never throws: what is malformed
 * comes back as a fault with its place.
 */

const NUMBER = /^\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*$/;
const WEIGHT_AFTER = /^\s*:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)/;
const BRACKET_FACTOR = 1.1;
/** What other programs write into prompts to load files. */
const FOREIGN = /^(lora|lyco|locon|loha|lokr|hypernet|hypernetwork)$/i;

/** The form in which names are compared: case, hyphens, underscores and runs of spaces make no difference. */
export function plainName(text) {
  return folded(text.replace(/[-_\s]+/g, " ").trim());
}

/** The entry whose name is spelt as typed, else the first whose name has the same plain form; undefined where there is none. */
export function sameNamed(typed, entries, nameOf = (entry) => entry) {
  const [name, plain] = [typed.trim(), plainName(typed)];
  return entries.find((entry) => nameOf(entry).trim() === name) ?? entries.find((entry) => plainName(nameOf(entry)) === plain);
}

/** Lower case as Python's casefold has it: "Straße" and "STRASSE" are alike. */
function folded(text) {
  if (!/[^\0-\x7f]/.test(text)) return text.toLowerCase();
  return Array.from(text, (letter) => (letter === "ı" ? letter : letter.toUpperCase().toLowerCase())).join("");
}

/** Place of the next character of `wanted` that no backslash makes plain, else the length of the text. */
export function nextPlain(text, wanted, start = 0) {
  for (let place = start; place < text.length; place += 1) {
    if (text[place] === "\\") place += 1;
    else if (wanted.includes(text[place])) return place;
  }
  return text.length;
}

/** Whether what stands before a colon is a tag of other programs, such as <lora:name:0.8>. */
export function isForeign(target) {
  return FOREIGN.test(unescaped(target).trim());
}

/** A name without the backslashes that make characters plain. */
export function unescaped(text) {
  return text.replace(/\\([^])/g, "$1");
}

/** A factor or weight as the grammar reads it: six decimal places at most, no exponent. */
export function writtenNumber(value) {
  const text = value.toFixed(6).replace(/\.?0+$/, "");
  return text === "-0" ? "0" : text;
}

/** `target` and kinds [{written, factor}] as a mention, in brackets where it has a weight. */
export function writtenMention(target, kinds, weight = 1) {
  const mention = `<${target}:${writtenKinds(kinds)}>`;
  return weight === 1 ? mention : `(${mention}:${writtenNumber(weight)})`;
}

/** What stands behind the colon: "cardinal" or "cardinal*0.6+17*0.4". */
export function writtenKinds(kinds) {
  if (kinds.length === 1 && kinds[0].factor === 1) return kinds[0].written;
  return kinds.map((kind) => `${kind.written}*${writtenNumber(kind.factor)}`).join("+");
}

/**
 * Every mention of a text, in order: {start, end, target, kinds: [{text, factor}], weight, outerStart, outerEnd}; a malformed
 * one has `fault`, the name of a message, instead of kinds. `outer...` includes brackets that belong to the mention alone. In
 * staged prompts a mention may have `stages`, as typed between stagesStart and stagesEnd, and `spectrum`, a name, instead of target
 * and kinds.
 */
export function findMentions(text, staged = false) {
  const found = [];
  let place = 0;
  while (place < text.length) {
    const mention = text[place] === "<" ? (staged ? readStaged(text, place) : readMention(text, place, false)) : null;
    if (mention) {
      found.push({ ...mention, ...outerWeight(text, mention.start, mention.end) });
      place = mention.end;
    } else {
      place += text[place] === "\\" ? 2 : 1;
    }
  }
  return found;
}

/** A mention of a spectrum, or of a part with stages. */
function readStaged(text, start) {
  const close = nextPlain(text, "<>", start + 1);
  const inside = text.slice(start + 1, close);
  // "a < b" is text; the words after a bar may contain colons
  const named = nextPlain(inside, "@|");
  if (text[close] !== ">" || nextPlain(inside.slice(0, named), ":") < named) return readMention(text, start, true);
  if (!inside.slice(0, 1).trim()) return null;
  const place = { start, end: close + 1 };
  const written = inside.slice(0, named);
  let star = -1;
  for (let at = nextPlain(written, "*"); at < written.length; at = nextPlain(written, "*", at + 1)) star = at;
  const name = star < 0 ? written : written.slice(0, star);
  if (!name.trim()) return { ...place, target: "", fault: "noName" };
  const spectrum = unescaped(name).trim();
  if (star >= 0 && !NUMBER.test(written.slice(star + 1))) return { ...place, target: spectrum, fault: "badStrength" };
  const strength = star < 0 ? 1 : Number(written.slice(star + 1));
  return { ...place, target: spectrum, spectrum, nameStart: start + 1, nameEnd: start + 1 + name.length, strength, ...readAt(inside.slice(named), start + 1 + named) };
}

/** Stages and words out of "@stages|words"; places count from `start`. */
function readAt(text, start) {
  if (!text) return {};
  const bar = nextPlain(text, "|");
  const stages = unescaped(text.slice(1, bar)).trim();
  return stages ? { stages, stagesStart: start + 1, stagesEnd: start + bar, otherwise: unescaped(text.slice(bar + 1)).trim() } : { fault: "noStages" };
}

function readMention(text, start, staged) {
  const close = nextPlain(text, "<>", start + 1);
  const closed = text[close] === ">";
  const inside = text.slice(start + 1, close);
  const colon = nextPlain(inside, ":");
  const hasColon = colon < inside.length;
  // "a < b" and "<>" are text, "< head : 17 >" is a mention with spaces
  if (!inside.slice(0, 1).trim() && !(closed && hasColon)) return null;
  const target = inside.slice(0, colon).trim();
  const place = { start, end: closed ? close + 1 : close, target };
  if (!closed) return { ...place, fault: "unclosed" };
  if (!hasColon) return { ...place, fault: "noColon" };
  if (!target) return { ...place, fault: "noPart" };
  const written = inside.slice(colon + 1);
  if (!written.trim()) return { ...place, fault: "noKind" };
  const at = nextPlain(written, "@");
  if (at < written.length && !staged) return { ...place, fault: "stages" };
  const kindsStart = start + colon + 2;
  const kinds = readKinds(written.slice(0, at));
  const fault = kinds.fault && isForeign(target) ? { fault: "foreign" } : {};
  // a fault of the stages comes first
  return { ...place, kindsStart, ...kinds, ...fault, ...readAt(written.slice(at), kindsStart + at) };
}

/** Kinds and factors from what stands behind the colon. */
export function readKinds(text) {
  const terms = [];
  for (let begin = 0; begin <= text.length; ) {
    let end = nextPlain(text, "+", begin);
    // the sign of a factor, as in "*+0.5", separates nothing
    while (end < text.length && text.slice(begin, end).trimEnd().endsWith("*")) end = nextPlain(text, "+", end + 1);
    terms.push(readTerm(text.slice(begin, end)));
    begin = end + 1;
  }
  const fault = terms.find((term) => term.fault)?.fault;
  if (fault) return { fault };
  if (terms.length > 1 && terms.some((term) => term.factor === null)) return { fault: "noFactor" };
  return { kinds: terms.map(({ text: kind, factor }) => ({ text: kind, factor: factor ?? 1 })) };
}

function readTerm(term) {
  let star = -1;
  // the last one: "a*b*0.5" is half of a kind called a*b
  for (let place = nextPlain(term, "*"); place < term.length; place = nextPlain(term, "*", place + 1)) star = place;
  const kind = (star < 0 ? term : term.slice(0, star)).trim();
  if (!kind) return { fault: "noKind" };
  if (star < 0) return { text: unescaped(kind), factor: null };
  const factor = term.slice(star + 1);
  return NUMBER.test(factor) ? { text: unescaped(kind), factor: Number(factor) } : { fault: "badFactor" };
}

function outerWeight(text, start, end) {
  const alone = { weight: 1, outerStart: start, outerEnd: end };
  if (text[start - 1] !== "(" || text[start - 2] === "\\") return alone;
  const weighed = WEIGHT_AFTER.exec(text.slice(end));
  if (weighed) return { weight: Number(weighed[1]), outerStart: start - 1, outerEnd: end + weighed[0].length };
  return text[end] === ")" ? { weight: BRACKET_FACTOR, outerStart: start - 1, outerEnd: end + 1 } : alone;
}
