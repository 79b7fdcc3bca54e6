"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = ["stain", "institution", "tissue"];
const MORE_ROWS = 200;
const PAIRS = 10;
const form = document.getElementById("filter");
const counted = new Intl.NumberFormat("en");
const count = (value) => counted.format(value);
const share = (value) => `${significant(100 * value)} %`;
const sum = (rows, key) => rows.reduce((total, row) => total + (row[key] || 0), 0);

for (const slide of data.slides) {
  slide.share = slide.drawn.reduce((total, part) => total + part, 0);
  slide.text = [slide.file, slide.id, slide.institution, slide.tissue, slide.scanner, slide.note].join("\n").toLowerCase();
  data.magnifications.forEach((name, at) => { slide[name] = slide.tiles[at]; });
}
const byNumber = new Map(data.slides.map((slide) => [slide.number, slide]));

function significant(value) {
  if (value == null) return "–";
  if (!value) return "0";
  const three = Number(value.toPrecision(3));
  const decimals = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(Math.abs(three)) + 1e-9)));
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Filter

function fillChoices() {
  for (const key of [...LEVELS, "status"]) {
    const found = new Map();
    for (const slide of data.slides) found.set(slide[key], (found.get(slide[key]) || 0) + 1);
    const ranked = [...found].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
    for (const [value, slides] of ranked) form.elements[key].append(new Option(`${value} (${count(slides)})`, `=${value}`));
  }
  for (const name of data.magnifications) form.elements.magnification.append(new Option(name, `=${name}`));
}

function chosen() {
  const picked = (key) => (form.elements[key].value ? form.elements[key].value.slice(1) : null);
  const text = form.elements.text.value.trim().toLowerCase();
  const at = picked("magnification");
  const wanted = [...LEVELS, "status"].map((key) => [key, picked(key)]).filter(([, value]) => value !== null);
  const slides = data.slides.filter((slide) =>
    wanted.every(([key, value]) => slide[key] === value) && (at === null || slide[at] > 0) && slide.text.includes(text));
  return { slides, magnifications: data.magnifications.filter((name) => at === null || name === at) };
}

// Sums

function strataOf({ slides, magnifications }) {
  const strata = new Map();
  for (const slide of slides) {
    for (const magnification of magnifications) {
      const at = data.magnifications.indexOf(magnification);
      if (!slide.tiles[at]) continue;
      const names = LEVELS.map((level) => slide[level]);
      const key = JSON.stringify([magnification, ...names]);
      if (!strata.has(key)) {
        const [stain, institution, tissue] = names;
        strata.set(key, { magnification, stain, institution, tissue, slides: 0, tiles: 0, mm2: 0, there: 0, drawn: 0 });
      }
      const row = strata.get(key);
      row.slides += 1;
      row.tiles += slide.tiles[at];
      row.mm2 += slide.mm2 || 0;
      row.there += slide.tiles[at] / data.tilesThere;
      row.drawn += slide.drawn[at];
    }
  }
  for (const row of strata.values()) row.ratio = row.drawn / row.there;
  return [...strata.values()];
}

function card(name, value, detail) {
  const [strong, , small] = document.getElementById(`card-${name}`).children;
  strong.textContent = value;
  small.textContent = detail;
}

function showCards({ slides, magnifications }, strata) {
  const ok = slides.filter((slide) => slide.status === "ok");
  const distinct = (rows, keys) => new Set(rows.map((row) => JSON.stringify(keys.map((key) => row[key])))).size;
  const of = (status) => slides.filter((slide) => slide.status === status).length;
  const tiles = magnifications.map((name) => [name, sum(strata.filter((row) => row.magnification === name), "tiles")]);
  const others = [...new Set(slides.map((slide) => slide.status))].filter((status) => status !== "ok");
  card("slides", count(slides.length), `of ${count(data.slides.length)}; ${count(ok.length)} ok`);
  card("tiles", count(sum(strata, "tiles")), tiles.map(([name, n]) => `${name} ${count(n)}`).join(", "));
  card("mm2", significant(sum(ok, "mm2")), "of slides that are ok");
  card("strata", count(distinct(strata, LEVELS)), LEVELS.map((level) => {
    const found = distinct(strata, [level]);
    return `${count(found)} ${level}${found === 1 ? "" : "s"}`;
  }).join(", "));
  card("drawn", share(sum(strata, "drawn")), `from ${share(sum(strata, "there"))} of all tiles`);
  card("not-ok", count(slides.length - ok.length), others.map((status) => `${count(of(status))} ${status}`).join(", ") || "none");
  document.getElementById("shown").textContent = `${count(slides.length)} of ${count(data.slides.length)} slides`;
}

