/* What the page needs from the browser itself: theme, pasting, drawing, one click handler, and honest error messages. */
(() => {
  const set = (id, props) => window.dash_clientside.set_props(id, props);
  const element = (id) => document.getElementById(id);
  // A place of its own, which no answer wipes: it goes when something new is tried.
  const say = (text) => set("message", { children: text });
  const fresh = () => { if (element("message")?.textContent) say(""); };
  const limit = () => Number(element("page").dataset.limit);
  const tooLarge = (what, bytes) =>
    `${what}: ${(bytes / 1e6).toFixed(1)} MB, but ${limit() / 1e6} MB at once is the limit. Make it smaller, or send fewer.`;

  // ---- pictures go one batch at a time: the page would drop an answer that another request has overtaken
  let count = 0, shown = [], under_way = false;
  const queue = [];
  const newId = () => `${Date.now()}-${count++}`;
  const next = () => {
    under_way = queue.length > 0;
    if (!under_way) return;
    shown = queue.shift();
    set("pictures", { data: shown });
  };
  // What was sent, to open it again from the history: the latest 30 MB of it, while the page is open.
  const sent = new Map();
  const keepSent = (picture) => {
    sent.delete(picture.id);
    sent.set(picture.id, picture);
    let bytes = 0;
    for (const id of [...sent.keys()].reverse()) if ((bytes += sent.get(id).data?.length || 0) > 3e7) sent.delete(id);
  };
  const show = (pictures) => {
    const batch = pictures.map((picture) => ({ id: newId(), ...picture }));
    batch.forEach(keepSent);
    const only = batch.length === 1 && batch[0].id;
    // A drawing that goes on replaces itself where it still waits.
    if (queue.length && only && queue.at(-1).length === 1 && queue.at(-1)[0].id === only) queue.pop();
    queue.push(batch);
    if (!under_way) next();
    if (!element("try").hidden) return comeToAnswer();
    set("url", { pathname: element("page").dataset.base });
    setTimeout(() => element("results").focus(), 200); // what had the focus is on the other page
  };

  const wide = matchMedia("(min-width: 901px)");
  // Where choosing and answer are side by side, a new answer must not appear above what is in sight.
  const comeToAnswer = () => {
    const results = element("results");
    if (wide.matches && results.getBoundingClientRect().top < 0) results.scrollIntoView();
  };

  // ---- theme: the system's, until the button says otherwise
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const theme = () => stored() || (system.matches ? "dark" : "light");
  const applyTheme = () => {
    document.documentElement.dataset.theme = theme();
    const button = element("theme-button");
    if (!button) return;
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${theme() === "dark" ? "light" : "dark"} colours`);
  };
  applyTheme();
  system.addEventListener("change", applyTheme);

  // ---- the number of the table whose images are shown, also after another model or page
  let cell;
  const mark = () => document.querySelectorAll("[data-cell]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.cell === cell));

  // ---- clicks on test images, cells and buttons
  document.addEventListener("click", (event) => {
    if (event.target.id === "answer") element("results").scrollIntoView();
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.picture) {
      const index = Number(button.dataset.picture);
      fresh();
      show([{ index, name: `Test image ${index}` }]);
    } else if (button.dataset.turn) {
      const turned = (picture) => ({ ...picture, turns: ((picture.turns || 0) + Number(button.dataset.turn)) % 4 });
      const { of: id } = button.dataset;
      fresh();
      if (shown.some((picture) => picture.id === id)) show(shown.map((picture) => (picture.id === id ? turned(picture) : picture)));
      else if (sent.has(id)) show([turned(sent.get(id))]); // something newer is already on its way
    } else if (button.dataset.row) {
      const { row: id, index } = button.dataset;
      // After a reload, what is left of a file are the 28×28 pixels that the network got.
      const left = index ? { index: Number(index) } : { data: button.closest("tr").querySelector("img").src };
      fresh();
      show([sent.get(id) || { id, name: button.textContent, ...left }]);
      if (!wide.matches) element("results").scrollIntoView();
    } else if (button.id === "close") {
      say("");
    } else if (button.dataset.cell) {
      set("cell", { data: button.dataset.cell.split(",").map(Number) });
      cell = button.dataset.cell;
      mark();
    } else if (button.id === "theme-button") {
      try { localStorage.setItem("theme", theme() === "dark" ? "light" : "dark"); } catch { /* private window */ }
      applyTheme();
    } else if (button.id === "undo" && strokes.length) {
      strokes.pop();
      send();
    } else if (button.id === "erase" && strokes.length) {
      strokes.length = 0;
      send();
    }
  });

  // ---- files: the upload component drops what is too large without a word
  const warnOfLarge = (event) => {
    if (!event.target.closest?.("#upload")) return;
    fresh();
    const large = [...(event.dataTransfer || event.target).files || []].find((file) => file.size > limit());
    if (large) say(tooLarge(`“${large.name}”`, large.size));
  };
  document.addEventListener("change", warnOfLarge, true);
  document.addEventListener("drop", warnOfLarge, true);
  // Dropped beside the field, a picture would replace the page.
  ["dragover", "drop"].forEach((kind) => document.addEventListener(kind, (event) => event.preventDefault()));

  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    fresh();
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    if (bytes > limit()) return say(tooLarge("What you pasted", bytes));
    const read = (file) => new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done({ name: file.name || "Pasted picture", data: reader.result });
      reader.readAsDataURL(file);
    });
    Promise.all(files.map(read)).then(show);
  });

  // ---- drawing: strokes are kept, so that the last one can be taken back
  const strokes = [];
  let drawing = false, waiting, drawingId;
  const redraw = () => {
    const context = element("canvas").getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, 280, 280);
    context.strokeStyle = "white";
    context.lineCap = context.lineJoin = "round";
    for (const { width, points } of strokes) {
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      points.forEach((point) => context.lineTo(...point));
      context.stroke();
    }
  };
  const send = () => {
    redraw();
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (!strokes.length) return show([]);
      show([{ id: drawingId, name: "Drawing", data: element("canvas").toDataURL("image/png") }]);
    }, 300);
  };
  const point = (event) => {
    const box = element("canvas").getBoundingClientRect();
    return [((event.clientX - box.left) * 280) / box.width, ((event.clientY - box.top) * 280) / box.height];
  };
  document.addEventListener("pointerdown", (event) => {
    if (event.target.id !== "canvas" || event.button) return;
    event.preventDefault();
    fresh();
    event.target.setPointerCapture(event.pointerId);
    clearTimeout(waiting);
    drawing = true;
    const width = Number(document.querySelector("#draw input[type=range]")?.value || 26);
    if (!strokes.length) drawingId = newId(); // a new drawing, a new line in the history
    strokes.push({ width, points: [point(event)] });
    redraw();
  });
  document.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    strokes.at(-1).points.push(point(event));
    redraw();
  });
  const stop = () => { if (drawing) { drawing = false; send(); } };
  document.addEventListener("pointerup", stop);
  document.addEventListener("pointercancel", stop);

  // ---- a request that fails gets a sentence, not silence; while too many are asked at once, it is sent again
  const parts = { results: /"id":"pictures","property":"data"/, quality: /"id":"(scores|cell-images)"/ };
  const asked = { results: 0, quality: 0 };
  const busy = (part, more) => {
    if (!part) return;
    asked[part] += more;
    element(part)?.setAttribute("aria-busy", asked[part] > 0);
  };
  const fetch = window.fetch;
  const patient = async (request) => {
    for (let tries = 0; ; tries++) {
      const response = await fetch(...request);
      if (response.status !== 503 || tries === 8) return response;
      await new Promise((done) => setTimeout(done, 500 + 500 * Math.random()));
    }
  };
  window.fetch = async (...request) => {
    const ours = String(request[0]?.url || request[0]).includes("_dash-update-component");
    const part = ours && Object.keys(parts).find((id) => parts[id].test(request[1]?.body));
    busy(part, 1);
    try {
      const response = ours ? await patient(request) : await fetch(...request);
      if (ours && response.status === 413) say("That was too much for the server at once. Send smaller pictures, or fewer.");
      else if (ours && response.status === 503) say("Too many people ask at once. Please try again in a moment.");
      else if (ours && response.status >= 400) say("The server could not answer that. Please reload the page.");
      return response;
    } catch (error) {
      if (ours) say("The server does not answer. Is it still running?");
      throw error;
    } finally {
      // An answer that came calls `keep`, which goes on at once; this is for those that did not.
      busy(part, -1);
      const of = shown;
      if (part === "results") setTimeout(() => { if (shown === of && !asked.results) next(); }, 700);
    }
  };

  // ---- the line that leads to the answer on a phone: only while the answer is out of sight
  let watched;
  const watch = () => {
    if (watched || !element("results")) return;
    watched = new IntersectionObserver(([entry]) => { element("answer").classList.toggle("seen", entry.isIntersecting); });
    watched.observe(element("results"));
  };

  // ---- what Dash's parts tell a screen reader: its field for files has no name, though the button in it does all, and
  // its lists call themselves boxes of options around the radio buttons and ticks that they hold
  const tidy = () => {
    mark();
    const field = element("upload")?.querySelector("input");
    field?.setAttribute("tabindex", -1);
    field?.setAttribute("aria-label", "Pictures");
    document.querySelectorAll(".dash-options-list").forEach((list) => {
      for (const part of [list, ...list.children]) ["role", "aria-selected"].forEach((name) => part.removeAttribute(name));
    });
  };
  new MutationObserver(tidy).observe(document.documentElement, {
    subtree: true, childList: true, attributeFilter: ["role", "aria-selected"],
  });

  // ---- callbacks that need no server
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.page = {
    upload(contents, names) {
      if (!contents?.length) return;
      const bytes = contents.reduce((sum, text) => sum + (text.length * 3) / 4, 0);
      if (bytes > limit() * 1.01) say(tooLarge(`${contents.length} files`, bytes));
      else show(contents.map((data, i) => ({ name: names[i], data })));
      set("upload", { contents: null }); // or the same file could not be sent twice in a row
    },
    keep(found, history) { // what was tried again, such as a drawing that goes on, replaces its row
      setTimeout(next);
      const key = (row) => `${row.id} ${row.model}`;
      const keys = new Set(found.rows.map(key)), old = Array.isArray(history) ? history : [];
      const most = Number(element("page").dataset.rows);
      return [...found.rows, ...old.filter((row) => row && !keys.has(key(row)))].slice(0, most);
    },
    forget: () => [],
    same(model, sameModel) { // the choice of model on both pages
      const chosen = window.dash_clientside.callback_context.triggered_id === "same-model" ? sameModel : model;
      return [chosen, chosen];
    },
    route(path) {
      const { base } = element("page").dataset;
      const name = path?.startsWith(base) ? path.slice(base.length).replace(/\/+$/, "") : path || "";
      const here = { "": "try", quality: "quality" }[name] || "lost";
      for (const id of ["try", "quality"]) {
        if (id === here) element(`to-${id}`)?.setAttribute("aria-current", "page");
        else element(`to-${id}`)?.removeAttribute("aria-current");
      }
      document.title = { try: "Which garment is it?", quality: "How good is it? – Which garment", lost: "No such page – Which garment" }[here];
      applyTheme();
      watch();
      return ["try", "quality", "lost"].map((id) => id !== here);
    },
  };
})();
