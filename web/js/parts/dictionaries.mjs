/** Dictionaries as the server lists them: fetched once, looked up by the names and numbers that prompts use. */

import { api } from "../../../../scripts/api.js";
import { nextPlain, plainName, sameNamed, unescaped } from "./mentions.mjs";
import { naturalOrder } from "./part_order.mjs";

const NUMBER = /^[+-]?\d{1,9}$/;
const loaded = new Map();
let listing = null;

/** One part with its kinds; `find` goes by name or number. */
export class Part {
  constructor(owner, facts) {
    const { numbers, names, written, tiles } = facts.kinds;
    this.owner = owner;
    this.number = facts.number;
    this.name = facts.name;
    this.written = facts.written;
    this.background = facts.background;
    this.kinds = numbers.map((number, place) => ({
      part: this,
      place,
      number,
      name: names[place],
      label: names[place] ?? `${number}`,
      written: written[place],
      tile: tiles[place],
    }));
    this.byNumber = new Map(this.kinds.map((kind) => [kind.number, kind]));
    const named = this.kinds.filter(({ name }) => name !== null);
    this.spelt = unshared(named, (kind) => kind.name.trim());
    this.byName = unshared(named, (kind) => plainName(kind.name));
  }

  /** What a field of its own takes for this part: its name, or its number where the name is not its own. */
  get typed() {
    return this.written === `${this.number}` ? this.written : this.name;
  }

  find(text) {
    const name = text.trim();
    if (NUMBER.test(name)) return this.byNumber.get(Number(name)) ?? null;
    return (this.spelt.has(name) ? this.spelt.get(name) : this.byName.get(plainName(name))) ?? null;
  }
}

/** Kinds by a form of their name; a form that two share stands for neither, as null. */
function unshared(kinds, formOf) {
  const found = new Map();
  for (const kind of kinds) found.set(formOf(kind), found.has(formOf(kind)) ? null : kind);
  return found;
}

/** A dictionary under the name by which prompts call it. */
export class Dictionary {
  constructor(file, called, facts) {
    this.file = file;
    this.called = called;
    this.facts = facts;
    this.backbone = facts.backbone;
    this.parts = facts.parts.map((part) => new Part(this, part));
    this.atlas = facts.atlas;
    this.atlasFault = facts.atlas_fault;
  }

  /** The part whose name is spelt so, else the first that is called so in another spelling, or null. */
  named(text) {
    return sameNamed(text, this.parts, (part) => part.name) ?? null;
  }

  find(text) {
    return this.named(text) ?? (NUMBER.test(text.trim()) ? this.parts.find((part) => part.number === Number(text)) : null) ?? null;
  }

  /** Address of a page of thumbnails. */
  page(number) {
    return api.apiURL(`/bestiary/thumbnails/${encodeURIComponent(this.file)}?page=${number}`);
  }

  /** Sets `element`'s background to the thumbnail of a kind, `edge` pixels wide; false where there is none. */
  paint(element, kind, edge) {
    if (!this.atlas || kind.tile < 0) {
      element.style.backgroundImage = "";
      return false;
    }
    const { columns, per_page: perPage } = this.atlas;
    const place = kind.tile % perPage;
    element.style.backgroundImage = `url("${this.page(Math.floor(kind.tile / perPage))}")`;
    element.style.backgroundSize = `${columns * edge}px auto`;
    element.style.backgroundPosition = `${-(place % columns) * edge}px ${-Math.floor(place / columns) * edge}px`;
    return true;
  }
}

/** Several dictionaries that one prompt may name. */
export class DictionarySet {
  constructor(dictionaries) {
    this.all = dictionaries;
    this.parts = dictionaries.flatMap((one) => naturalOrder(one.parts));
  }

  /** How a mention calls a part: with its dictionary's name where there are several. */
  target(part) {
    return this.all.length > 1 ? `${escapedTarget(part.owner.called)}.${part.written}` : part.written;
  }