function bar(kind, part) {
  const made = element("span", { className: `bar ${kind}` });
  made.style.width = `${Math.min(100, 100 * part)}%`;
  return made;
}

function showBalance(strata) {
  for (const level of ["magnification", ...LEVELS]) {
    const sums = new Map();
    for (const row of strata) {
      const [there, drawn] = sums.get(row[level]) || [0, 0];
      sums.set(row[level], [there + row.there, drawn + row.drawn]);
    }
    const ranked = [...sums].sort((a, b) => b[1][0] - a[1][0]);
    const longest = Math.max(...ranked.flatMap(([, pair]) => pair), 1e-12);
    const rows = ranked.slice(0, PAIRS).map(([name, [there, drawn]]) => element("tr", {},
      element("th", { scope: "row", textContent: name }),
      element("td", {}, bar("there", there / longest), bar("drawn", drawn / longest)),
      element("td", { className: "n", textContent: share(there) }),
      element("td", { className: "n", textContent: share(drawn) })));
    if (ranked.length > PAIRS) {
      const rest = `and ${count(ranked.length - PAIRS)} more, in the table of strata`;
      rows.push(element("tr", {}, element("td", { colSpan: 4, textContent: rest })));
    }
    document.querySelector(`#by-${level} tbody`).replaceChildren(...rows);
  }
}

// Tables that sort, of which one page is shown

const missing = (value) => value === null || value === undefined || value === "";
const compare = {
  text: (a, b) => a.localeCompare(b, "en", { numeric: true }),
  number: (a, b) => a - b,
  magnification: (a, b) => parseInt(a, 10) - parseInt(b, 10),
};
const kinds = {
  text: { compare: compare.text },
  file: { compare: compare.text, className: "file", cell: (value, row) => [value, element("small", { textContent: row.note })] },
  status: { compare: compare.text, cell: (value) => [element("span", { className: `pill ${value}`, textContent: value })] },
  magnification: { compare: compare.magnification },
  count: { compare: compare.number, className: "n", text: count, adds: true },
  number: { compare: compare.number, className: "n", text: significant },
  ratio: { compare: compare.number, className: "n", text: (value) => `× ${significant(value)}` },
  share: { compare: compare.number, className: "n share", text: share, adds: true },
};

class SortedTable {
  constructor(id) {
    this.table = document.getElementById(id);
    this.more = this.table.closest("section").querySelector(".more");
    this.columns = [...this.table.tHead.rows[0].cells].map((th) => ({ th, key: th.dataset.key, kind: kinds[th.dataset.kind] }));
    this.key = this.table.dataset.sort.replace("-", "");
    this.descending = this.table.dataset.sort.startsWith("-");
    for (const { th, key, kind } of this.columns) {
      th.className = kind.className || "";
      th.querySelector("button").addEventListener("click", () => this.sortBy(key, kind));
    }
  }

  sortBy(key, kind) {
    this.descending = this.key === key ? !this.descending : kind.compare === compare.number;
    this.key = key;
    this.draw();
  }

  show(rows, sums) {
    this.rows = rows;
    this.sums = sums;
    this.shown = Number(this.table.dataset.rows);
    this.draw();
  }

  draw() {
    const { kind } = this.columns.find((column) => column.key === this.key);
    const sign = this.descending ? -1 : 1;
    this.rows = [...this.rows].sort((a, b) => {
      const [left, right] = [a[this.key], b[this.key]];
      return missing(left) - missing(right) || (missing(left) ? 0 : sign * kind.compare(left, right));
    });
    for (const column of this.columns) {
      const order = column.key === this.key ? (this.descending ? "descending" : "ascending") : "none";
      column.th.setAttribute("aria-sort", order);
    }
    this.longest = {};
    for (const { key, kind: { text } } of this.columns) {
      if (text === share) this.longest[key] = this.rows.reduce((most, row) => Math.max(most, row[key]), 1e-12);
    }
    this.table.tBodies[0].replaceChildren(...this.rows.slice(0, this.shown).map((row) => this.line(row)));
    this.table.tFoot.replaceChildren(element("tr", {}, ...this.columns.map((column, at) => this.footCell(column, at))));
    this.drawMore();
  }

