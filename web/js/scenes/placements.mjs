/** Where subjects stand on a canvas: edits laid over a layout, and what is wrong with it. Numbers are pixels of the canvas and degrees. */

const FIELDS = ["x", "y", "width", "turn", "flip", "z"];
const LEAST = 4;
const SHOWN_COVER = 0.15;

/** Edits of a text as {layout: {subject: fields}}; null where it is no such JSON. */
export function readEdits(text) {
  if (!text.trim()) return {};
  try {
    const read = JSON.parse(text);
    return read && typeof read === "object" && !Array.isArray(read) ? read : null;
  } catch {
    return null;
  }
}

/** The placements of a layout after its edits, from back to front. */
export function placed(layout, edits, subjects) {
  const moved = layout.map((one) => {
    const fields = edits?.[one.subject] ?? {};
    const height = fields.width === undefined ? one.height : fields.width / subjects[one.subject].aspect;
    return { ...one, height, ...fields };
  });
  return moved.sort((one, other) => one.z - other.z);
}

/** What differs between a placement and the layout's own, as an edit; null where nothing does. */
export function edit(placement, own) {
  const fields = FIELDS.filter((field) => rounded(placement[field]) !== rounded(own[field]));
  return fields.length ? Object.fromEntries(fields.map((field) => [field, rounded(placement[field])])) : null;
}

/** A subject as wide as asked, around the same middle. */
export function resized(placement, width) {
  const scale = Math.max(LEAST, width) / placement.width;
  return {
    ...placement,
    x: placement.x + (placement.width * (1 - scale)) / 2,
    y: placement.y + (placement.height * (1 - scale)) / 2,
    width: placement.width * scale,
    height: placement.height * scale,
  };
}

/** A turn brought to -180 to 180 degrees. */
export function turned(placement, turn) {
  return { ...placement, turn: ((((turn + 180) % 360) + 360) % 360) - 180 };
}

/** The placements with one moved a step in the order of painting; every z is its place then. */
export function reordered(placements, subject, step) {
  const names = placements.map((one) => one.subject);
  const from = names.indexOf(subject);
  const to = Math.min(Math.max(from + step, 0), names.length - 1);
  names.splice(to, 0, ...names.splice(from, 1));
  return placements.map((one) => ({ ...one, z: names.indexOf(one.subject) }));
}

/** What is wrong with placements from back to front: [{subject, outside}] or [{subject, hidden}], `hidden` a share. */
export function faults(placements, width, height) {
  const boxes = placements.map(around);
  const found = [];
  placements.forEach(({ subject }, place) => {
    const box = boxes[place];
    if (box.left < -0.5 || box.top < -0.5 || box.right > width + 0.5 || box.bottom > height + 0.5) found.push({ subject, outside: true });
    const hidden = boxes.slice(place + 1).reduce((sum, other) => sum + shared(box, other), 0) / area(box);
    if (hidden > SHOWN_COVER) found.push({ subject, hidden: Math.min(1, hidden) });
  });
  return found;
}

/** The upright box around a subject after its turn. */
export function around({ x, y, width, height, turn }) {
  const angle = (turn * Math.PI) / 180;
  const [cos, sin] = [Math.abs(Math.cos(angle)), Math.abs(Math.sin(angle))];
  const [wide, high] = [width * cos + height * sin, width * sin + height * cos];
  const [middle, centre] = [x + width / 2, y + height / 2];
  return { left: middle - wide / 2, top: centre - high / 2, right: middle + wide / 2, bottom: centre + high / 2 };
}

function area({ left, top, right, bottom }) {
  return Math.max(0, right - left) * Math.max(0, bottom - top);
}

function shared(one, other) {
  return area({
    left: Math.max(one.left, other.left),
    top: Math.max(one.top, other.top),
    right: Math.min(one.right, other.right),
    bottom: Math.min(one.bottom, other.bottom),
  });
}

function rounded(value) {
  return typeof value === "number" ? Math.round(value * 100) / 100 : value;
}
