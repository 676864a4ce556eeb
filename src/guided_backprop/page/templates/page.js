// The page: a photo comes in, the graphs run, and what they give is shown. Nothing leaves it.

const about = JSON.parse(document.getElementById("about").textContent);
const at = (name) => document.querySelector(`[data-${name}]`);
const [stage, over, range, status, classes] = ["stage", "over", "range", "status", "classes"].map(at);
// From here on two maps are called nearly one picture.
const SAME = 0.9;

// What lies in the page as text, packed, or in a file beside it.
async function bytes(name) {
  const element = document.getElementById(name);
  const text = element.textContent.trim();
  const packed = text ? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)) : await fetched(element);
  element.remove();
  return new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

async function fetched(element) {
  const answer = await fetch(element.dataset.file);
  if (!answer.ok) throw new Error(`${element.dataset.file} could not be read: ${answer.status}`);
  return answer.arrayBuffer();
}

// One session for each method; the weights are there once.
const sessions = (async () => {
  const [module, binary, weights] = await Promise.all(["engine-module", "engine-binary", "weights"].map(bytes));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary.buffer;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([module], { type: "text/javascript" })) };
  const made = {};
  for (const { name } of about.methods) {
    const externalData = [{ path: about.weights, data: weights }];
    made[name] = await ort.InferenceSession.create(await bytes(`graph-${name}`), { externalData, executionProviders: ["wasm"] });
  }
  return made;
})();

// Runs wait for each other: a session does one thing at a time.
let last = Promise.resolve();
function run(method, input, labels) {
  const next = last.then(async () => {
    const images = new Float32Array(input.length * labels.length);
    labels.forEach((_, row) => images.set(input, row * input.length));
    const given = {
      images: new ort.Tensor("float32", images, [labels.length, ...about.shape]),
      labels: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]),
    };
    const results = await (await sessions)[method].run(given);
    if (!results.is_finite.data.every(Boolean)) throw new Error("The network gave numbers that are not finite.");
    return results;
  });
  last = next.catch(() => {});
  return next;
}

// What is on the page now. A photo that comes while another is explained takes its place.
let now = null;

async function take(source, name) {
  const turn = { name };
  now = turn;
  say("Reading the photo.");
  try {
    turn.photo = pixels(source);
    turn.seen = cut(turn.photo, about);
    turn.input = scaled(turn.seen, about);
    say("Starting the engine.");
    await sessions;
    if (now !== turn) return;
    say("Looking.");
    const { outputs } = await run(about.methods[0].name, turn.input, [-1]);
    turn.probabilities = probabilities(outputs.data);
    turn.order = [...turn.probabilities.keys()].sort((one, other) => turn.probabilities[other] - turn.probabilities[one]);
    if (now !== turn) return;
    list(turn);
    await explain(turn, turn.order[0]);
  } catch (error) {
    if (now === turn) say(error.message, true);
  }
}

function probabilities(outputs) {
  if (about.probability === "as it is") return Float32Array.from(outputs);
  if (about.probability === "exp") return outputs.map(Math.exp);
  const most = outputs.reduce((one, other) => Math.max(one, other));
  const powers = outputs.map((score) => Math.exp(score - most));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

async function explain(turn, label) {
  turn.label = label;
  const is_current = () => now === turn && turn.label === label;
  say("Explaining.");
  for (const button of classes.querySelectorAll("button")) button.setAttribute("aria-pressed", Number(button.value) === label);
  const began = performance.now();
  const maps = {};
  for (const { name } of about.methods) {
    maps[name] = (await run(name, turn.input, [label])).attribution.data;
    if (!is_current()) return;
  }
  turn.maps = maps;
  const each = (performance.now() - began) / about.methods.length;
  put(at("photo"), shown(turn.seen));
  for (const { name } of about.methods) put(document.getElementById(`map-${name}`), overlay(turn.seen, strengths(maps[name], about)));
  choose();
  at("look").hidden = false;
  at("shown").textContent = `${turn.name}, as the network saw it, explained for ${about.classes[label]}.`;
  at("believe").textContent = "";
  const rivals = turn.order.filter((other) => other !== label).slice(0, 2);
  const guided = about.methods[0].name;
  const others = (await run(guided, turn.input, rivals)).attribution.data;
  if (!is_current()) return;
  const size = maps[guided].length;
  const alike = rivals.map((_, row) => cosine(maps[guided], others.subarray(row * size, (row + 1) * size)));
  at("believe").textContent = believe(label, rivals, alike);
  say(`Explained: ${each.toFixed(0)} ms for each map.`);
  document.body.dataset.explained = label;
}

// How far the map is to be believed, in the words that the reports have.
function believe(label, rivals, alike) {
  const known = rivals.map((rival, row) => [first(rival), alike[row]]).filter(([, value]) => value !== null);
  if (!known.length) return "";
  const same = known.filter(([, value]) => value >= SAME);
  const figures = known.map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ");
  const beside = `The cosine similarity of the guided map for ${first(label)} with those of the next classes is: ${figures}.`;
  if (!same.length) return `${beside} The maps differ.`;
  return `${beside} Nearly one picture: this map does not tell these classes apart. It shows what the network picks up in the photo, not why it says one of them.`;
}

function first(label) {
  return about.classes[label].split(",")[0];
}

// The best classes as buttons, all of them to search.
function list(turn) {
  classes.replaceChildren(
    ...turn.order.slice(0, 5).map((label) => {
      const button = document.createElement("button");
      [button.type, button.value] = ["button", label];
      const share = document.createElement("span");
      share.textContent = ` ${(100 * turn.probabilities[label]).toFixed(1)} %`;
      button.append(about.classes[label], share);
      button.addEventListener("click", () => explained(turn, label));
      return button;
    }),
  );
}

async function explained(turn, label) {
  try {
    await explain(turn, label);
  } catch (error) {
    if (now === turn) say(error.message, true);
  }
}

function say(text, is_wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", is_wrong);
  document.body.removeAttribute("data-explained");
}

// RGB bytes of whatever can be drawn; what is transparent is on white.
function pixels(source) {
  const [width, height] = [source.naturalWidth ?? source.videoWidth ?? source.width, source.naturalHeight ?? source.videoHeight ?? source.height];
  if (!width || !height) throw new Error("The photo has no pixels.");
  if (Math.max(width, height) > 50 * Math.min(width, height)) throw new Error("The photo is more than 50 times as long as wide.");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let place = 0; place < width * height; place += 1) {
    rgb[3 * place] = data[4 * place];
    rgb[3 * place + 1] = data[4 * place + 1];
    rgb[3 * place + 2] = data[4 * place + 2];
  }
  return { width, height, pixels: rgb };
}

