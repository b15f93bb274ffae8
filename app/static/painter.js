// The brush for masks: <mask-painter> wires the controls inside it to a canvas over the photo. The
// mask is the alpha channel of that canvas, so that the eraser only has to take it away.
(() => {
  "use strict";
  const COLOUR = [255, 45, 149];
  const MOST_STEPS = 20;
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const percent = (part) => `${Math.round(100 * part)} %`;
  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  async function pictureOf(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  class MaskPainter extends HTMLElement {
    connectedCallback() {
      this.find = (selector) => this.querySelector(selector);
      this.stage = this.find(".stage");
      this.canvas = this.find("canvas");
      this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
      this.past = [];
      this.future = [];
      this.tool = "brush";
      this.listen();
      this.load().catch(() => this.refuse("The photo cannot be loaded. Reload the page."));
    }

    async load() {
      const answer = await fetch(this.dataset.source);
      if (!answer.ok) return this.refuse(await answer.text());
      this.layers = await answer.json();
      [this.canvas.width, this.canvas.height] = this.layers.canvas;
      this.stage.style.setProperty("--ratio", this.layers.width / this.layers.height);
      this.find(".stage img").src = this.layers.photo;
      this.spot = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
      if (this.layers.mask) await this.take(this.layers.mask);
      this.past = [];
      this.isChanged = false;
      if (this.dataset.start) return this.show(`Started from the automatic mask. ${await this.take(this.dataset.start)}`);
      const origin = this.layers.source === "alpha" ? "the transparency of the photo" : this.layers.source;
      const problem = this.layers.problem ? `Not used: ${this.layers.problem}. ` : "";
      this.show(`${problem}${origin ? `Shown: the mask from ${origin}. ` : "No mask yet. "}${this.share()}`);
    }

    show(text) {
      this.tell(text);
      this.move(0, 0);
      this.classList.add("ready");
    }

    listen() {
      this.addEventListener("click", (event) => {
        const action = event.target.closest("[data-act]")?.dataset.act;
        if (action && this.spot) this[action]();
      });
      this.find("input[type=range]").addEventListener("input", () => this.move(0, 0));
      this.stage.addEventListener("pointerdown", (event) => this.press(event));
      this.stage.addEventListener("pointermove", (event) => this.drag(event));
      for (const end of ["pointerup", "pointercancel"]) this.stage.addEventListener(end, () => this.lift());
      this.stage.addEventListener("keydown", (event) => this.key(event));
      this.stage.addEventListener("keyup", (event) => event.key === " " && this.lift());
      this.stage.addEventListener("blur", () => this.lift());
      this.addEventListener("keydown", (event) => {
        if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
        event.preventDefault();
        event.shiftKey ? this.redo() : this.undo();
      });
      window.addEventListener("beforeunload", (event) => this.isChanged && event.preventDefault());
    }

    // ---- strokes ------------------------------------------------------------------------------

    get width() {
      const share = Number(this.find("input[type=range]").value) / 100;
      return share * Math.max(this.canvas.width, this.canvas.height);
    }

    at(event) {
      const box = this.canvas.getBoundingClientRect();
      const scale = this.canvas.width / box.width;
      return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
    }

    press(event) {
      if (!event.isPrimary || event.button !== 0 || !this.spot) return;
      event.preventDefault();
      this.stage.focus({ preventScroll: true });
      this.stage.setPointerCapture(event.pointerId);
      this.begin(this.at(event));
    }

    drag(event) {
      if (!event.isPrimary || !this.spot) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const each of passed.length ? passed : [event]) this.reach(this.at(each));
    }

    begin(spot) {
      this.remember();
      this.isDown = true;
      this.spot = spot;
      this.reach(spot);
    }

    reach(spot) {
      if (this.isDown) this.line(this.spot, spot);
      this.spot = spot;
      this.showRing();
    }

    lift() {
      if (!this.isDown) return;
      this.isDown = false;
      this.tell(this.share());
    }

    line(from, to) {
      this.pen.globalCompositeOperation = this.tool === "brush" ? "source-over" : "destination-out";
      this.pen.strokeStyle = `rgb(${COLOUR})`;
      this.pen.lineWidth = this.width;
      this.pen.lineCap = "round";
      this.pen.beginPath();
      this.pen.moveTo(from.x, from.y);
      this.pen.lineTo(to.x + 0.01, to.y); // a line without a length would draw nothing
      this.pen.stroke();
    }

    key(event) {
      if (!this.spot || event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = { "[": "smaller", "]": "larger", b: "brush", e: "eraser" };
      if (MOVES[event.key]) {
        const [x, y] = MOVES[event.key];
        const step = event.shiftKey ? 1 : Math.max(1, this.width / 2);
        this.move(x * step, y * step);
      } else if (event.key === " ") {
        if (!event.repeat) this.begin(this.spot);
      } else if (acts[event.key]) {
        this[acts[event.key]]();
      } else {
        return;
      }
      event.preventDefault();
    }

    move(x, y) {
      if (!this.spot) return;
      this.reach({
        x: within(this.spot.x + x, 0, this.canvas.width),
        y: within(this.spot.y + y, 0, this.canvas.height),
      });
      if (x || y) this.tell(this.place());
    }

    showRing() {
      const ring = this.find(".ring");
      ring.style.left = `${(100 * this.spot.x) / this.canvas.width}%`;
      ring.style.top = `${(100 * this.spot.y) / this.canvas.height}%`;
      ring.style.width = `${(100 * this.width) / this.canvas.width}%`;
    }

    // ---- what the buttons do --------------------------------------------------------------------

    brush() {
      this.choose("brush");
    }

    eraser() {
      this.choose("eraser");
    }

    choose(tool) {
      this.tool = tool;
      for (const each of ["brush", "eraser"]) {
        this.find(`[data-act=${each}]`).setAttribute("aria-pressed", String(each === tool));
      }
      this.tell(`${tool === "brush" ? "Brush" : "Eraser"}.`);
    }

    smaller() {
      this.resize(-1);
    }

    larger() {
      this.resize(1);
    }

    resize(steps) {
      const slider = this.find("input[type=range]");
      slider.value = Number(slider.value) + steps;
      this.move(0, 0);
      this.tell(`Size ${slider.value} % of the photo.`);
    }

    fill() {
      this.remember();
      this.pen.globalCompositeOperation = "source-over";
      this.pen.fillStyle = `rgb(${COLOUR})`;
      this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
      this.tell(this.share());
    }

    clear() {
      this.remember();
      this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
      this.tell(this.share());
    }

    undo() {
      this.step(this.past, this.future, "Undone");
    }

    redo() {
      this.step(this.future, this.past, "Done again");
    }

    step(from, to, word) {
      const pixels = from.pop();
      if (!pixels) return this.tell(`Nothing more to ${word === "Undone" ? "undo" : "redo"}.`);
      to.push(this.pixels());
      this.pen.putImageData(pixels, 0, 0);
      this.isChanged = true;
      this.tell(`${word}. ${this.share()}`);
    }

    // Replace the mask with a grey picture, white where the subject is; one step to undo.
    async take(source) {
      const image = await pictureOf(source);
      this.remember();
      this.pen.globalCompositeOperation = "copy";
      this.pen.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
      const pixels = this.pixels();
      for (let i = 0; i < pixels.data.length; i += 4) {
        pixels.data.set([...COLOUR, pixels.data[i]], i);
      }
      this.pen.putImageData(pixels, 0, 0);
      this.tell(this.share());
      return this.share();
    }

    // ---- saving -----------------------------------------------------------------------------------

    async save() {
      if (this.isSaving) return;
      const least = Number(this.dataset.least);
      if (this.painted() < least) {
        const hint = "Paint the subject, or remove the mask on the page of the subject.";
        return this.refuse(`Not saved: less than ${percent(least)} of the photo is painted. ${hint}`);
      }
      this.isSaving = true;
      this.find("[data-act=save]").setAttribute("aria-busy", "true");
      try {
        await this.send();
      } catch {
        this.refuse("Not saved: the app cannot be reached. Your painting is still here, so save again.");
      }
      this.find("[data-act=save]").removeAttribute("aria-busy");
      this.isSaving = false;
    }

    async send() {
      const { width, height } = this.layers;
      const before = this.past.length;
      const body = await this.png(width, height);
      if (!body) return this.refuse(`Not saved: this browser cannot make a picture of ${width} × ${height} px.`);
      const seen = encodeURIComponent(this.layers.version);
      const answer = await fetch(`${this.dataset.source}&seen=${seen}`, { method: "POST", body });
      this.layers.version = answer.headers.get("Mask-Version") ?? this.layers.version;
      if (!answer.ok) return this.refuse(await answer.text());
      this.isChanged = this.past.length !== before;
      dreambooth.say(`The mask is saved, ${width} × ${height} px.`, false);
    }

    // White on black, in the photo's own size.
    png(width, height) {
      const page = document.createElement("canvas");
      [page.width, page.height] = [width, height];
      const pen = page.getContext("2d");
      pen.drawImage(this.canvas, 0, 0, width, height);
      for (const [mode, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
        pen.globalCompositeOperation = mode;
        pen.fillStyle = colour;
        pen.fillRect(0, 0, width, height);
      }
      return new Promise((resolve) => page.toBlob(resolve, "image/png"));
    }

    // ---- the state, in pixels and in words ----------------------------------------------------------

    pixels() {
      return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
    }

    remember() {
      this.past.push(this.pixels());
      if (this.past.length > MOST_STEPS) this.past.shift();
      this.future = [];
      this.isChanged = true;
    }

    painted() {
      const { data } = this.pixels();
      let sum = 0;
      for (let i = 3; i < data.length; i += 4) sum += data[i];
      return sum / (data.length / 4) / 255;
    }

    share() {
      return `Subject: ${percent(this.painted())} of the photo.`;
    }

    place() {
      const { x, y } = this.spot;
      const [left, top] = [x / this.canvas.width, y / this.canvas.height];
      const pixel = this.pen.getImageData(within(x, 0, this.canvas.width - 1), within(y, 0, this.canvas.height - 1), 1, 1);
      const what = pixel.data[3] > 127 ? "subject" : "background";
      return `${percent(left)} from the left, ${percent(top)} from the top: ${what}.`;
    }

    tell(text) {
      this.find(".told").textContent = text;
    }

    refuse(text) {
      dreambooth.say(text, true);
    }
  }

  customElements.define("mask-painter", MaskPainter);
})();
