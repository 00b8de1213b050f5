// The page: sends images to POST /detect with threshold 0, so that the slider only has to filter.

const SVG = "http://www.w3.org/2000/svg";
const SMALLEST_PX = 480; // a smaller image is enlarged to this, or its labels would cover it
const GOLDEN_RATIO = 0.618034; // steps of this size spread any number of hues around the circle
const $ = (id) => document.getElementById(id);

const MODEL = new URLSearchParams(location.search).get("model"); // null: the first served

const everything = { threshold: 0 }; // requested, so that the slider only has to filter
let shots = []; // the images at hand: their files, and what was answered
let current = null; // the one that is shown
let pending = null; // AbortController of the requests in flight
let labels = new Map(); // class id -> its position, which gives the colour
let thresholds = null; // the model's own, if it has them

async function main() {
  $("file").addEventListener("change", () => pickFiles($("file").files));
  $("threshold").addEventListener("input", () => { $("best").checked = false; show(); });
  $("best").addEventListener("change", show);
  $("copy").addEventListener("click", copyJson);
  document.addEventListener("paste", (event) => pickFiles(event.clipboardData.files));
  listenForDrops($("drop"));
  show();
  await loadModel();
}

async function loadModel() {
  try {
    const model = await (await fetch(`model?${query({})}`)).json();
    if (model.error) return fail(model.error.message);
    const others = model.models.filter((name) => name !== model.name);
    if (others.length) $("others").append(" Others: ", ...others.flatMap((name) => [link(name), " "]));
    const ap = model.metrics.AP === undefined ? "" : `, AP ${model.metrics.AP.toFixed(3)}`;
    $("model").textContent =
      `${model.name} (${model.variant.replace("_", "-")}), classes: ${model.classes.length}${ap}`;
    everything.num_detections = model.num_detections;
    labels = new Map(model.classes.map((info, label) => [info.id, label]));
    startFrom(model);
    model.samples.forEach((path, index) => $("samples").append(sampleButton(path, index)));
    $("samples-view").hidden = model.samples.length === 0;
  } catch {
    fail("the service does not answer; is it still running?");
  }
}

/** Parameters of a request, with the model that this page is about. */
function query(parameters) {
  return new URLSearchParams(MODEL === null ? parameters : { ...parameters, model: MODEL });
}

function link(name) {
  const anchor = document.createElement("a");
  anchor.href = `?${new URLSearchParams({ model: name })}`;
  anchor.textContent = name;
  return anchor;
}

/** What a request starts from that names no threshold. */
function startFrom(model) {
  $("threshold").value = model.threshold;
  thresholds = model.thresholds;
  $("best").checked = thresholds !== null;
  $("best-view").hidden = thresholds === null;
  show();
}

function sampleButton(path, index) {
  const source = `${path}?${query({})}`;
  return pictureButton(source, `Sample image ${index + 1}`, async () => {
    const response = await fetch(source);
    detect([{ name: path.split("/").at(-1), blob: await response.blob() }]);
  });
}

function pictureButton(source, name, onClick) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = name;
  image.src = source;
  image.alt = name;
  button.append(image);
  button.addEventListener("click", onClick);
  return button;
}

function listenForDrops(area) {
  const set = (isOver) => area.classList.toggle("over", isOver);
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); set(true); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) set(false); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    set(false);
    pickFiles(event.dataTransfer.files);
  });
}

function pickFiles(files) {
  if (files.length) detect([...files].map((file) => ({ name: file.name, blob: file })));
  $("file").value = ""; // so that the same file can be chosen again
}

/** Ask for the images one by one, so that a bad one fails alone. */
async function detect(images) {
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  for (const shot of shots) URL.revokeObjectURL(shot.url);
  shots = images.map((image) => ({ ...image, url: URL.createObjectURL(image.blob) }));
  for (const shot of shots) shot.button = pictureButton(shot.url, shot.name, () => look(shot));
  $("shots").replaceChildren(...shots.map((shot) => shot.button));
  $("shots").hidden = shots.length < 2;
  await look(shots[0]);
  for (const shot of shots) {
    await ask(shot, signal);
    if (signal.aborted) return;
    shot.button.classList.toggle("failed", shot.error !== undefined);
    if (shot === current) tell();
  }
}

async function ask(shot, signal) {
  try {
    const form = new FormData();
    form.append("images", shot.blob, shot.name);
    const started = performance.now();
    const response = await fetch(`detect?${query(everything)}`, { method: "POST", body: form, signal });
    const body = await response.json().catch(() => null);
    if (body === null) shot.error = `something else than the service answered, with status ${response.status}`;
    else if (response.ok) shot.answer = body;
    else shot.error = body.error.message;
    shot.took = `${shot.name}: ${Math.round(performance.now() - started)} ms`;
  } catch (error) {
    shot.error = `the service does not answer (${error.message})`;
  }
}

