/**
 * What is picked, read from where people can also type it and written back there.
 *
 * A pick is {part, kinds: [{kind, factor}], weight}. `TextPicks` keeps picks as mentions in a prompt, `FieldPicks` in the fields
 * of a block for one part. Both have read(set) -> {picks: Map part -> pick, faults} and write(set, part, pick or null).
 */

import { setWidget } from "../host/widgets.mjs";
import { nearest } from "./dictionaries.mjs";
import { findMentions, isForeign, readKinds, writtenKinds, writtenMention } from "./mentions.mjs";

const PLACE = "{parts}";

/** What a mention means: {part, kinds} or {fault, nearest: a mention's text or null}. */
export function resolveMention(mention, set) {
  if (mention.fault) return { fault: mention.fault, nearest: null };
  const part = set.part(mention.target);
  if (!part && isForeign(mention.target)) return { fault: "foreign", wrong: mention.target, nearest: null };
  if (!part) {
    const [close] = nearest(mention.target, set.parts.map((one) => set.target(one)));
    return { fault: "unknownPart", wrong: mention.target, nearest: close ? swapTarget(mention, close) : null };
  }
  return resolveKinds(part, mention.kinds, (kinds) => swapKinds(mention, kinds));
}

function resolveKinds(part, kinds, suggest) {
  const resolved = kinds.map(({ text, factor }) => ({ kind: part.find(text), factor, text }));
  const wrong = resolved.find((entry) => !entry.kind);
  if (!wrong) return { part, kinds: resolved.map(({ kind, factor }) => ({ kind, factor })) };
  const close = nearestKind(part, wrong.text);
  const right = resolved.map(({ kind, factor }) => ({ written: (kind ?? close)?.written ?? "", factor }));
  return { part, fault: "unknownKind", wrong: wrong.text, nearest: close ? suggest(writtenKinds(right)) : null };
}

/** The kind whose name, or number where a number was typed, is nearest. */
export function nearestKind(part, text) {
  const number = Number(text);
  if (text.trim() && Number.isFinite(number)) {
    const off = (kind) => Math.abs(kind.number - number);
    return part.kinds.reduce((best, kind) => (!best || off(kind) < off(best) ? kind : best), null);
  }
  const named = part.kinds.filter((kind) => kind.name !== null);
  const [close] = nearest(text, named.map((kind) => kind.name));
  return named.find((kind) => kind.name === close) ?? part.kinds[0] ?? null;
}

function swapTarget(mention, target) {
  const kinds = mention.kinds.map(({ text, factor }) => ({ written: escapedKind(text), factor }));
  return `<${target}:${writtenKinds(kinds)}>`;
}

function swapKinds(mention, kinds) {
  return `<${mention.target}:${kinds}>`;
}

function escapedKind(name) {
  return name.replace(/[\\:*+@<>]/g, "\\$&");
}

const writable = (kinds) => kinds.map(({ kind, factor }) => ({ written: kind.written, factor }));

/** Picks as mentions in a prompt; `field()` gives the widget that holds it. */
export class TextPicks {
  constructor(field) {
    this.field = field;
  }

  get widget() {
    return this.field();
  }

  get text() {
    return `${this.widget.value ?? ""}`;
  }

  read(set) {
    const picks = new Map();
    const faults = [];
    for (const mention of findMentions(this.text)) {
      const { part, kinds, fault, ...rest } = resolveMention(mention, set);
      if (fault) faults.push({ mention, fault, ...rest });
      // of two mentions of a part the picker moves the first
      else if (picks.has(part)) faults.push({ mention, fault: "repeated", wrong: part.name, part, nearest: null });
      else picks.set(part, { part, kinds, weight: mention.weight, mention });
    }
    return { picks, faults };
  }

  write(set, part, pick) {
    const { picks } = this.read(set);
    const held = picks.get(part)?.mention;
    const text = this.text;
    const written = pick && writtenMention(set.target(part), writable(pick.kinds), pick.weight);
    if (held) setWidget(this.widget, replaced(text, held.outerStart, held.outerEnd, written));
    else if (written) setWidget(this.widget, inserted(text, written, place(text, set, picks, part)));
  }

  /** Puts the nearest valid mention where a wrong one stands. */
  repair({ mention, nearest: right }) {
    setWidget(this.widget, this.text.slice(0, mention.start) + right + this.text.slice(mention.end));
  }
}

