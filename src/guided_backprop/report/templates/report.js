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
