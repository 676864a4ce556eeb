// From a map to a picture of it: the strength of each pixel, in colours, over the faded photo.

// How strongly each pixel moves the score, in [0, 1]: its largest magnitude over the channels, 1 from the 99th percentile.
function strengths(map, about) {
  const [rows, columns] = about.size;
  const count = rows * columns;
  const channels = map.length / count;
  const largest = new Float64Array(count);
  for (let at = 0; at < count; at += 1) {
    for (let channel = 0; channel < channels; channel += 1) {
      const place = about.channels_last ? at * channels + channel : channel * count + at;
      largest[at] = Math.max(largest[at], Math.abs(map[place]));
    }
  }
  const sorted = Float64Array.from(largest).sort();
  const rank = 0.99 * (count - 1);
  const [below, above] = [sorted[Math.floor(rank)], sorted[Math.ceil(rank)]];
  const full = below + (above - below) * (rank - Math.floor(rank)) || sorted[count - 1];
  // All alike, magnitudes tell no pixel from another.
  if (full === 0 || sorted[0] === sorted[count - 1]) return new Float64Array(count);
  return largest.map((value) => Math.min(value / full, 1));
}

function ramped(share, channel) {
  const place = share * (RAMP.length - 1);
  const before = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[before][channel] + (RAMP[before + 1][channel] - RAMP[before][channel]) * (place - before);
}

// The map over what the network saw, as a canvas of that size.
function overlay(seen, shares) {
  const data = new ImageData(seen.width, seen.height);
  for (let at = 0; at < seen.width * seen.height; at += 1) {
    const colours = seen.pixels.subarray(3 * at, 3 * at + 3);
    const grey = 0.299 * colours[0] + 0.587 * colours[1] + 0.114 * colours[2];
    const shade = 0.15 * (grey - 127.5);
    const cover = 0.9 * shares[at];
    for (let channel = 0; channel < 3; channel += 1) {
      const faded = 0.5 * colours[channel] + 127.5;
      const laid = Math.min(Math.max(ramped(shares[at], channel) + shade, 0), 255);
      data.data[4 * at + channel] = Math.floor((1 - cover) * faded + cover * laid + 0.5);
    }
    data.data[4 * at + 3] = 255;
  }
  return painted(data);
}

function painted(data) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [data.width, data.height];
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// RGB bytes as a picture.
function shown(seen) {
  const data = new ImageData(seen.width, seen.height);
  for (let at = 0; at < seen.width * seen.height; at += 1) {
    data.data.set(seen.pixels.subarray(3 * at, 3 * at + 3), 4 * at);
    data.data[4 * at + 3] = 255;
  }
  return painted(data);
}

function put(canvas, picture) {
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

// The angle between two maps, as its cosine; null where one of them is all 0.
function cosine(one, other) {
  let [dot, first, second] = [0, 0, 0];
  for (let at = 0; at < one.length; at += 1) {
    dot += one[at] * other[at];
    first += one[at] ** 2;
    second += other[at] ** 2;
  }
  return first && second ? dot / Math.sqrt(first * second) : null;
}

// A map as a file of NumPy's.
function npy(map, shape) {
  const said = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const header = `${said.padEnd(Math.ceil((said.length + 11) / 64) * 64 - 11)}\n`;
  const length = new Uint8Array(new Uint16Array([header.length]).buffer);
  return new Blob([new Uint8Array([0x93, 78, 85, 77, 80, 89, 1, 0]), length, header, map]);
}