function replaced(text, start, end, written) {
  if (written) return text.slice(0, start) + written + text.slice(end);
  // the space that stood between it and its neighbour goes too
  const before = text.slice(0, start);
  const after = text.slice(end);
  return /\s$/.test(before) && /^(\s|$)/.test(after) ? before.slice(0, -1) + after : before + after;
}

function inserted(text, written, at) {
  const before = text.slice(0, at);
  const after = text.slice(at);
  const spaceBefore = before && !/[\s(]$/.test(before) ? " " : "";
  const spaceAfter = after && !/^[\s,.;!?)]/.test(after) ? " " : "";
  return before + spaceBefore + written + spaceAfter + after;
}

/** Where a new mention goes: among the others in the order of the dictionary's parts, else where linked parts go, else last. */
function place(text, set, picks, part) {
  const order = new Map(set.parts.map((one, number) => [one, number]));
  const held = [...picks.values()].sort((one, other) => one.mention.start - other.mention.start);
  const before = held.filter((pick) => order.get(pick.part) < order.get(part)).pop();
  if (before) return before.mention.outerEnd;
  if (held.length) return held[0].mention.outerStart;
  const linked = text.indexOf(PLACE);
  return linked < 0 ? text.trimEnd().length : linked;
}

/** The pick of a block with fields of its own for part, kind, weight and a second kind; `fields()` gives their widgets. */
export class FieldPicks {
  constructor(fields) {
    this.fields = fields;
  }

  get widgets() {
    return this.fields();
  }

  get text() {
    const { part, kind } = this.widgets;
    return `<${part.value}:${kind.value}>`;
  }

  read(set) {
    const { part: partField, kind: kindField, weight, blend, amount } = this.widgets;
    const part = set.named(`${partField.value}`);
    const typed = `${kindField.value ?? ""}`;
    if (!typed.trim()) return { picks: new Map(), faults: [] };
    if (!part) {
      const [close] = nearest(`${partField.value}`, set.parts.map((one) => one.typed));
      return { picks: new Map(), faults: [{ fault: "unknownPart", wrong: `${partField.value}`, field: partField, nearest: close }] };
    }
    const kinds = [...fieldKinds(part, typed), ...secondKind(part, `${blend?.value ?? ""}`)];
    const wrong = kinds.find((entry) => !entry.kind);
    if (wrong) {
      const close = nearestKind(part, wrong.text);
      const field = kinds.indexOf(wrong) && blend?.value ? blend : kindField;
      return { picks: new Map(), faults: [{ fault: "unknownKind", wrong: wrong.text, field, nearest: typedKind(close) }] };
    }
    const share = kinds.length > 1 && `${blend?.value ?? ""}`.trim() ? Number(amount.value) : null;
    if (share !== null) kinds.forEach((entry, at) => (entry.factor *= at === kinds.length - 1 ? share : 1 - share));
    return { picks: new Map([[part, { part, kinds, weight: Number(weight.value) }]]), faults: [] };
  }

  write(_set, part, pick) {
    const { part: partField, kind, weight, blend, amount } = this.widgets;
    if (!pick) {
      setWidget(kind, "");
      setWidget(blend, "");
      return;
    }
    setWidget(partField, part.typed);
    setWidget(weight, pick.weight);
    const two = pick.kinds.length === 2 && Math.abs(pick.kinds[0].factor + pick.kinds[1].factor - 1) < 1e-6;
    if (pick.kinds.length === 1 || two) setWidget(kind, typedKind(pick.kinds[0].kind));
    else setWidget(kind, writtenKinds(writable(pick.kinds)));
    setWidget(blend, two ? typedKind(pick.kinds[1].kind) : "");
    if (two) setWidget(amount, Math.round(pick.kinds[1].factor * 1e6) / 1e6);
  }

  repair({ field, nearest: right }) {
    setWidget(field, right);
  }
}

/** A kind as a field of its own takes it: its name as it is, or its number. */
function typedKind(kind) {
  return kind.written === `${kind.number}` ? kind.written : kind.name;
}

function fieldKinds(part, text) {
  const whole = part.find(text);
  if (whole) return [{ kind: whole, factor: 1, text }];
  const { kinds } = text.includes("*") ? readKinds(text) : { kinds: [{ text: text.trim(), factor: 1 }] };
  return (kinds ?? [{ text: text.trim(), factor: 1 }]).map((entry) => ({ ...entry, kind: part.find(entry.text) }));
}

function secondKind(part, text) {
  return text.trim() ? [{ kind: part.find(text), factor: 1, text: text.trim() }] : [];
}