async function open(file) {
  try {
    // As files are read elsewhere: turned as the camera says, colour profiles ignored.
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    await take(bitmap, file.name || "The photo");
  } catch {
    now = null;
    say(`${file.name || "This"} is no image that this browser can read.`, true);
  }
}

// Where a photo comes from: a file, the clipboard, the camera, the examples.
const file = at("file");
at("choose").addEventListener("click", () => file.click());
file.addEventListener("change", () => {
  if (file.files.length) open(file.files[0]);
  file.value = "";
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) open(event.clipboardData.files[0]);
});
for (const example of document.querySelectorAll("[data-example]")) {
  example.addEventListener("click", async () => {
    const picture = example.querySelector("img");
    await picture.decode();
    take(picture, picture.alt);
  });
}

const [video, camera] = [at("video"), at("camera")];
camera.hidden = !navigator.mediaDevices;
camera.addEventListener("click", async () => {
  if (video.srcObject) {
    take(video, "The camera's picture");
    video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    camera.textContent = "Use the camera";
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
    video.hidden = false;
    camera.textContent = "Take this picture";
  } catch {
    say("There is no camera that this page may use.", true);
  }
});

// Any class at all.
const search = at("search");
document.getElementById("names").append(
  ...about.classes.map((name) => {
    const option = document.createElement("option");
    option.value = name;
    return option;
  }),
);
search.addEventListener("change", () => {
  const label = about.classes.indexOf(search.value);
  if (label >= 0 && now?.order) explained(now, label);
});

// The slider between photo and map, and the map that it shows.
function chosen() {
  return document.querySelector("input[name=map]:checked").value;
}
function choose() {
  if (now?.maps) put(over, document.getElementById(`map-${chosen()}`));
}
function cover() {
  stage.style.setProperty("--at", `${range.value}%`);
  // At the border it would be a line beside the picture.
  stage.classList.toggle("whole", range.value === range.min || range.value === range.max);
  range.setAttribute("aria-valuetext", `${range.value} % map`);
}
function drag(event) {
  const box = stage.getBoundingClientRect();
  range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
  cover();
}
at("maps").addEventListener("change", choose);
range.addEventListener("input", cover);
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  drag(event);
});
stage.addEventListener("pointermove", (event) => {
  if (stage.hasPointerCapture(event.pointerId)) drag(event);
});
cover();

// What can be kept: the picture, and the numbers.
function save(blob, name) {
  const link = document.createElement("a");
  [link.href, link.download] = [URL.createObjectURL(blob), name];
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
at("save-picture").addEventListener("click", () => {
  document.getElementById(`map-${chosen()}`).toBlob((blob) => save(blob, `${chosen()}.png`));
});
at("save-map").addEventListener("click", () => {
  save(npy(now.maps[chosen()], about.shape), `${chosen()}.npy`);
});

sessions.then(
  () => now ?? say("Ready."),
  (error) => say(`The engine did not start: ${error.message}`, true),
);
