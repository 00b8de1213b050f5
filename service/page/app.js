// The page: sends an image to POST /detect with threshold 0, so that the slider only has to filter.

const SVG = "http://www.w3.org/2000/svg";
const SMALLEST_PX = 480; // a smaller image is enlarged to this, or its labels would cover it
const GOLDEN_RATIO = 0.618034; // steps of it spread any number of hues over the circle
const $ = (id) => document.getElementById(id);

const MODEL = new URLSearchParams(location.search).get("model"); // else the first that is served

let answer = null; // the last response, all scores
const everything = { threshold: 0 }; // asked for, so that the slider only has to filter
let pending = null; // AbortController of the request in flight
let labels = new Map(); // class id -> its position, which gives the colour

async function main() {
  $("file").addEventListener("change", () => pickFile($("file").files[0]));
  $("threshold").addEventListener("input", show);
  $("copy").addEventListener("click", copyJson);
  document.addEventListener("paste", (event) => pickFile(event.clipboardData.files[0]));
  listenForDrops($("drop"));
  $("curl").textContent =
    `curl -F images=@photo.jpg '${new URL("detect", document.baseURI)}?${query({ threshold: 0.3 })}'`;
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
      `${model.name} (${model.variant.replace("_", "-")}), ${model.classes.length} classes${ap}`;
    everything.num_detections = model.num_detections;
    labels = new Map(model.classes.map((info, label) => [info.id, label]));
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

function sampleButton(path, index) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  const source = `${path}?${query({})}`;
  button.type = "button";
  image.src = source;
  image.alt = `Sample image ${index + 1}`;
  button.append(image);
  button.addEventListener("click", async () => {
    const response = await fetch(source);
    detect(await response.blob(), path.split("/").at(-1));
  });
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
    pickFile(event.dataTransfer.files[0]);
  });
}

function pickFile(file) {
  if (file) detect(file, file.name);
  $("file").value = ""; // so that the same file can be chosen again
}

async function detect(blob, name) {
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  answer = null;
  show();
  $("error").hidden = true;
  $("status").textContent = `Looking at ${name} …`;
  $("drop").setAttribute("aria-busy", "true");
  await showImage(blob, name);
  try {
    const form = new FormData();
    form.append("images", blob, name);
    const started = performance.now();
    const response = await fetch(`detect?${query(everything)}`, { method: "POST", body: form, signal });
    const body = await response.json();
    if (signal.aborted) return;
    if (!response.ok) {
      fail(body.error.message);
      return;
    }
    answer = body;
    $("status").textContent = `${name}: ${Math.round(performance.now() - started)} ms`;
    show();
  } catch (error) {
    if (!signal.aborted) fail(`the service does not answer (${error.message})`);
  } finally {
    if (!signal.aborted) $("drop").removeAttribute("aria-busy");
  }
}

async function showImage(blob, name) {
  const image = $("image");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.alt = name;
  $("figure").hidden = false;
  $("drop").classList.add("filled");
  try {
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    const scale = Math.max(1, SMALLEST_PX / Math.max(width, height));
    image.style.width = `min(${width * scale}px, ${(68 * width) / height}vh)`;
  } catch {
    $("figure").hidden = true; // the browser cannot show it; the service will say why it cannot
    $("drop").classList.remove("filled");
  }
}

function show() {
  const threshold = Number($("threshold").value);
  $("threshold-value").textContent = threshold.toFixed(2);
  const result = answer?.results[0];
  const kept = result?.detections.filter((found) => found.score >= threshold) ?? [];
  const parts = kept.map((found, index) => drawn(found, result, index));
  $("boxes").setAttribute("viewBox", `0 0 ${result?.width ?? 1} ${result?.height ?? 1}`);
  $("boxes").replaceChildren(...parts.map((part) => part.box).reverse()); // the best on top
  $("tags").replaceChildren(...parts.map((part) => part.tag).reverse());
  $("list").replaceChildren(...parts.map((part) => part.row));
  $("count").textContent = result ? `${kept.length} of ${result.detections.length} detections` : "Detections";
  $("hint").hidden = kept.length > 0;
  if (result) $("hint").textContent = "None has so high a score; move the threshold down.";
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
  row.title = `x ${Math.round(x)}, y ${Math.round(y)}, ${Math.round(w)} × ${Math.round(h)} px`;
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
