// What the network is shown of a photo: resized byte for byte as Pillow resizes, cut, and scaled.

const FILTERS = {
  bilinear: [1, (x) => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
// Weights are whole numbers of this many bits behind the point, as Pillow has them.
const ONE = 2 ** 22;

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// For each place of the result: the first place of the photo that counts, and the weights from there on.
function weights(length, size, resampling) {
  const scale = length / size;
  if (resampling === "nearest") {
    // Added up, as Pillow does it: what is rounded on the way decides between two pixels.
    let place = scale / 2;
    return Array.from({ length: size }, () => {
      const first = Math.floor(place);
      place += scale;
      return [first, [ONE]];
    });
  }
  const [reach, filter] = FILTERS[resampling];
  const wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach * wide + 0.5), 0);
    const last = Math.min(Math.trunc(centre + reach * wide + 0.5), length);
    const shares = [];
    for (let place = first; place < last; place += 1) shares.push(filter((place - centre + 0.5) * (1 / wide)));
    const total = shares.reduce((sum, share) => sum + share, 0);
    return [first, shares.map((share) => Math.trunc((share / total) * ONE + (share / total < 0 ? -0.5 : 0.5)))];
  });
}

// Of RGB bytes, `height` rows of `width`: another width, for the rows that are asked for.
function across(photo, size, resampling, from, to) {
  const { width, pixels } = photo;
  if (width === size) return { width, height: to - from, pixels: pixels.subarray(from * width * 3, to * width * 3) };
  const resized = new Uint8ClampedArray((to - from) * size * 3);
  weights(width, size, resampling).forEach(([first, shares], column) => {
    for (let row = from; row < to; row += 1) {
      const start = (row * width + first) * 3;
      const target = ((row - from) * size + column) * 3;
      for (let colour = 0; colour < 3; colour += 1) {
        let sum = ONE / 2;
        for (let step = 0; step < shares.length; step += 1) sum += pixels[start + 3 * step + colour] * shares[step];
        resized[target + colour] = Math.floor(sum / ONE);
      }
    }
  });
  return { width: size, height: to - from, pixels: resized };
}

// Another height, of which the rows that are asked for are kept.
function down(photo, size, resampling, from, to) {
  const { width, height, pixels } = photo;
  if (height === size) return { width, height: to - from, pixels: pixels.subarray(from * width * 3, to * width * 3) };
  const stride = width * 3;
  const resized = new Uint8ClampedArray((to - from) * stride);
  weights(height, size, resampling).slice(from, to).forEach(([first, shares], row) => {
    for (let at = 0; at < stride; at += 1) {
      let sum = ONE / 2;
      for (let step = 0; step < shares.length; step += 1) sum += pixels[(first + step) * stride + at] * shares[step];
      resized[row * stride + at] = Math.floor(sum / ONE);
    }
  });
  return { width, height: to - from, pixels: resized };
}

// Python rounds a half to the even number.
function evenly(number) {
  const floor = Math.floor(number);
  return number - floor === 0.5 ? floor + (floor % 2) : Math.round(number);
}

// How large the photo becomes, and where in that the network looks.
function plan(width, height, about) {
  const [rows, columns] = about.size;
  let size = [columns, rows];
  if (about.crop !== null) {
    const least = [Math.floor(columns / about.crop), Math.floor(rows / about.crop)];
    const scale = Math.max(least[0] / width, least[1] / height);
    size = [Math.max(least[0], Math.trunc(width * scale)), Math.max(least[1], Math.trunc(height * scale))];
  }
  return { width: size[0], height: size[1], left: evenly((size[0] - columns) / 2), top: evenly((size[1] - rows) / 2) };
}

// What the network sees, as RGB bytes.
function cut(photo, about) {
  const [rows, columns] = about.size;
  const { width, height, left, top } = plan(photo.width, photo.height, about);
  // Pillow resizes along the rows first.
  const wide = across(photo, width, about.resampling, 0, photo.height);
  const tall = down(wide, height, about.resampling, top, top + rows);
  const pixels = new Uint8ClampedArray(rows * columns * 3);
  for (let row = 0; row < rows; row += 1) {
    const start = (row * width + left) * 3;
    pixels.set(tall.pixels.subarray(start, start + columns * 3), row * columns * 3);
  }
  return { width: columns, height: rows, pixels };
}

// The same as the network's input, without batch axis.
function scaled(seen, about) {
  const { width, height, pixels } = seen;
  const channels = about.grey ? 1 : 3;
  const input = new Float32Array(width * height * channels);
  const [factor, mean, std] = [Math.fround(about.scale), about.mean, about.std];
  for (let at = 0; at < width * height; at += 1) {
    for (let channel = 0; channel < channels; channel += 1) {
      const [red, green, blue] = [pixels[3 * at], pixels[3 * at + 1], pixels[3 * at + 2]];
      const byte = about.grey ? (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16 : pixels[3 * at + channel];
      const less = Math.fround(Math.fround(byte * factor) - Math.fround(mean[channel % mean.length]));
      const target = about.channels_last ? at * channels + channel : channel * width * height + at;
      input[target] = less / Math.fround(std[channel % std.length]);
    }
  }
  return input;
}
