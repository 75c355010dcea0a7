/** Parts in the order in which people go over a thing: from the head on; by height where names tell nothing else. */

import { plainName } from "./mentions.mjs";

const ANATOMY = [
  ["head", "face", "forehead", "hair", "crest", "crown", "horn", "antenna", "antennae", "ear", "eye", "cheek", "nose", "snout", "muzzle", "beak", "bill", "mouth", "jaw", "chin"],
  ["mane", "nape", "throat", "neck"],
  ["body", "torso", "trunk", "shoulder", "breast", "chest", "back", "shell", "belly", "abdomen", "waist", "hip"],
  ["wing", "arm", "hand", "fin"],
  ["leg", "thigh", "knee", "claw", "paw", "hoof", "foot", "feet"],
  ["tail"],
].flat();
const HEIGHTS = ["top", "upper", "middle", "lower", "bottom"];

/** Rank of the first of some words that a name holds, the plural too; past the last where it holds none. */
function rank(name, words) {
  const own = plainName(name).replace(/\d+/g, " ").split(" ");
  const place = words.findIndex((word) => own.includes(word) || own.includes(`${word}s`));
  return place < 0 ? words.length : place;
}

/**
 * A copy of `parts` in this order; backgrounds come last. A part has name and background, and where it is known height, from -1 at the
 * thing's top to 1 at its bottom.
 */
export function naturalOrder(parts) {
  const known = parts.map((part, number) => ({
    part,
    keys: [part.background ? 1 : 0, rank(part.name, ANATOMY), part.height ?? rank(part.name, HEIGHTS) / 2 - 1, number],
  }));
  known.sort((one, other) => one.keys.map((key, place) => key - other.keys[place]).find(Boolean) ?? 0);
  return known.map(({ part }) => part);
}

/** A name such as "top2" or "upper_left" as people would write it: "upper 2", "upper left"; the same where nothing is wrong with it. */
export function readableName(name) {
  const said = name.replace(/_+/g, " ").replace(/([\p{L}])(\d+)$/u, "$1 $2").trim();
  return said.replace(/^top (\d+)$/i, "upper $1").replace(/^bottom (\d+)$/i, "lower $1");
}
