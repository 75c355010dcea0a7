/** Pictures with the found parts laid over: fetched from the server, coloured by what the edits made of each part. */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";
import { discoveredPicture } from "./discoveries.mjs";

const EDGE = 256;
const STRENGTH = 0.62;
const DIM = 0.72;

/** As in the overlays of the graph (concepts/pictures/part_overlay.py). */
const COLORS = [[230, 85, 60], [64, 130, 214], [244, 178, 40], [74, 168, 92], [160, 98, 204], [38, 182, 178], [232, 120, 176], [150, 112, 62], [150, 190, 48], [86, 92, 178]];
const [SATURATION, VALUE] = [0.6, 0.85];

/** Red, green and blue of a part's colour, 0 to 255. */
export function partColor(part) {
  if (part < COLORS.length) return COLORS[part];
  const sixths = 6 * ((part * 0.618) % 1);
  const dark = (shift) => Math.max(0, Math.min((shift + sixths) % 6, 4 - ((shift + sixths) % 6), 1));
  return [5, 3, 1].map((shift) => Math.round(255 * VALUE * (1 - SATURATION * dark(shift))));
}

/** Number of the colour of every edited part: that of the first part it was made of, so that it keeps it while others come and go. */
export function colorsOf({ parts, edited }) {
  return edited.map((_, number) => {
    const first = parts.indexOf(number);
    return first < 0 ? number : first;
  });
}

function loaded(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(address));
    image.src = address;
  });
}

/** One picture and its patch labels, drawn on `canvas`. */
export class PartMap {
  constructor(key, number) {
    const route = (what) => discoveredPicture(key, what, number);
    this.canvas = make("canvas", { width: EDGE, height: EDGE, role: "img", "aria-label": t("parts.pictureNumber", { number: number + 1 }) });
    this.failed = false;
    this.ready = Promise.all([loaded(route("picture")), loaded(route("labels"))]).then(([picture, labels]) => this.read(picture, labels));
    this.ready.catch(() => {
      this.failed = true;
    });
  }

  read(picture, labels) {
    this.picture = picture;
    this.size = [labels.naturalWidth, labels.naturalHeight];
    const paper = make("canvas", { width: this.size[0], height: this.size[1] }).getContext("2d", { willReadFrequently: true });
    paper.drawImage(labels, 0, 0);
    const pixels = paper.getImageData(0, 0, ...this.size).data;
    this.labels = Array.from({ length: this.size[0] * this.size[1] }, (_, cell) => pixels[4 * cell]);
  }

  /** Edited part of a cell. `parts`: that of every found part; `codes`: this picture's kind of every edited part. */
  partOf(cell, { parts, codes, background }) {
    const part = parts[this.labels[cell]];
    // a picture whose kind of a part was dropped does not show the part
    return codes[part] < 0 ? background : part;
  }

  /** Edited part under a pointer, null where it is not known yet. */
  partAt({ clientX, clientY }, view) {
    if (!this.labels) return null;
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const [wide, high] = this.size;
    const column = Math.max(0, Math.min(wide - 1, Math.floor(((clientX - left) / width) * wide)));
    const row = Math.max(0, Math.min(high - 1, Math.floor(((clientY - top) / height) * high)));
    return this.partOf(row * wide + column, view);
  }

  /** With `only` that edited part is shown alone. */
  async draw(view) {
    await this.ready.catch(() => {});
    const { canvas, picture, labels, size } = this;
    const paper = canvas.getContext("2d");
    paper.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture) return;
    // in grey below its parts: the picture's colours would mix with theirs
    paper.filter = `grayscale(${view.opacity})`;
    paper.drawImage(picture, 0, 0, canvas.width, canvas.height);
    paper.filter = "none";
    const [wide, high] = size;
    const cells = new ImageData(wide, high);
    labels.forEach((_, cell) => {
      const part = this.partOf(cell, view);
      const shown = view.only === null ? part !== view.background : part === view.only;
      const color = shown ? partColor(view.colors?.[part] ?? part) : [0, 0, 0];
      const share = shown ? STRENGTH : view.only === null ? 0 : DIM;
      cells.data.set([...color, Math.round(255 * share * view.opacity)], 4 * cell);
    });
    const cover = make("canvas", { width: wide, height: high });
    cover.getContext("2d").putImageData(cells, 0, 0);
    paper.imageSmoothingEnabled = false;
    paper.drawImage(cover, 0, 0, canvas.width, canvas.height);
  }

  /** A small picture of one edited part alone: the square around it. */
  async cutOut(canvas, part, view) {
    await this.ready.catch(() => {});
    if (!this.picture) return;
    const [wide, high] = this.size;
    const own = this.labels.flatMap((_, cell) => (this.partOf(cell, view) === part ? [[cell % wide, Math.floor(cell / wide)]] : []));
    if (!own.length) return;
    const [left, right] = [Math.min(...own.map(([x]) => x)), Math.max(...own.map(([x]) => x)) + 1];
    const [top, bottom] = [Math.min(...own.map(([, y]) => y)), Math.max(...own.map(([, y]) => y)) + 1];
    const edge = Math.min(Math.max(right - left, bottom - top) + 1, wide, high);
    const place = (start, end, most) => Math.max(0, Math.min((start + end - edge) / 2, most - edge));
    const [across, down] = [this.picture.naturalWidth / wide, this.picture.naturalHeight / high];
    const source = [place(left, right, wide) * across, place(top, bottom, high) * down, edge * across, edge * down];
    canvas.getContext("2d").drawImage(this.picture, ...source, 0, 0, canvas.width, canvas.height);
  }
}