  line(row) {
    return element("tr", {}, ...this.columns.map(({ key, kind }) => {
      const value = row[key];
      const cell = element("td", { className: kind.className || "" });
      if (missing(value) && !kind.cell) cell.textContent = kind.compare === compare.number ? "–" : "";
      else if (kind.cell) cell.append(...kind.cell(value, row));
      else cell.append(element("span", { textContent: kind.text ? kind.text(value) : value }));
      if (kind.text === share) cell.prepend(bar(key === "there" ? "there" : "drawn", value / this.longest[key]));
      return cell;
    }));
  }

  footCell({ key, kind }, at) {
    if (at === 0) return element("td", { textContent: `${count(this.rows.length)} rows` });
    const known = key in this.sums ? this.sums[key] : kind.adds ? sum(this.rows, key) : null;
    return element("td", { className: kind.className || "", textContent: known === null ? "" : kind.text(known) });
  }

  drawMore() {
    const rest = this.rows.length - this.shown;
    const next = element("button", { type: "button", textContent: `Show ${count(Math.min(rest, MORE_ROWS))} more` });
    next.addEventListener("click", () => { this.shown += MORE_ROWS; this.draw(); });
    this.more.replaceChildren(...(rest > 0 ? [`${count(this.shown)} of ${count(this.rows.length)} rows are shown; sums are of all. `, next] : []));
  }
}

// Pictures: of an overlay, one panel at a time is shown

const large = document.getElementById("large");
const thumbs = new Map(); // the button that opens a picture: the picture
let opener = null;
let wanted = null; // name of the panel that was chosen last

const WHOLE = ["", 0, 0, data.tilePx, data.tilePx];
const panelsOf = (found) => found.panels || [WHOLE];
const outlined = (found) => panelsOf(found)[Math.min(1, panelsOf(found).length - 1)];
const panelNames = { slide: "Bare slide", tissue: "Outline" };
const panelName = (name) => panelNames[name] || `Outline, ${name} tiles`;

// Cuts the frame's image to a panel: the frame has the panel's shape, the image reaches beyond it.
function cutTo(frame, found, [, x, y, width, height]) {
  const [wide, high] = found.px || [data.tilePx, data.tilePx];
  const percent = (part) => `${100 * part}%`;
  frame.style.aspectRatio = `${width} / ${height}`;
  Object.assign(frame.querySelector("img").style, {
    width: percent(wide / width), height: percent(high / height), left: percent(-x / width), top: percent(-y / height),
  });
}

function enlarge(thumb) {
  opener = thumb;
  const found = thumbs.get(thumb);
  const image = thumb.querySelector("img");
  Object.assign(large.querySelector("img"), { src: image.src, alt: image.alt });
  large.querySelector("p").textContent = image.alt;
  showPanel(found, panelsOf(found).find(([name]) => name === wanted) || outlined(found));
  if (!large.open) large.showModal();
}

function showPanel(found, panel) {
  const [name, , , width, height] = panel;
  const frame = large.querySelector(".frame");
  cutTo(frame, found, panel);
  frame.style.width = `min(92vw, calc((100vh - 11rem) * ${width / height}), ${2 * width}px)`;
  const several = panelsOf(found).length > 1;
  large.querySelector("small span").hidden = !several;
  const choices = large.querySelector(".choices");
  const held = choices.contains(document.activeElement);
  choices.replaceChildren(...(several ? panelsOf(found) : []).map((other) => {
    const choice = element("button", { type: "button", textContent: panelName(other[0]) });
    choice.setAttribute("aria-pressed", other[0] === name);
    choice.addEventListener("click", (event) => {
      event.stopPropagation(); // else it would close, as it does by a click elsewhere
      choosePanel(found, other);
    });
    return choice;
  }));
  if (held) (choices.querySelector("[aria-pressed=true]") || large.querySelector(".close")).focus();
}

function choosePanel(found, panel) {
  [wanted] = panel;
  showPanel(found, panel);
}

large.addEventListener("click", () => large.close());
large.addEventListener("close", () => opener.focus());
large.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const up = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step && !up) return;
  event.preventDefault();
  if (step) {
    const shown = [...thumbs.keys()].filter((thumb) => thumb.offsetParent);
    const next = shown[shown.indexOf(opener) + step];
    if (next) enlarge(next);
  } else {
    const found = thumbs.get(opener);
    const at = [...large.querySelectorAll(".choices button")].findIndex((choice) => choice.ariaPressed === "true");
    const panel = at < 0 ? null : panelsOf(found)[at + up];
    if (panel) choosePanel(found, panel);
  }
});

