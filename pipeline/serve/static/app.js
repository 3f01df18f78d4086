"use strict";

const by = (id) => document.getElementById(id);
const { maxBytes, threshold } = document.body.dataset;
const find = by("find");
let current = null; // the file that is shown
let turn = 0; // a later picture's answer must not be overtaken by an earlier one's
let shownUrl = null;

const percent = (part) => `${(100 * part).toFixed(1)} %`;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MB`;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function complain(text, remedy) {
  const place = by("problem");
  place.textContent = text;
  if (remedy) place.append(remedy);
  place.hidden = false;
  by("status").textContent = "";
}

function clear() {
  by("problem").hidden = true;
  by("outcome").hidden = true;
  by("faces").replaceChildren();
  for (const box of document.querySelectorAll(".box")) box.remove();
}

function show(file) {
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(file);
  const picture = by("picture");
  return new Promise((resolve) => {
    picture.onload = () => resolve(true);
    picture.onerror = () => resolve(false);
    picture.src = shownUrl;
  });
}

async function classify(file, lookForFaces) {
  current = file;
  const mine = ++turn;
  clear();
  if (!file.size) return complain("This file is empty. Choose another picture.");
  if (file.size > Number(maxBytes)) {
    return complain(`This file has ${megabytes(file.size)}; the server takes up to ${megabytes(Number(maxBytes))}. Choose a smaller picture.`);
  }
  by("status").textContent = "Looking at the picture…";
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    return complain("The browser can't read this file. Was it moved or deleted?");
  }
  const start = performance.now();
  let response, row;
  try {
    response = await fetch(`/predict?faces=${lookForFaces}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body,
    });
    row = await response.json();
  } catch {
    if (mine === turn) complain("The server doesn't answer. Is it still running?", again(lookForFaces));
    return;
  }
  const spent = performance.now() - start;
  if (mine !== turn) return;
  if (response.status === 503) return complain("The server is busy. ", again(lookForFaces));
  if (!response.ok) return complain(`The server refused the picture: ${row.message || response.status}.`);
  if (row.error) {
    const whole = lookForFaces && row.error.startsWith("no face");
    if (whole) return complain("No face was found in this picture. If it shows one face and little else: ", wholePicture());
    return complain(`The picture could not be judged: ${row.error}.`);
  }
  const visible = await show(file);
  if (mine === turn) present(row, visible, spent, response.headers.get("Server-Timing"));
}

function again(lookForFaces) {
  const button = element("button", "Try again");
  button.type = "button";
  button.onclick = () => classify(current, lookForFaces);
  return button;
}

function wholePicture() {
  const button = element("button", "Judge the whole picture");
  button.type = "button";
  button.onclick = () => { find.checked = false; classify(current, false); };
  return button;
}

function present(row, visible, spent, timing) {
  by("picture").hidden = !visible;
  by("unseen").hidden = visible;
  const faces = row.faces || [row];
  faces.forEach((face, i) => {
    const panel = facePanel(face, i, row.faces);
    by("faces").append(panel);
    if (face.box && visible) by("stage").append(faceBox(face, i, panel));
  });
  by("outcome").hidden = false;
  const inside = /app;dur=([\d.]+)/.exec(timing || "");
  by("latency").textContent = `Answered by ${row.model_version} in ${spent.toFixed(0)} ms${inside ? `, of which the server took ${Number(inside[1]).toFixed(0)} ms` : ""}.`;
  const words = faces.map((face, i) => `${row.faces ? `face ${i + 1} ` : ""}${face.abstain ? "unsure, perhaps " : ""}${face.label} ${percent(face.probabilities[face.label])}`);
  const count = row.faces ? `${faces.length} ${faces.length === 1 ? "face" : "faces"}: ` : "The whole picture: ";
  by("status").textContent = `${count}${words.slice(0, 5).join("; ")}${words.length > 5 ? "; and more below" : ""}.`;
}

function facePanel(face, i, several) {
  const panel = element("section", "", "face");
  const probability = face.probabilities[face.label];
  panel.append(element("h3", `${several ? `Face ${i + 1}: ` : ""}${face.abstain ? "unsure" : face.label}`));
  if (face.abstain) {
    const limit = threshold ? `, and it takes ${percent(Number(threshold))} for an answer to count` : "";
    panel.append(element("p", `The model is too unsure to answer: ${face.label} is likeliest with ${percent(probability)}${limit}.`, "unsure"));
  }
  const table = element("table");
  for (const [name, value] of Object.entries(face.probabilities).sort((a, b) => b[1] - a[1])) {
    const line = element("tr", "", name === face.label ? "top" : "");
    const label = element("th", name);
    label.scope = "row";
    const cell = element("td");
    const track = element("span", "", "track");
    const fill = element("span");
    fill.style.width = `${100 * value}%`;
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    cell.append(track);
    line.append(label, cell, element("td", percent(value)));
    table.append(line);
  }
  table.setAttribute("aria-label", `Probabilities${several ? ` of face ${i + 1}` : ""}`);
  panel.append(table);
  return panel;
}

function faceBox(face, i, panel) {
  const picture = by("picture");
  const [left, top, width, height] = face.box;
  const box = element("div", "", "box");
  box.append(element("span", `${i + 1} ${face.abstain ? "unsure" : face.label}`));
  box.setAttribute("aria-hidden", "true"); // the panels say the same
  box.style.left = `${(100 * left) / picture.naturalWidth}%`;
  box.style.top = `${(100 * top) / picture.naturalHeight}%`;
  box.style.width = `${(100 * width) / picture.naturalWidth}%`;
  box.style.height = `${(100 * height) / picture.naturalHeight}%`;
  box.classList.toggle("high", top < 0.06 * picture.naturalHeight);
  for (const part of [box, panel]) {
    part.onmouseenter = () => [box, panel].forEach((one) => one.classList.add("on"));
    part.onmouseleave = () => [box, panel].forEach((one) => one.classList.remove("on"));
  }
  return box;
}

document.body.classList.toggle("touch", navigator.maxTouchPoints > 0); // others have no camera that a file comes from

function take(files) {
  const file = [...(files || [])][0];
  if (file) classify(file, find.checked);
}

for (const id of ["file", "camera"]) {
  by(id).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
for (const link of document.querySelectorAll("a[href='#card']")) link.addEventListener("click", () => { by("card").open = true; });
find.addEventListener("change", () => { if (current) take([current]); });
document.addEventListener("paste", (event) => {
  const files = event.clipboardData && event.clipboardData.files;
  if (files && files.length) {
    event.preventDefault();
    take(files);
  }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); by("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) by("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  by("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else complain("What was dropped is no file. Save the picture first, or copy and paste it.");
});
