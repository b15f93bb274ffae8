// Pictures in tables: arrow keys move between them, Enter or a click enlarges one. And the keys of
// the room Judge, while the focus is on its pair. Delegated, as the server replaces the content.
(() => {
  "use strict";
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  let dialog = null;
  let current = null;

  const sheetOf = (button) => button.closest("[data-sheet]");
  const place = (button) => [Number(button.dataset.row), Number(button.dataset.column)];

  // The nearest picture in a direction; a column without a picture of that seed is passed over.
  function neighbour(button, key) {
    const [row, column] = place(button);
    const sideways = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    const ahead = all(sheetOf(button), "button.picture").filter((other) => {
      const [r, c] = place(other);
      return sideways ? r === row && (c - column) * sign > 0 : c === column && (r - row) * sign > 0;
    });
    const distance = (other) => Math.abs(place(other)[0] - row) + Math.abs(place(other)[1] - column);
    return ahead.sort((one, other) => distance(one) - distance(other))[0];
  }

  function makeCurrentStop(button) {
    for (const other of all(sheetOf(button), "button.picture")) other.tabIndex = -1;
    button.tabIndex = 0;
  }

  function element(name, parent, attributes = {}) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  }

  function makeDialog() {
    dialog = element("dialog", document.body, { "aria-labelledby": "enlarged-name" });
    const inside = element("div", dialog, { class: "enlarged" });
    const pictures = element("div", inside, { class: "pictures" });
    element("img", pictures);
    const words = element("div", inside, { class: "words" });
    element("h2", words, { id: "enlarged-name" });
    element("p", words, { class: "small" });
    const turns = element("div", inside, { class: "turns" });
    const names = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
    const spoken = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
    for (const [key, text] of Object.entries(names)) {
      const button = element("button", turns, { type: "button", "data-turn": key, "aria-label": `One ${spoken[key]}` });
      button.textContent = text;
    }
    element("button", turns, { type: "button", "data-close": "" }).textContent = "Close";
    dialog.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      event.stopPropagation();
      turn(event.key);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
      const button = event.target.closest("[data-turn]");
      if (button) turn(button.dataset.turn);
    });
    dialog.addEventListener("close", () => {
      if (!current || !current.isConnected) return;
      makeCurrentStop(current);
      current.focus();
    });
  }

  function show(button) {
    current = button;
    const small = button.querySelector("img");
    const big = dialog.querySelector("img");
    big.src = small.src;
    big.alt = small.alt;
    dialog.querySelector("h2").textContent = button.dataset.name;
    dialog.querySelector("p").textContent = button.dataset.caption;
    dialog.classList.toggle("chosen", button.classList.contains("chosen"));
    for (const turn of all(dialog, "[data-turn]")) {
      // A disabled button would lose the focus, and the dialog the keys.
      turn.setAttribute("aria-disabled", String(!neighbour(button, turn.dataset.turn)));
    }
  }

  function turn(key) {
    const next = neighbour(current, key);
    if (next) show(next);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.picture");
    if (!button || !sheetOf(button)) return;
    if (!dialog) makeDialog();
    makeCurrentStop(button);
    show(button);
    dialog.showModal();
  });

  document.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
    const button = event.target.closest?.("button.picture");
    if (button && sheetOf(button)) {
      event.preventDefault();
      const next = neighbour(button, event.key);
      if (!next) return;
      makeCurrentStop(next);
      next.focus();
      return;
    }
    const votes = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };
    const vote = event.target.closest?.("[data-judge]")?.querySelector(`[data-vote="${votes[event.key]}"]`);
    if (!vote) return;
    event.preventDefault();
    vote.click();
  });
})();
