"use strict";
// Asks POST /predict for what was dropped, pasted or chosen, and shows the last answer.
const $ = (id) => document.getElementById(id);
const MIB = 2 ** 20, MOST_BYTES = Number(document.body.dataset.mostBytes);
let asking = null; // the request that is under way

$("curl").textContent = `curl -F file=@cat.jpg ${location.origin}/predict`;

function say(error, status) {
  $("error").textContent = error;
  $("error").hidden = !error;
  $("status").textContent = status;
}

function fail(text) {
  asking?.abort();
  asking = null;
  $("answer").classList.remove("asking");
  $("answer").hidden = true;
  say(text, "");
}

// picture: a file, or the address of an example
async function ask(picture, name, label) {
  asking?.abort();
  const mine = (asking = new AbortController()), { signal } = mine;
  say("", "Asking …");
  $("answer").classList.add("asking");
  try {
    const file = typeof picture === "string" ? await (await fetch(picture, { signal })).blob() : picture;
    if (file.size === 0) return fail(`${name}: is empty`);
    if (file.size > MOST_BYTES) return fail(`${name}: has more than ${MOST_BYTES / MIB} MiB`);
    const form = new FormData();
    form.append("file", file, name);
    const reply = await fetch("/predict?input=true&explain=true", { method: "POST", body: form, signal });
    const found = await reply.json();
    if (mine !== asking) return;
    if (reply.ok) show(found, name, label);
    else fail(found.error);
  } catch (error) {
    if (mine === asking) fail(`no answer from ${location.host}: is python -m cifar_lab.serve still running, and is ${name} still there?`);
  }
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

function show(found, name, label) {
  if (found.checkpoint !== document.body.dataset.checkpoint) {
    return fail("another run is served here now: reload the page");
  }
  asking = null;
  const [best] = found.top, heading = `${best.class}, ${percent(best.probability)}`;
  say("", heading);
  $("heading").textContent = heading;
  $("asked").textContent = label === undefined ? name : `a test image, labelled ${label}`;
  $("top").replaceChildren(...found.top.map(row));
  picture("input", found.input_png, `${name} as the network sees it`);
  picture("map", found.map_png, `where it saw ${best.class}, bright on dark`);
  $("map").querySelector("figcaption").textContent = `where it saw ${best.class} (Grad-CAM)`;
  $("no-map").textContent = found.map_png ? `About the map: ${found.note}.` : `No activation map: ${found.note}.`;
  $("no-map").hidden = !found.note;
  $("answer").hidden = false;
  $("answer").classList.remove("asking");
}

function row(one) {
  const item = document.createElement("li"), line = document.createElement("div");
  line.className = "line";
  for (const text of [one.class, percent(one.probability)]) {
    line.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  const track = document.createElement("div"), bar = document.createElement("div");
  track.className = "track";
  track.setAttribute("aria-hidden", "true"); // the text says it
  bar.className = "bar";
  bar.style.width = `${100 * one.probability}%`;
  track.append(bar);
  item.append(line, track);
  return item;
}

function picture(id, png, alt) {
  $(id).hidden = !png;
  const image = $(id).querySelector("img");
  if (png) image.src = `data:image/png;base64,${png}`;
  image.alt = png ? alt : "";
}

// what a drop or the clipboard holds: files, or only text about one
function take(data, where) {
  const files = [...data.files];
  if (files.length > 1) fail(`${files.length} files were ${where}: give one at a time`);
  else if (files.length === 1) ask(files[0], files[0].name || "picture");
  else fail(`what was ${where} is no picture; if it is an address, save the picture first: nothing is fetched from elsewhere`);
}

$("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target, "chosen");
  event.target.value = ""; // the same file can be chosen again
});
// a picture that misses the frame must not replace the page
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer, "dropped");
});
addEventListener("paste", (event) => { event.preventDefault(); take(event.clipboardData, "pasted"); });
$("examples")?.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) ask(`/examples/${button.dataset.file}`, button.dataset.file, button.dataset.label);
});