function picture(found, words, lines) {
  const [name, ...about] = lines;
  const caption = name ? [element("figcaption", {}, element("b", { textContent: name }), ...about)] : [];
  if (!found.jpeg) {
    return element("figure", {}, element("div", { className: "gone", textContent: found.missing, title: words }), ...caption);
  }
  const source = `data:image/jpeg;base64,${found.jpeg}`;
  const frame = element("span", { className: "frame" }, element("img", { alt: words, src: source }));
  const [, , , width, height] = outlined(found);
  cutTo(frame, found, outlined(found));
  frame.style[width / height > 4 / 3 ? "width" : "height"] = "100%";
  const thumb = element("button", { type: "button", className: "thumb", title: words }, frame);
  thumb.setAttribute("aria-label", `Enlarge ${words}`);
  thumb.addEventListener("click", () => enlarge(thumb));
  thumbs.set(thumb, found);
  return element("figure", {}, thumb, ...caption);
}

function makeGallery() {
  for (const found of data.overlays) {
    const slide = byNumber.get(found.slide);
    const about = [slide.status === "ok" ? "" : slide.status, slide.stain, slide.institution, slide.tissue].filter(Boolean).join(", ");
    const look = found.look.map((reason) => element("span", { className: "look", textContent: reason }));
    found.figure = picture(found, `${slide.file}: ${about}`, [slide.file, about, ...look]);
    found.figure.id = `slide-${found.slide}`;
    document.querySelector(".gallery").append(found.figure);
  }
}

function makeStrips() {
  const strips = new Map();
  for (const found of data.tiles) {
    const slide = byNumber.get(found.slide);
    const stratum = [found.magnification, ...LEVELS.map((level) => slide[level])].join(" · ");
    if (!strips.has(stratum)) strips.set(stratum, element("div", { className: "row" }));
    const at = `tile ${found.index} at ${count(found.x0)}, ${count(found.y0)} (level-0 px), ${significant(found.mpp)} µm/px`;
    const words = `${stratum}: ${slide.file}, ${at}`;
    found.figure = picture(found, words, []);
    strips.get(stratum).append(found.figure);
  }
  const ranked = [...strips].sort(([a], [b]) => compare.magnification(b, a) || compare.text(a, b));
  for (const [name, row] of ranked) {
    const strip = element("div", { className: "strip" }, element("h3", { textContent: name }), row);
    document.querySelector(".strips").append(strip);
  }
}

function showPictures(numbers, magnifications) {
  for (const found of data.overlays) found.figure.hidden = !numbers.has(found.slide);
  for (const found of data.tiles) {
    found.figure.hidden = !(numbers.has(found.slide) && magnifications.includes(found.magnification));
  }
  for (const strip of document.querySelectorAll(".strip")) strip.hidden = !strip.querySelector("figure:not([hidden])");
  for (const line of document.querySelectorAll("[data-slide]")) {
    const number = Number(line.dataset.slide);
    line.hidden = byNumber.has(number) && !numbers.has(number);
  }
  for (const list of document.querySelectorAll(".first")) list.hidden = !list.querySelector("[data-slide]:not([hidden])");
  for (const reason of document.querySelectorAll(".reason")) reason.hidden = !reason.querySelector("li:not([hidden])");
  const shown = (list) => count(list.filter((found) => !found.figure.hidden).length);
  document.getElementById("gallery-says").textContent =
    `${shown(data.overlays)} of the ${count(data.overlays.length)} on this page; green is the outline of the tissue, blue are tiles. Open one by click or Enter to judge it, and for its tiles at each magnification.`;
  document.getElementById("tiles-says").textContent =
    `${shown(data.tiles)} of the ${count(data.tiles.length)} on this page, drawn at random for each stratum.`;
}

// All together

const strataTable = new SortedTable("strata");
const slidesTable = new SortedTable("slides");

function show() {
  const found = chosen();
  const strata = strataOf(found);
  const ok = found.slides.filter((slide) => slide.status === "ok");
  showCards(found, strata);
  showBalance(strata);
  const made = found.slides.filter((slide) => found.magnifications.some((name) => slide[name] > 0));
  strataTable.show(strata, { slides: made.length, mm2: sum(made, "mm2") });
  slidesTable.show(found.slides, { mm2: sum(ok, "mm2") });
  showPictures(new Set(found.slides.map((slide) => slide.number)), found.magnifications);
}

fillChoices();
makeGallery();
makeStrips();
show();
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(show));