async function look(shot) {
  current = shot;
  for (const { button } of shots) button.setAttribute("aria-pressed", button === shot.button);
  tell();
  await showImage(shot);
}

/** What is known of the image that is shown. */
function tell() {
  const isWaiting = current.answer === undefined && current.error === undefined;
  $("drop").setAttribute("aria-busy", isWaiting);
  $("error").hidden = true;
  $("status").textContent = isWaiting ? `Looking at ${current.name} …` : current.took;
  if (current.error !== undefined) fail(current.error);
  show();
}

async function showImage({ url, name }) {
  const image = $("image");
  image.src = url;
  image.alt = name;
  $("figure").hidden = false;
  $("drop").classList.add("filled");
  try {
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    const scale = Math.max(1, SMALLEST_PX / Math.max(width, height));
    image.style.width = `min(${width * scale}px, ${(68 * width) / height}vh)`;
  } catch {
    if (current?.url !== url) return; // another image took its place
    $("figure").hidden = true; // the browser cannot show it; the service's error will say why
    $("drop").classList.remove("filled");
  }
}

function show() {
  const isBest = $("best").checked;
  const threshold = Number($("threshold").value);
  const lowest = (id) => (isBest ? (thresholds.by_class[id] ?? thresholds.overall).threshold : threshold);
  $("threshold-value").textContent = isBest ? "best" : threshold.toFixed(2);
  const parameters = query(isBest ? {} : { threshold });
  const address = new URL("detect", document.baseURI);
  address.search = parameters;
  $("curl").textContent = `curl -F images=@photo.jpg \\\n  '${address}'`;
  const answer = current?.answer;
  const result = answer?.results[0];
  const kept = result?.detections.filter((found) => found.score >= lowest(found.category_id)) ?? [];
  const parts = kept.map((found, index) => drawn(found, result, index));
  $("boxes").setAttribute("viewBox", `0 0 ${result?.width ?? 1} ${result?.height ?? 1}`);
  $("boxes").replaceChildren(...parts.map((part) => part.box).reverse()); // the best on top
  $("tags").replaceChildren(...parts.map((part) => part.tag).reverse());
  $("list").replaceChildren(...parts.map((part) => part.row));
  $("count").textContent = result ? `${kept.length} of ${result.detections.length} detections` : "Detections";
  $("hint").hidden = kept.length > 0 || (current !== null && !result); // what is wrong is said elsewhere
  if (result) $("hint").textContent = "No detection scores this high; lower the threshold.";
  $("json").textContent = JSON.stringify(
    answer ? { ...answer, results: [{ ...result, detections: kept }] } : {}, null, 2);
}

/** One detection three times: its box in the image, its tag beside it, its row in the list. */
function drawn(found, { width, height }, index) {
  const [x, y, w, h] = found.bbox;
  const hue = ((labels.get(found.category_id) ?? 0) * GOLDEN_RATIO * 360) % 360;
  const colour = `hsl(${hue} 85% 55%)`;

  const box = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ x, y, width: w, height: h, stroke: colour })) {
    box.setAttribute(key, value);
  }

  const tag = document.createElement("span");
  tag.textContent = `${found.category_name} ${found.score.toFixed(2)}`;
  tag.style.background = colour;
  if (x + w / 2 <= width / 2) {
    tag.style.left = `${(100 * x) / width}%`;
  } else { // grows to the left, so that it never leaves the image on the right
    tag.style.right = `${100 * (1 - (x + w) / width)}%`;
    tag.classList.add("right");
  }
  tag.style.top = `${(100 * y) / height}%`;
  if (y < height * 0.06) tag.classList.add("inside");

  const row = document.createElement("li");
  const swatch = document.createElement("i");
  swatch.style.background = colour;
  const name = document.createElement("span");
  name.textContent = found.category_name;
  const meter = document.createElement("span");
  const level = document.createElement("span");
  meter.className = "meter";
  level.style.background = colour;
  level.style.width = `${100 * found.score}%`;
  meter.append(level);
  const score = document.createElement("b");
  score.textContent = found.score.toFixed(2);
  row.append(swatch, name, meter, score);
  row.title = `${found.category_name}: x ${Math.round(x)}, y ${Math.round(y)}, ${Math.round(w)} × ${Math.round(h)} px`;
  const mark = (isOn) => { for (const part of [box, tag, row]) part.classList.toggle("on", isOn); };
  for (const part of [box, tag, row]) {
    part.dataset.index = index;
    part.addEventListener("pointerenter", () => mark(true));
    part.addEventListener("pointerleave", () => mark(false));
  }
  return { box, tag, row };
}

function fail(message) {
  $("status").textContent = "";
  $("error").textContent = message[0].toUpperCase() + message.slice(1);
  $("error").hidden = false;
}

async function copyJson() {
  try {
    await navigator.clipboard.writeText($("json").textContent);
  } catch {
    getSelection().selectAllChildren($("json")); // no clipboard without https: leave it selected
    return;
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

main();
