/** Two dictionaries as one, with the numbers and names that Merge Dictionaries gives (concepts/part_dictionary/dictionary_merge.py). */

import { Dictionary } from "./dictionaries.mjs";
import { plainName } from "./mentions.mjs";

const LONGEST_NAME = 120;
const NUMBER = /^[+-]?\d{1,9}$/;

/** A dictionary made of two; thumbnails are painted by the one that each kind came from. */
class MergedDictionary extends Dictionary {
  constructor(first, second, called) {
    const { facts, sources } = mergedFacts(first, second);
    super(`${first.file} + ${second.file}`, called, facts);
    this.atlasFault = first.atlasFault ?? second.atlasFault;
    for (const part of this.parts) part.kinds.forEach((kind) => (kind.source = sources.get(part.number)[kind.place]));
  }

  paint(element, kind, edge) {
    return kind.source.part.owner.paint(element, kind.source, edge);
  }
}

/** One dictionary of two. */
export function mergeDictionaries(first, second, called) {
  return new MergedDictionary(first, second, called);
}

function mergedFacts(first, second) {
  const names = [...first.facts.part_names];
  const base = first.facts.id_base;
  const exact = new Map(names.map((name, number) => [name, number]));
  // of names that are alike the first
  const known = new Map(names.map((name, number) => [plainName(name), number]).reverse());
  // "left wing" and "left_wing" are one part in two dictionaries, and two parts where one dictionary has both
  const spokenFor = new Set(second.facts.part_names.map((name) => exact.get(name)));
  const places = second.facts.part_names.map((name, number) => {
    const bothBackgrounds = number === second.facts.background && first.facts.background !== null;
    const place = bothBackgrounds ? first.facts.background : exact.get(name);
    const alike = known.get(plainName(name));
    if (place !== undefined || alike === undefined || spokenFor.has(alike)) return place ?? names.push(name) - 1;
    spokenFor.add(alike);
    return alike;
  });
  const background = first.facts.background ?? (second.facts.background === null ? null : places[second.facts.background]);
  const kinds = new Map();
  const add = (part, number, name, source) => kinds.set(part, [...(kinds.get(part) ?? []), { number, name, source }]);
  for (const part of first.parts) for (const kind of part.kinds) add(part.number, kind.number - base, kind.name, kind);
  for (const part of second.parts) {
    const place = places[part.number];
    for (const kind of part.kinds) {
      const held = kinds.get(place) ?? [];
      const wanted = kind.number - second.facts.id_base;
      const number = held.some((one) => one.number === wanted) ? Math.max(...held.map((one) => one.number)) + 1 : wanted;
      add(place, number, kind.name === null ? null : freeName(kind.name, held), kind);
    }
  }
  const numbers = [...kinds.keys()].sort((one, other) => one - other);
  const partNames = numbers.map((number) => names[number]);
  const sources = new Map();
  const parts = numbers.map((number) => {
    const own = kinds.get(number).sort((one, other) => one.number - other.number);
    sources.set(number, own.map(({ source }) => source));
    const kindNames = own.map(({ name }) => name).filter((name) => name !== null);
    return {
      number,
      name: names[number],
      written: isUnique(names[number], partNames) ? names[number].trim().replace(/[\\.:<>]/g, "\\$&") : `${number}`,
      background: number === background,
      kinds: {
        numbers: own.map((kind) => kind.number + base),
        names: own.map(({ name }) => name),
        written: own.map(({ name, number: kind }) => (name !== null && isUnique(name, kindNames) ? name.replace(/[\\:*+@<>]/g, "\\$&") : `${kind + base}`)),
        tiles: own.map(({ source }) => source.tile),
      },
    };
  });
  return { facts: { backbone: first.backbone, id_base: base, part_names: names, background, parts, atlas: null, atlas_fault: null }, sources };
}

function freeName(name, held) {
  const used = new Set(held.filter((one) => one.name !== null).map((one) => plainName(one.name)));
  let candidate = name;
  for (let number = 2; used.has(plainName(candidate)); number += 1) candidate = `${name} (${number})`;
  return candidate;
}

function isUnique(name, names) {
  const spelt = name.trim();
  return spelt.length > 0 && name.length <= LONGEST_NAME && !NUMBER.test(spelt) && names.filter((other) => other.trim() === spelt).length === 1;
}