  /** The part that a field of its own names, dots and all, or null. */
  named(text) {
    const found = this.all.map((one) => one.named(text)).filter(Boolean);
    return found.find((part) => part.name === text.trim()) ?? found[0] ?? this.part(text);
  }

  /** The part that a mention's target means, or null. */
  part(target) {
    const whole = unescaped(target);
    const holders = this.all.map((one) => one.find(whole)).filter(Boolean);
    if (holders.length) return holders.length === 1 ? holders[0] : null;
    for (let dot = nextPlain(target, "."); dot < target.length; dot = nextPlain(target, ".", dot + 1)) {
      const owner = sameNamed(unescaped(target.slice(0, dot)), this.all, (one) => one.called);
      if (owner) return owner.find(unescaped(target.slice(dot + 1)));
    }
    return null;
  }
}

function escapedTarget(name) {
  return name.replace(/[\\.:<>]/g, "\\$&");
}

/** Name that a file gives a dictionary, as the loader does it. */
export function nameOfFile(file) {
  const stem = file.replaceAll("\\", "/").split("/").pop().replace(/\.safetensors$/i, "").replace(/\.spectrum$/i, "");
  const strange = /[^\p{L}\p{N}_ .-]+/gu;
  const plain = stem.search(strange) < 0 ? stem : stem.replace(strange, "_").replace(/[ _]*_[ _]*/g, "_");
  return plain.replace(/^[ _.-]+|[ _.-]+$/g, "") || "dictionary";
}

/** Files that may be dictionaries: [{name, called, bytes}]. */
export function listDictionaries({ again = false } = {}) {
  if (!listing || again) listing = fetchJson("/bestiary/dictionaries").then((answer) => answer.dictionaries);
  return listing;
}

/** A dictionary by its file; a failure is an Error with the server's words, and is asked for again next time. */
export async function loadDictionary(file, called) {
  if (!loaded.has(file)) {
    const asked = fetchJson(`/bestiary/dictionary/${encodeURIComponent(file)}`);
    loaded.set(file, asked);
    asked.catch(() => loaded.delete(file));
  }
  return new Dictionary(file, called || nameOfFile(file), await loaded.get(file));
}

/** Forgets what was fetched, after files changed. */
export function forgetDictionaries() {
  loaded.clear();
  listing = null;
}

async function fetchJson(route) {
  const answer = await api.fetchApi(route);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `${answer.status} ${answer.statusText}`);
  return content;
}

const LEAST_ALIKE = 0.5;

/** The names nearest to what was typed, at most `most`, as the server proposes them (concepts/name_search.py); none that is far. */
export function nearest(typed, names, most = 1) {
  const wanted = plainName(typed);
  const plain = [...new Set(names.map(plainName))].map((name) => ({ name, like: likeness(wanted, name) }));
  const close = plain.filter(({ like }) => like >= LEAST_ALIKE);
  // of two that are as near, the one that comes later in the alphabet
  close.sort((one, other) => other.like - one.like || (one.name < other.name ? 1 : -1));
  return close.slice(0, most).map((entry) => names.find((name) => plainName(name) === entry.name));
}

/** Share of equal characters in equal order, 0 to 1: the ratio of Python's difflib.SequenceMatcher (Ratcliff and Obershelp). */
function likeness(wanted, name) {
  const [one, other] = [[...name], [...wanted]];
  const length = one.length + other.length;
  return length ? (2 * matching(one, 0, one.length, other, 0, other.length)) / length : 1;
}

function matching(one, start, end, other, from, to) {
  let [best, here, there] = [0, start, from];
  let before = new Map();
  for (let i = start; i < end; i += 1) {
    const row = new Map();
    for (let j = from; j < to; j += 1) {
      if (one[i] !== other[j]) continue;
      const run = (before.get(j - 1) ?? 0) + 1;
      row.set(j, run);
      if (run > best) [best, here, there] = [run, i - run + 1, j - run + 1];
    }
    before = row;
  }
  if (!best) return 0;
  return best + matching(one, start, here, other, from, there) + matching(one, here + best, end, other, there + best, to);
}
