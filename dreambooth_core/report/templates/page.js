// The page without it shows everything; the script enlarges pictures, moves between them by key,
// folds seeds, and copies commands.
(() => {
  "use strict";
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const dialog = document.querySelector("dialog");
  const big = dialog.querySelector("img");
  const said = document.querySelector("#said");
  let current = null;

  const sheetOf = (button) => button.closest("[data-sheet]");
  const place = (button) => [Number(button.dataset.row), Number(button.dataset.column)];
  const isShown = (button) => button.offsetParent !== null;

  // The nearest picture in a direction; a column without a picture of that seed is passed over.
  function neighbour(button, key, candidates) {
    const [row, column] = place(button);
    const sideways = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    const ahead = candidates.filter((other) => {
      const [r, c] = place(other);
      return sideways ? r === row && (c - column) * sign > 0 : c === column && (r - row) * sign > 0;
    });
    const distance = (other) => {
      const [r, c] = place(other);
      return Math.abs(r - row) + Math.abs(c - column);
    };
    return ahead.sort((one, other) => distance(one) - distance(other))[0];
  }

  function makeCurrentStop(button) {
    for (const other of all(sheetOf(button), "button.picture")) other.tabIndex = -1;
    button.tabIndex = 0;
  }

  function show(button) {
    current = button;
    const image = button.querySelector("img");
    big.src = image.src;
    big.alt = image.alt;
    dialog.querySelector("#enlarged-name").textContent = button.dataset.name;
    dialog.querySelector("#enlarged-prompt").textContent = button.dataset.prompt;
    dialog.querySelector("#enlarged-caption").textContent = button.dataset.caption;
    dialog.classList.toggle("chosen", button.classList.contains("chosen"));
    const photo = document.getElementById(`photo-${button.dataset.photo}`);
    const nearest = dialog.querySelector("#nearest");
    nearest.hidden = !photo;
    if (photo) {
      nearest.querySelector("img").src = photo.src;
      nearest.querySelector("img").alt = `the nearest ${photo.alt}`;
    }
    const others = all(sheetOf(button), "button.picture");
    for (const turn of all(dialog, "[data-turn]")) {
      // A disabled button would lose the focus, and the dialog the keys.
      const isEnd = !neighbour(button, turn.dataset.turn, others);
      turn.setAttribute("aria-disabled", String(isEnd));
    }
  }

  function turn(key) {
    const next = neighbour(current, key, all(sheetOf(current), "button.picture"));
    if (next) show(next);
  }

  for (const sheet of all(document, "[data-sheet]")) {
    const first = sheet.querySelector("button.picture");
    if (first) makeCurrentStop(first);
    sheet.addEventListener("click", (event) => {
      const button = event.target.closest("button.picture");
      if (!button) return;
      makeCurrentStop(button);
      show(button);
      dialog.showModal();
    });
    sheet.addEventListener("keydown", (event) => {
      const button = event.target.closest("button.picture");
      if (!button || !event.key.startsWith("Arrow")) return;
      const shown = all(sheet, "button.picture").filter(isShown);
      const next = neighbour(button, event.key, shown);
      event.preventDefault();
      if (!next) return;
      makeCurrentStop(next);
      next.focus();
    });
  }

  dialog.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    turn(event.key);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  for (const button of all(dialog, "[data-turn]")) {
    button.addEventListener("click", () => turn(button.dataset.turn));
  }
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (!current || !isShown(current)) return;
    makeCurrentStop(current);
    current.focus();
  });

  function fold(body, folded) {
    body.classList.toggle("folded", folded);
    body.querySelector("[data-seeds]")?.setAttribute("aria-expanded", String(!folded));
  }
  for (const sheet of all(document, "[data-sheet]")) {
    const bodies = all(sheet, "tbody").filter((body) => body.querySelector("[data-seeds]"));
    for (const body of bodies) {
      fold(body, true);
      body.querySelector("[data-seeds]").addEventListener("click", () => {
        fold(body, !body.classList.contains("folded"));
      });
    }
    const every = document.querySelector(`[data-all-seeds="${sheet.dataset.sheet}"]`);
    every?.addEventListener("change", () => bodies.forEach((body) => fold(body, !every.checked)));
  }

  async function copied(text, code) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // A page inside another one (MLflow's) may not write to the clipboard: select instead.
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      return document.execCommand("copy");
    }
  }
  // Delegated, as the commands are replaced with the registry's state.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    const done = await copied(code.textContent, code);
    button.textContent = done ? "Copied" : "Selected";
    said.textContent = done ? `Copied: ${code.textContent}` : "Selected; copy it with Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
})();
