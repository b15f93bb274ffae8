// What plain HTML cannot do: messages of an action, and uploads.
window.dreambooth = {
  say(text, isProblem) {
    const place = document.getElementById("said");
    const said = document.createElement("p");
    said.textContent = text;
    said.className = isProblem ? "problem" : "done";
    const close = document.createElement("button");
    close.textContent = "Close";
    close.addEventListener("click", () => place.replaceChildren());
    said.append(close);
    place.replaceChildren(said);
    if (!isProblem) setTimeout(() => said.remove(), 8000);
  },
};

(() => {
  const zoneOf = (event) => event.target.closest?.("[data-drop]");

  async function send(url, file) {
    const answer = await fetch(url, { method: "POST", body: file });
    if (!answer.ok) throw new Error(await answer.text());
  }

  // Photos of a folder, and of its folder masks; the path without the folder's own name.
  function nameIn(path) {
    const parts = path.split("/").slice(1);
    return parts.length === 1 || (parts.length === 2 && parts[0] === "masks") ? parts.join("/") : null;
  }

  async function upload(zone, found, folder) {
    const told = zone.querySelector(".progress");
    const problems = [];
    let done = 0;
    if (!found.length) return;
    zone.classList.add("busy");
    for (const [name, file] of found) {
      told.textContent = `Uploading ${done + 1} of ${found.length}: ${name}`;
      try {
        await send(`/upload/${zone.dataset.drop}?name=${encodeURIComponent(name)}`, file);
        done += 1;
      } catch (error) {
        problems.push(`${name}: ${error.message}`);
      }
    }
    zone.classList.remove("busy");
    told.textContent = `${done} of ${found.length} files uploaded`;
    if (problems.length) dreambooth.say(problems.join("\n"), true);
    if (done) {
      const words = new URLSearchParams(folder ? { name: folder } : {});
      const go = () => location.assign(`/add/${zone.dataset.drop}?${words}`);
      problems.length ? setTimeout(go, 4000) : go();
    }
  }

  async function filesOf(entry, path) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return [[`${path}${entry.name}`, file]];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return found;
      for (const each of some) found.push(...(await filesOf(each, `${path}${entry.name}/`)));
    }
  }

  document.addEventListener("change", async (event) => {
    const input = event.target;
    if (input.dataset?.mask) {
      const photo = encodeURIComponent(input.dataset.photo);
      try {
        await send(`/mask/${encodeURIComponent(input.dataset.mask)}?photo=${photo}`, input.files[0]);
        location.reload();
      } catch (error) {
        dreambooth.say(error.message, true);
      }
      return;
    }
    const zone = zoneOf(event);
    if (!zone || input.type !== "file") return;
    const files = [...input.files];
    const isFolder = input.hasAttribute("webkitdirectory");
    const named = files.map((f) => [isFolder ? nameIn(f.webkitRelativePath) : f.name, f]);
    const folder = isFolder && files.length ? files[0].webkitRelativePath.split("/")[0] : "";
    await upload(zone, named.filter(([name]) => name), folder);
    input.value = "";
  });

  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, async (event) => {
      const zone = zoneOf(event);
      if (!zone) return;
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragover");
      if (kind !== "drop") return;
      const entries = [...event.dataTransfer.items].map((i) => i.webkitGetAsEntry()).filter(Boolean);
      const found = [];
      let folder = "";
      for (const entry of entries) {
        const all = await filesOf(entry, "");
        if (entry.isDirectory) folder = entry.name;
        for (const [path, file] of all) {
          const name = entry.isDirectory ? nameIn(path) : path;
          if (name) found.push([name, file]);
        }
      }
      await upload(zone, found, folder);
    });
  }
})();
