
(() => {
  const table = document.querySelector(".graph");
  const rows = all(".node", table);
  const buttons = () => all("th button", table).filter((button) => button.getClientRects().length);
  const find = document.getElementById("find");
  const kind = document.getElementById("kind");
  const fold = document.getElementById("fold");
  const found = document.getElementById("found");
  const facts = document.getElementById("facts");

  // Folding: a heading of a part hides all up to the next of its level, one of a module its own rows.
  const bodies = all("tbody", table);
  const expander = (body) => body.querySelector(".heading button");
  const redraw = () => {
    let shut = false;
    for (const body of bodies) {
      const button = expander(body);
      const open = !button || button.getAttribute("aria-expanded") === "true";
      if (body.dataset.level === "0") shut = !open;
      body.classList.toggle("folded", !open || (shut && body.dataset.level !== "0"));
      const heading = body.querySelector(".heading");
      if (heading && body.dataset.level !== "0") heading.hidden = shut && !table.classList.contains("searching");
    }
    const every = bodies.map(expander).filter(Boolean);
    fold.hidden = !every.length;
    fold.textContent = every.some((it) => it.getAttribute("aria-expanded") === "true") ? "Fold all" : "Unfold all";
  };
  const unfold = (body) => {
    expander(body)?.setAttribute("aria-expanded", "true");
    const part = bodies.slice(0, bodies.indexOf(body)).findLast((it) => it.dataset.level === "0");
    if (part && body.dataset.level !== "0") expander(part)?.setAttribute("aria-expanded", "true");
    redraw();
  };
  for (const button of bodies.map(expander).filter(Boolean)) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
      redraw();
    });
  }
  fold.addEventListener("click", () => {
    const every = bodies.map(expander).filter(Boolean);
    const open = !every.some((it) => it.getAttribute("aria-expanded") === "true");
    every.forEach((it) => it.setAttribute("aria-expanded", String(open)));
    redraw();
  });

  // Search narrows the rows; lines would join what does not stand together, so they are not drawn.
  const search = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const searching = words.length > 0 || kind.value !== "";
    let count = 0;
    for (const row of rows) {
      const fits = words.every((word) => row.dataset.find.includes(word)) && (!kind.value || row.dataset.kind === kind.value);
      row.hidden = !fits;
      count += fits;
    }
    table.classList.toggle("searching", searching);
    for (const body of bodies) {
      body.hidden = searching && body.dataset.level === "1" && all(".node", body).every((row) => row.hidden);
    }
    found.textContent = searching ? `${count} of ${rows.length} rows` : "";
    redraw();
  };
  find.addEventListener("input", search);
  kind.addEventListener("change", search);
  find.form.addEventListener("submit", (event) => event.preventDefault());

  // One row is chosen at a time; what it reads, and who reads it, is marked.
  const strips = all(".strip a");
  let chosen = null;
  const choose = (row) => {
    if (chosen) {
      chosen.querySelector("th button").setAttribute("aria-pressed", "false");
      document.getElementById(`facts-${chosen.id.slice(4)}`).hidden = true;
    }
    all(".chosen, .near").forEach((it) => it.classList.remove("chosen", "near"));
    chosen = row;
    facts.querySelector(".hint").hidden = true;
    const article = document.getElementById(`facts-${row.id.slice(4)}`);
    article.hidden = false;
    facts.scrollTop = 0;
    row.classList.add("chosen");
    row.querySelector("th button").setAttribute("aria-pressed", "true");
    for (const link of all('dd a[href^="#row-"]', article)) {
      document.getElementById(link.hash.slice(1)).classList.add("near");
    }
    strips.filter((it) => it.hash === `#${row.id}`).forEach((it) => it.classList.add("chosen"));
  };
  const walk = (button) => {
    all('th button[tabindex="0"]', table).forEach((it) => it.setAttribute("tabindex", "-1"));
    button.setAttribute("tabindex", "0");
  };
  const show = (row) => {
    if (row.hidden) {
      find.value = kind.value = "";
      search();
    }
    unfold(row.closest("tbody"));
    choose(row);
    walk(row.querySelector("th button"));
    row.scrollIntoView({ block: "nearest" });
  };
  for (const row of rows) {
    row.addEventListener("click", () => {
      choose(row);
      walk(row.querySelector("th button"));
    });
  }
  table.addEventListener("keydown", (event) => {
    const list = buttons();
    const at = list.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: list.length - 1 }[event.key];
    const button = list[next];
    if (at < 0 || !button) return;
    event.preventDefault();
    walk(button);
    button.focus();
    if (button.closest(".node")) choose(button.closest(".node"));
  });

  // Links to rows and maps, which may be hidden.
  const figures = all(".map");
  const picker = document.querySelector(".picker select");
  const follow = (hash) => {
    const target = document.getElementById(hash.slice(1));
    if (target?.classList.contains("node")) show(target);
    if (target?.classList.contains("map")) {
      pick(figures.indexOf(target));
      target.scrollIntoView({ block: "center" });
    }
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#row-"], a[href^="#map-"]');
    if (!link) return;
    event.preventDefault();
    history.replaceState(null, "", link.hash);
    follow(link.hash);
    if (!link.closest(".beside, .strip")) document.getElementById("graph").scrollIntoView();
  });

  // Maps of weights. The cells of a picture are read back once, when it is first shown.
  const CELL = 9;
  const ROWS = 48;
  const read = (image) => {
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
    return { width, height, at: (row, column) => data[4 * (row * width + column)] };
  };
  const sized = (canvas, width, height) => {
    const dense = devicePixelRatio || 1;
    canvas.width = width * dense;
    canvas.height = height * dense;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    return context;
  };
  const colour = (name) => {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const maps = new Map();
  const open = (figure) => {
    if (maps.has(figure)) return maps.get(figure);
    const facts = JSON.parse(figure.dataset.map);
    const map = {
      ...facts,
      bins: read(figure.querySelector(".bins")),
      bits: read(figure.querySelector(".bits")),
      row: 0,
      column: 0,
    };
    maps.set(figure, map);
    return map;
  };
  const where = (map, row, column) => {
    const [, inputs, high, wide] = map.shape;
    const taps = high * wide;
    const input = map.order === "hwi" ? column % inputs : Math.floor(column / taps);
    const tap = map.order === "hwi" ? Math.floor(column / inputs) : column % taps;
    const channel = map.channels ? map.channels[row] : row;
    const at = taps > 1 ? `, kernel (${Math.floor(tap / wide)}, ${tap % wide})` : "";
    return `output channel ${channel}, input channel ${input}${at}`;
  };
  const paint = (figure) => {
    const map = open(figure);
    const box = figure.querySelector(".window");
    const room = Math.max(CELL * 8, Math.floor(figure.clientWidth) - 26);
    map.across = Math.min(map.bits.width, Math.floor(room / CELL));
    map.down = Math.min(map.bits.height, ROWS);
    map.row = Math.max(0, Math.min(map.row, map.bits.height - map.down));
    map.column = Math.max(0, Math.min(map.column, map.bits.width - map.across));
    const [kept, ground, line] = [colour("--good"), colour("--grid"), colour("--ink")];
    const context = sized(box.firstElementChild, map.across * CELL + 1, map.down * CELL + 1);
    for (let y = 0; y < map.down; y += 1) {
      for (let x = 0; x < map.across; x += 1) {
        context.fillStyle = map.bits.at(map.row + y, map.column + x) > 127 ? kept : ground;
        context.fillRect(x * CELL + 1, y * CELL + 1, CELL - 1, CELL - 1);
      }
    }
    const [high, wide] = map.block;
    context.fillStyle = line;
    if (wide > 1 || high > 1) {
      for (let y = 0; y < map.down; y += 1) {
        const shift = map.runsOn ? (map.row + y) * map.size[1] : 0;
        for (let x = 0; x < map.across; x += 1) {
          if ((shift + map.column + x) % wide === 0) context.fillRect(x * CELL, y * CELL, 1, CELL + 1);
        }
        if (high > 1 && (map.row + y) % high === 0) context.fillRect(0, y * CELL, map.across * CELL + 1, 1);
      }
    }
    figure.querySelector(".place").textContent =
      `rows ${map.row} to ${map.row + map.down - 1}, columns ${map.column} to ${map.column + map.across - 1}`;
    const whole = figure.querySelector(".whole");
    map.scale = [
      Math.max(1, Math.min(6, Math.floor(room / map.bins.width))),
      Math.max(1, Math.min(6, Math.floor(240 / map.bins.height))),
    ];
    const [sx, sy] = map.scale;
    const over = sized(whole, map.bins.width * sx, map.bins.height * sy);
    over.fillStyle = kept;
    for (let y = 0; y < map.bins.height; y += 1) {
      for (let x = 0; x < map.bins.width; x += 1) {
        over.globalAlpha = map.bins.at(y, x) / 255;
        over.fillRect(x * sx, y * sy, sx, sy);
      }
    }
    over.globalAlpha = 1;
    over.strokeStyle = line;
    over.lineWidth = 1.5;
    const [rowStep, columnStep] = map.steps;
    if (map.bits.width < map.size[1] || map.bits.height < map.size[0]) {
      over.setLineDash([4, 3]); // as far as the window goes
      over.strokeRect(0.75, 0.75, (map.bits.width / columnStep) * sx, (map.bits.height / rowStep) * sy);
      over.setLineDash([]);
    }
    over.strokeRect(
      (map.column / columnStep) * sx + 0.75,
      (map.row / rowStep) * sy + 0.75,
      Math.max(3, (map.across / columnStep) * sx - 1.5),
      Math.max(3, (map.down / rowStep) * sy - 1.5),
    );
  };
  const tip = document.getElementById("tip");
  for (const figure of figures) {
    const box = figure.querySelector(".window");
    const whole = figure.querySelector(".whole");
    const move = (rows, columns) => {
      const map = open(figure);
      map.row += rows;
      map.column += columns;
      paint(figure);
    };
    box.addEventListener("keydown", (event) => {
      const map = open(figure);
      const down = Math.max(map.block[0], 8);
      const right = map.block[1] * Math.max(1, Math.ceil(16 / map.block[1]));
      const step = {
        ArrowDown: [down, 0],
        ArrowUp: [-down, 0],
        ArrowRight: [0, right],
        ArrowLeft: [0, -right],
        PageDown: [map.down, 0],
        PageUp: [-map.down, 0],
        Home: [0, -map.column],
        End: [0, map.bits.width],
      }[event.key];
      if (!step) return;
      event.preventDefault();
      move(...step);
    });
    box.addEventListener("pointermove", (event) => {
      const map = open(figure);
      const edge = box.firstElementChild.getBoundingClientRect();
      const column = Math.floor((event.clientX - edge.left) / CELL);
      const row = Math.floor((event.clientY - edge.top) / CELL);
      tip.hidden = column < 0 || row < 0 || column >= map.across || row >= map.down;
      if (tip.hidden) return;
      const state = map.bits.at(map.row + row, map.column + column) > 127 ? "kept" : "zero";
      tip.textContent = `${where(map, map.row + row, map.column + column)}: ${state}`;
      const room = document.documentElement.clientWidth - tip.getBoundingClientRect().width - 8;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, room))}px`;
      tip.style.top = `${event.clientY + 16}px`;
    });
    box.addEventListener("pointerleave", () => (tip.hidden = true));
    const jump = (event) => {
      const map = open(figure);
      const edge = whole.getBoundingClientRect();
      const [rowStep, columnStep] = map.steps;
      map.row = Math.round(((event.clientY - edge.top) / map.scale[1]) * rowStep - map.down / 2);
      map.column = Math.round(((event.clientX - edge.left) / map.scale[0]) * columnStep - map.across / 2);
      const [high, wide] = map.block;
      map.row -= map.row % high;
      map.column -= map.column % wide;
      paint(figure);
    };
    whole.addEventListener("pointerdown", jump);
    whole.addEventListener("pointermove", (event) => event.buttons && jump(event));
  }
  const pick = (place) => {
    if (picker) picker.value = String(place);
    figures.forEach((figure, index) => (figure.hidden = index !== place));
    const images = all("img", figures[place]);
    Promise.all(images.map((image) => image.decode())).then(() => paint(figures[place]));
  };
  picker?.addEventListener("change", () => pick(Number(picker.value)));
  const repaint = () => {
    const figure = figures.find((it) => !it.hidden);
    if (figure && maps.has(figure)) paint(figure);
  };
  addEventListener("resize", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["data-theme"] });

  const first = buttons()[0];
  if (first) walk(first);
  redraw();
  if (figures.length) pick(0);
  follow(location.hash || "#");
  addEventListener("hashchange", () => follow(location.hash));
})();
