"use strict";
// The slider between photo and map: dragged on the picture, or moved with the keys; the chosen map is what it shows.
for (const look of document.querySelectorAll("[data-look]")) {
  const stage = look.querySelector(".stage");
  const over = look.querySelector(".over");
  const range = look.querySelector("input[type=range]");

  const cover = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % map`);
  };
  const choose = () => {
    const map = look.querySelector("input[type=radio]:checked ~ img");
    if (!map) return;
    over.src = map.src;
    over.alt = map.alt;
  };
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(Math.max(share, 0), 1));
    cover();
  };

  look.classList.add("live");
  look.querySelector(".range").hidden = false;
  over.hidden = false;
  range.addEventListener("input", cover);
  look.addEventListener("change", choose);
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  choose();
  cover();
}

// What sorts and filters the images, and chooses their maps: on a page, and in an index.
for (const controls of document.querySelectorAll("[data-controls]")) {
  const field = (name) => controls.querySelector(`[data-${name}]`);
  const lists = [...document.querySelectorAll("[data-list]")].filter((list) => list.children.length);
  const by_number = (one, other) => one.dataset.number - other.dataset.number;
  const orders = {
    number: by_number,
    label: (one, other) => one.dataset.label.localeCompare(other.dataset.label, "en", { numeric: true }),
    highest: (one, other) => other.dataset.score - one.dataset.score,
    lowest: (one, other) => one.dataset.score - other.dataset.score,
  };

  const is_within = (item) => {
    const { label, score } = item.dataset;
    const [from, to] = [field("from").value, field("to").value];
    if (field("class").value && label !== field("class").value) return false;
    return (from === "" || Number(score) >= Number(from)) && (to === "" || Number(score) <= Number(to));
  };
  const arrange = () => {
    const order = orders[field("sort").value];
    for (const list of lists) {
      const items = [...list.children].sort((one, other) => order(one, other) || by_number(one, other));
      for (const item of items) item.hidden = !is_within(item);
      list.append(...items);
    }
    const all = [...lists[0].children];
    const shown = all.filter((item) => !item.hidden).length;
    field("status").textContent = shown === all.length ? `${all.length} images` : `${shown} of ${all.length} images`;
  };

  // A map over all photos; of a method that is not shown, the first that is.
  const over_all = () => {
    for (const maps of document.querySelectorAll("fieldset.maps")) {
      const chosen = maps.querySelector(`.tile:not([hidden]) input[value="${field("map").value}"]`);
      if (!chosen) continue;
      chosen.checked = true;
      chosen.dispatchEvent(new Event("change", { bubbles: true }));
    }
  };
  const show = () => {
    const boxes = [...controls.querySelectorAll("[data-shown]")];
    const methods = boxes.filter((box) => box.checked).map((box) => box.value);
    const shown = (part) => methods.includes(part.dataset.method);
    for (const tile of document.querySelectorAll(".tile")) tile.hidden = !shown(tile);
    for (const option of field("map").options) option.hidden = option.disabled = !shown(option);
    // One is always shown.
    for (const box of boxes) box.disabled = methods.length === 1 && box.checked;
    if (field("map").selectedOptions[0]?.disabled ?? true) {
      field("map").value = [...field("map").options].find((option) => !option.disabled).value;
    }
    over_all();
  };

  const count = new Map();
  for (const { dataset } of lists[0].children) count.set(dataset.label, (count.get(dataset.label) || 0) + 1);
  const labels = [...count.keys()].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
  for (const label of labels) field("class").append(new Option(`${label} (${count.get(label)})`, label));
  for (const name of ["sort", "class"]) field(name).addEventListener("change", arrange);
  for (const name of ["from", "to"]) field(name).addEventListener("input", arrange);
  if (field("map")) {
    field("map").addEventListener("change", over_all);
    for (const box of controls.querySelectorAll("[data-shown]")) box.addEventListener("change", show);
  }
  controls.hidden = false;
}
