(() => {
  "use strict";
  const MISSING = "\u2013", MINUS = "\u2212", SIZES = [25, 100, 500], MOST_PRINTED = 2000;
  const { tables, neurons } = JSON.parse(document.getElementById("data").textContent);

  const element = (tag, properties = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };

  // packed arrays

  const half = (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + rest / 1024) : sign * 2 ** -14 * (rest / 1024);
  };
  const unpack = ({ type, data }) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer;
    if (type === "f16") return Float32Array.from(new Uint16Array(bytes), half);
    return new { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array, f64: Float64Array }[type](bytes);
  };

  // numbers as the page's maker writes them

  const significant = (value, digits) => {
    if (value === 0) return "0";
    const exponent = Number(value.toExponential(digits - 1).split("e")[1]);
    if (exponent >= -4 && exponent < digits) return String(Number(value.toFixed(Math.max(0, digits - 1 - exponent))));
    const [mantissa] = value.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  };
  const write = (value, form) => {
    if (!Number.isFinite(value)) return MISSING;
    if (form === "p") return value < 1e-4 ? "< 0.0001" : value.toFixed(4);
    if (form === ",") return (Math.round(value) || 0).toLocaleString("en-US").replace("-", MINUS);
    const digits = Number(form.match(/\.(\d)/)[1]);
    let text = form.endsWith("g") ? significant(value, digits) : value.toFixed(digits);
    if (Number(text) === 0) text = text.replace(/^[-+]/, "");
    else if (form.startsWith("+") && value > 0) text = `+${text}`;
    return text.replaceAll("-", MINUS);
  };

  // the neurons that have a page

  const known = new Map();
  const has = (id) => known.has(id);
  neurons.scores = neurons.scores.map((one) => {
    const scores = { ...one };
    for (const name of ["layer", "index", "scale", "values", "signed", "rank", "member"]) scores[name] = unpack(one[name]);
    for (let place = 0; place < scores.layer.length; place += 1) {
      const id = `${one.site}/${scores.layer[place]}/${scores.index[place]}`;
      known.set(id, [...(known.get(id) ?? []), [scores, place]]);
    }
    return scores;
  });
  for (const id of Object.keys(neurons.blocks)) if (!has(id)) known.set(id, []);
  const called = (id) => { const [, layer, index] = id.split("/"); return `layer ${layer}, neuron ${index}`; };

  const plain = (name) => name.toLowerCase().replaceAll(" ", "");

  // tables: sorted, filtered, shown in pieces

  const views = new Map();
  class View {
    constructor(id, packed) {
      this.table = document.getElementById(id);
      this.id = id;
      this.columns = packed.columns.map((column) => ({
        ...column, values: unpack(column.values), high: column.high ? unpack(column.high) : null,
      }));
      this.rows = packed.rows;
      this.order = Array.from({ length: packed.rows }, (_, row) => row);
      this.kept = this.order;
      this.page = 0;
      this.size = SIZES[0];
      this.heads();
      this.tools();
    }

    text(column, row) {
      if (column.words) {
        const word = column.words[column.values[row]];
        return column.form === "neuron" ? called(word) : word;
      }
      const low = write(column.values[row], column.form);
      return column.high && low !== MISSING ? `${low} to ${write(column.high[row], column.form)}` : low;
    }

    searched(row) {
      this.texts ??= [];
      return (this.texts[row] ??= this.columns.map((column) => this.text(column, row)).join(" ").toLowerCase().replaceAll(MINUS, "-"));
    }

    heads() {
      [...this.table.tHead.rows[0].cells].forEach((head, place) => {
        const button = element("button", { type: "button", textContent: head.textContent });
        button.addEventListener("click", () => this.sort(place, head));
        head.replaceChildren(button);
        head.setAttribute("aria-sort", "none");
      });
    }

    tools() {
      const place = document.querySelector(`.tools[data-for="${this.id}"]`);
      this.search = element("input", {
        type: "search", autocomplete: "off", placeholder: "words, or layer=3, p<0.05", "aria-controls": this.id,
        title: "Rows that hold all of these words. A column's name (or how it begins, without spaces), <, <=, =, >= or > and a number compare.",
      });
      place.append(element("label", {}, "Filter", this.search));
      this.choices = this.columns.filter((column) => column.filtered && column.words.length > 1).map((column) => {
        const select = element("select", {}, element("option", { value: "", textContent: "all" }),
          ...column.words.map((word, code) => element("option", { value: String(code), textContent: word })));
        place.append(element("label", {}, column.name, select));
        select.addEventListener("change", () => this.filter());
        return { column, select };
      });
      const save = element("button", { type: "button", textContent: "Save as CSV" });
      save.addEventListener("click", () => this.save());
      this.count = element("output", { "aria-live": "polite" });
      place.append(save, this.count);
      place.hidden = false;
      this.search.addEventListener("input", () => this.filter());
      this.pager = document.querySelector(`.pager[data-for="${this.id}"]`);
      this.table.tBodies[0].addEventListener("keydown", (event) => this.step(event));
      this.table.tBodies[0].addEventListener("click", (event) => {
        const link = event.target.closest("tr")?.querySelector("a[href^='#neuron/']");
        if (link && !event.target.closest("a") && !String(getSelection())) link.click();
      });
      this.show();
    }

    sort(place, head) {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const { values, words, high } = this.columns[place];
      const last = (value) => (Number.isFinite(value) ? 0 : 1);
      const compare = words
        ? ((ranks) => (a, b) => down * (ranks[values[a]] - ranks[values[b]]))(this.ranks(words))
        : (a, b) => last(values[a]) - last(values[b])
          || down * (values[a] - values[b] || (high ? high[a] - high[b] : 0)) || 0;
      this.order = Array.from({ length: this.rows }, (_, row) => row).sort(compare);
      this.filter();
    }

    ranks(words) {
      const sorted = words.map((word, code) => [word, code]);
      const collator = new Intl.Collator(undefined, { numeric: true });
      sorted.sort((a, b) => collator.compare(a[0], b[0]));
      const ranks = [];
      sorted.forEach(([, code], rank) => { ranks[code] = rank; });
      return ranks;
    }

    filter() {
      const tests = this.search.value.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => this.test(word));
      for (const { column, select } of this.choices) {
        if (select.value !== "") tests.push((row) => column.values[row] === Number(select.value));
      }
      this.kept = tests.length ? this.order.filter((row) => tests.every((test) => test(row))) : this.order;
      this.hint = this.kept.length ? "" : this.advice();
      this.page = 0;
      this.show();
    }

    compared(word) {
      const asked = word.match(/^([^<>=]+)(<=|>=|=|<|>)(-?[\d.]+(?:e-?\d+)?)$/);
      const column = asked && this.columns.find((one) => !one.words && plain(one.name).startsWith(asked[1]));
      return [asked, column];
    }

    // what to say of an empty table when a word looks like a comparison and is none
    advice() {
      const wrong = this.search.value.trim().toLowerCase().split(/\s+/).find((word) => /[<>=]/.test(word) && !this.compared(word)[1]);
      const names = this.columns.filter((one) => !one.words).map((one) => plain(one.name));
      return wrong && names.length
        ? `. \u201c${wrong}\u201d compares no column: expected one of ${names.join(", ")} (or how it begins), a sign (<, <=, =, >=, >) and a number`
        : "";
    }

    test(word) {
      const [asked, column] = this.compared(word);
      if (!column) return (row) => this.searched(row).includes(word);
      const wanted = Number(asked[3]);
      const holds = {
        "<": (a) => a < wanted, "<=": (a) => a <= wanted, "=": (a) => a === wanted || write(a, column.form) === write(wanted, column.form),
        ">=": (a) => a >= wanted, ">": (a) => a > wanted,
      }[asked[2]];
      return (row) => holds(column.values[row]);
    }

    show() {
      const start = this.page * this.size;
      const shown = this.kept.slice(start, start + this.size);
      this.table.tBodies[0].replaceChildren(...shown.map((row) => this.row(row)));
      this.count.textContent = `${this.kept.length.toLocaleString("en-US")} of ${this.rows.toLocaleString("en-US")} rows${this.hint ?? ""}`;
      this.pages(start, shown.length);
    }

    row(row) {
      const made = element("tr");
      this.columns.forEach((column, place) => {
        const cell = element(place ? "td" : "th", { className: column.words ? "" : "number" });
        if (!place) cell.scope = "row";
        const text = this.text(column, row);
        const word = column.words?.[column.values[row]];
        if (column.form === "neuron" && has(word)) {
          made.className = "leads";
          cell.append(element("a", { href: `#neuron/${word}`, textContent: text }));
        } else if (column.form === "set" && groups.has(word) && this !== listing) {
          cell.append(element("a", { href: `#set/${encodeURIComponent(word)}`, textContent: text, title: "Show its neurons" }));
        } else cell.textContent = text;
        made.append(cell);
      });
      return made;
    }

    pages(start, count) {
      this.pager.hidden = this.kept.length <= SIZES[0];
      const last = Math.max(0, Math.ceil(this.kept.length / this.size) - 1);
      const turn = (text, label, page) => {
        const button = element("button", { type: "button", textContent: text, "aria-label": label, disabled: page < 0 || page > last });
        button.addEventListener("click", () => {
          this.page = page;
          this.show();
          this.pager.querySelector(`[aria-label="${label}"]:not(:disabled), button:not(:disabled)`)?.focus();
        });
        return button;
      };
      const size = element("select", { "aria-label": "Rows on a page" },
        ...SIZES.map((rows) => element("option", { value: String(rows), textContent: `${rows} rows`, selected: rows === this.size })));
      size.addEventListener("change", () => {
        this.size = Number(size.value);
        this.page = 0;
        this.show();
        this.pager.querySelector("select").focus();
      });
      const said = `${(start + 1).toLocaleString("en-US")} to ${(start + count).toLocaleString("en-US")} of ${this.kept.length.toLocaleString("en-US")}`;
      this.pager.replaceChildren(turn("\u2039", "Previous page", this.page - 1 < 0 ? -1 : this.page - 1),
        element("span", { textContent: said }), turn("\u203a", "Next page", this.page + 1), size);
    }

    step(event) {
      const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const row = event.target.closest("tr");
      if (!way || !row) return;
      event.preventDefault();
      const next = way === 1 ? row.nextElementSibling : row.previousElementSibling;
      const turned = this.page + way;
      if (!next && turned >= 0 && turned * this.size < this.kept.length) {
        this.page = turned;
        this.show();
        const rows = this.table.tBodies[0].rows;
        (way === 1 ? rows[0] : rows[rows.length - 1]).querySelector("a")?.focus();
      } else next?.querySelector("a")?.focus();
    }

    save() {
      const quoted = (text) => `"${(/^[=+@\t]/.test(text) && !/^\+[\d.]/.test(text) ? `'${text}` : text).replaceAll(MINUS, "-").replaceAll('"', '""')}"`;
      const lines = [this.columns.map((column) => column.name), ...this.kept.map((row) => this.columns.map((column) => this.text(column, row)))];
      const blob = new Blob([`\ufeff${lines.map((line) => line.map(quoted).join(",")).join("\r\n")}\r\n`], { type: "text/csv" });
      const link = element("a", { href: URL.createObjectURL(blob), download: `${this.id.replace("table-", "")}.csv` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }

    near(id, way) {
      const column = this.columns.find((one) => one.form === "neuron");
      const ids = [...new Set(this.kept.map((row) => column.words[column.values[row]]))].filter(has);
      const at = ids.indexOf(id);
      return at < 0 ? undefined : ids[at + way];
    }
  }

  // `groups` are those that the table of neurons can be narrowed to
  const listed = Object.entries(tables).find(([, packed]) => packed.columns[0]?.form === "neuron");
  const groups = new Set(listed ? listed[1].columns.find((column) => column.form === "set")?.words : []);
  let listing = null;
  if (listed) {
    listing = new View(...listed);
    views.set(listed[0], listing);
    listing.show();
  }
  for (const [id, packed] of Object.entries(tables)) if (!views.has(id)) views.set(id, new View(id, packed));

  // paper has no pages of a table to turn

  const sizes = new Map();
  addEventListener("beforeprint", () => {
    for (const view of views.values()) {
      if (sizes.has(view)) continue;
      sizes.set(view, [view.page, view.size]);
      [view.page, view.size] = [0, MOST_PRINTED];
      view.show();
    }
  });
  addEventListener("afterprint", () => {
    for (const [view, [page, size]] of sizes) {
      [view.page, view.size] = [page, size];
      view.show();
    }
    sizes.clear();
  });

  // a neuron's page

  const dialog = document.querySelector("dialog");
  const body = dialog.firstElementChild;
  const visible = (token) => token.replaceAll("\n", "\u23ce").replace(/^ | $/g, "\u2423");
  const button = (text, label, action, disabled = false) => {
    const made = element("button", { type: "button", textContent: text, "aria-label": label, disabled });
    made.addEventListener("click", action);
    return made;
  };
  const go = (id) => { if (id) history.replaceState(null, "", `#neuron/${id}`); if (id) follow(); };

  const bar = (share) => {
    const inner = element("i", { className: share < 0 ? "less" : "" });
    const width = Math.min(50, Math.abs(share) * 50);
    inner.style.width = `${width}%`;
    inner.style.left = share < 0 ? `${50 - width}%` : "50%";
    return element("span", { className: "bar", "aria-hidden": "true" }, inner);
  };

  const scoresOf = ([scores, place]) => {
    const count = scores.layer.length;
    const held = (set) => {
      const bit = set * count + place;
      return Boolean(scores.member[bit >> 3] & (128 >> (bit & 7)));
    };
    const rows = scores.groups.map((group, g) => {
      const at = g * count + place, set = scores.sets.indexOf(group);
      return {
        group, share: scores.values[at], sign: scores.signed[at], value: scores.values[at] * scores.scale[g],
        signed: scores.signed[at] * scores.scale[g], rank: scores.rank[at], in: set < 0 ? MISSING : held(set) ? "yes" : "no",
      };
    }).sort((a, b) => a.rank - b.rank);
    const holding = scores.sets.filter((_, set) => held(set));
    const heads = ["group", "rank", "score", "signed score", "of the group's highest score", "in its set"];
    const table = element("table", {},
      element("caption", { textContent: `Scores by ${scores.method} on ${scores.objective}, best rank of ${scores.total.toLocaleString("en-US")} first. Bars: signed score as a share of the highest that the group has here; right where the neuron helps.` }),
      element("thead", {}, element("tr", {}, ...heads.map((head, at) => element("th", { scope: "col", textContent: head, className: at && at < 4 ? "number" : "" })))),
      element("tbody", {}, ...rows.map((row) => element("tr", {},
        element("th", { scope: "row", textContent: row.group }),
        element("td", { className: "number", textContent: row.rank.toLocaleString("en-US") }),
        element("td", { className: "number", textContent: write(row.value, ".3g") }),
        element("td", { className: "number", textContent: write(row.signed, ".3g") }),
        element("td", {}, bar(row.sign)), element("td", { textContent: row.in })))));
    return { holding, made: element("div", { className: "rows", tabIndex: 0, role: "region", "aria-label": "Scores by group" }, table) };
  };

  const blockOf = (block) => {
    const made = element("section", {}, element("h3", { textContent: block.title }));
    if (block.text) made.append(element("p", { textContent: block.text }));
    if (block.tokens.length) {
      made.append(element("div", { className: "tokens" }, ...block.tokens.map(([token, weight]) => {
        const chip = element("span", { className: "token", textContent: visible(token), title: write(weight, "+.2f") });
        const colour = weight < 0 ? "var(--minus)" : "var(--plus)";
        chip.style.background = `color-mix(in srgb, ${colour} ${Math.round(55 * Math.min(1, Math.abs(weight)))}%, var(--tint))`;
        return chip;
      })));
    }
    if (block.pairs.length) {
      made.append(element("dl", { className: "facts" }, ...block.pairs.flatMap(([name, value]) => [
        element("dt", { textContent: name }), element("dd", { textContent: value })])));
    }
    if (block.neurons.length) {
      made.append(element("dl", { className: "facts" }, ...block.neurons.flatMap(([id, text]) => [
        element("dt", {}, has(id) ? element("a", { href: `#neuron/${id}`, textContent: called(id) }) : called(id)),
        element("dd", { textContent: text })])));
    }
    return made;
  };

  const open = (id) => {
    const [site] = id.split("/");
    const found = known.get(id).map(scoresOf);
    const holding = [...new Set(found.flatMap((one) => one.holding))];
    const held = holding.length
      ? element("ul", { className: "held" }, ...holding.map((name) => element("li", { textContent: name })))
      : element("p", { className: "soft", textContent: "No set of this study holds it." });
    const before = listing?.near(id, -1), after = listing?.near(id, 1);
    body.replaceChildren(
      element("div", { className: "neuron-bar" },
        button("\u2039", "Previous neuron", () => go(before), !before), button("\u203a", "Next neuron", () => go(after), !after),
        element("span", { textContent: `site ${site}` }), button("Close", "Close this neuron's page", () => dialog.close())),
      element("h2", { id: "neuron-title", textContent: `Neuron ${id.split("/")[2]} in layer ${id.split("/")[1]}` }),
      element("p", { className: "soft", textContent: holding.length ? `${holding.length === 1 ? "One set holds" : `${holding.length} sets hold`} it:` : "" }), held,
      ...found.map((one) => one.made), ...(neurons.blocks[id] ?? []).map(blockOf),
    );
    delete body.dataset.notice;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    body.querySelector("[aria-label^='Close']").focus();
  };

  // what stands behind the page's address; as it is, where it spells no text
  const address = () => {
    const hash = location.hash.slice(1);
    try { return decodeURIComponent(hash); } catch { return hash; }
  };

  const notice = (title, text) => {
    body.dataset.notice = "yes";
    body.replaceChildren(
      element("div", { className: "neuron-bar" }, button("Close", "Close this message", () => dialog.close())),
      element("h2", { id: "neuron-title", textContent: title }), element("p", { textContent: text }),
    );
    if (!dialog.open) dialog.showModal();
    body.querySelector("button").focus();
  };

  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#neuron/") || body.dataset.notice) history.replaceState(null, "", location.pathname + location.search);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const id = address().slice("neuron/".length);
    if (event.key === "ArrowRight") go(listing?.near(id, 1));
    if (event.key === "ArrowLeft") go(listing?.near(id, -1));
  });

  const follow = () => {
    const hash = address();
    if (hash.startsWith("neuron/")) {
      if (has(hash.slice(7))) open(hash.slice(7));
      else notice("No such neuron on this page", `The address asks for ${hash.slice(7)}. Addresses are neuron/SITE/LAYER/INDEX, and the page has the first neurons of each set and group alone; the study holds all: neuropolis neuron.`);
      return;
    }
    const column = listing?.columns.find((one) => one.form === "set");
    const code = column?.words.indexOf(hash.slice(4)) ?? -1;
    if (hash.startsWith("set/") && code < 0) {
      const there = column ? `Sets with neurons on this page: ${column.words.join(", ")}.` : "This page has no list of neurons.";
      notice("No such set on this page", `The address asks for ${hash.slice(4)}. ${there}`);
      return;
    }
    delete body.dataset.notice;
    if (dialog.open) dialog.close();
    if (!hash.startsWith("set/")) return;
    const choice = listing.choices.find((one) => one.column === column);
    if (choice) {
      choice.select.value = String(code);
      listing.filter();
      choice.select.focus();
    }
    document.querySelector(`.tools[data-for="${listing.id}"]`).scrollIntoView();
  };
  addEventListener("hashchange", follow);

  // light and dark

  const theme = document.querySelector(".theme");
  const stored = () => { try { return localStorage.getItem("neuropolis-theme"); } catch { return null; } };
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const tell = () => {
    theme.textContent = dark() ? "\u2600 Light" : "\u263e Dark";
    theme.setAttribute("aria-label", dark() ? "Change to light" : "Change to dark");
  };
  if (["light", "dark"].includes(stored())) document.documentElement.dataset.theme = stored();
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("neuropolis-theme", document.documentElement.dataset.theme); } catch { /* a page from a file may have no storage */ }
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  theme.hidden = false;
  tell();

  // where the reader is

  const links = new Map([...document.querySelectorAll("nav.contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.getAttribute("aria-labelledby"))?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main > section")) seen.observe(section);

  follow();
})();
