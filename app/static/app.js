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
