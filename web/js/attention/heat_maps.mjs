/** Recorded attention, read from one grey picture, and drawn as heat over what was sampled. */

const STOPS = [[14, 11, 34], [72, 20, 92], [150, 34, 96], [222, 74, 62], [250, 152, 56], [253, 236, 160]];

/** Maps of one sampling; `facts` come from nodes/attention/attention_sheet.py. */
export class HeatMaps {
  constructor(facts, pixels, width) {
    this.parts = facts.parts;
    this.steps = facts.steps;
    this.pictures = facts.pictures;
    [this.height, this.width] = facts.grid;
    this.peaks = facts.peaks;
    this.pixels = pixels;
    this.rowLength = width;
  }

  static async load(facts, address) {
    const image = await loadImage(address);
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return new HeatMaps(facts, data, canvas.width);
  }

  /** Map of a part at a step, or averaged over all with step null: weights in 0..1 of the part's peak. */
  map(picture, part, step) {
    const chosen = step === null ? this.steps.map((_, number) => number) : [step];
    const weights = new Float32Array(this.height * this.width);
    for (const number of chosen) {
      const top = (number * this.pictures + picture) * this.height;
      for (let y = 0; y < this.height; y += 1) {
        const row = ((top + y) * this.rowLength + part * this.width) * 4;
        for (let x = 0; x < this.width; x += 1) weights[y * this.width + x] += this.pixels[row + 4 * x] / 255 / chosen.length;
      }
    }
    return weights;
  }

  /** Probability of a part at a place, both in 0..1 of the picture. */
  at(weights, part, across, down) {
    const x = Math.min(this.width - 1, Math.floor(across * this.width));
    const y = Math.min(this.height - 1, Math.floor(down * this.height));
    return weights[y * this.width + x] * this.peaks[part];
  }

  /** Draws a part over a picture (or over nothing) into a canvas; weights are stretched from their least to their most. */
  draw(canvas, ground, weights, opacity) {
    const ratio = ground ? ground.naturalHeight / ground.naturalWidth : this.height / this.width;
    canvas.width = 384;
    canvas.height = Math.round(384 * ratio);
    const context = canvas.getContext("2d");
    context.fillStyle = "#1b1a22";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (ground) {
      // colours of the picture must not be taken for those of the scale
      context.filter = `grayscale(${opacity}) brightness(${1 - 0.2 * opacity})`;
      context.drawImage(ground, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
    }
    context.imageSmoothingQuality = "high";
    context.drawImage(this.heat(weights, ground ? opacity : 1), 0, 0, canvas.width, canvas.height);
  }

  heat(weights, opacity) {
    const least = weights.reduce((one, other) => Math.min(one, other), Infinity);
    const reach = weights.reduce((one, other) => Math.max(one, other), 0) - least;
    const small = new OffscreenCanvas(this.width, this.height);
    const context = small.getContext("2d");
    const image = context.createImageData(this.width, this.height);
    weights.forEach((weight, place) => {
      const share = reach > 0 ? (weight - least) / reach : 0;
      image.data.set([...color(share), 255 * opacity * (0.25 + 0.75 * share)], place * 4);
    });
    context.putImageData(image, 0, 0);
    return small;
  }
}

/** Colour of a weight in 0..1, the same scale as in the pictures that the block gives. */
export function color(weight) {
  const place = Math.min(STOPS.length - 1.001, Math.max(0, weight) * (STOPS.length - 1));
  const [from, to] = [STOPS[Math.floor(place)], STOPS[Math.floor(place) + 1]];
  return from.map((value, channel) => Math.round(value + (to[channel] - value) * (place % 1)));
}

/** An image of an address, once it is there. */
export function loadImage(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(address));
    image.src = address;
  });
}
