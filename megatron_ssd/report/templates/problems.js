// Filters and sorts the list, and shows one problem. Texts from data are inserted as text, never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const words = JSON.parse($("words").textContent);
  const rows = [...$("rows").rows];
  const byAnchor = new Map(rows.map((row) => [row.dataset.anchor, row]));
  const title = document.title;
  const SHORT_LINES = 12; // longer programs are folded
  const MOST_CELLS = 300;

  // An element with attributes and children; strings become text.
  function el(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const number = (value) => value.toLocaleString("en-US");
  const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

  // ---- the list

  const filters = { difficulty: "level", solved: "solved", half: "half" };
  const order = { key: "order", descending: false };
  const value = (row, key) => {
    if (key === "name") return row.querySelector(".name").textContent.toLowerCase();
    return key === "date" ? row.dataset.date : Number(row.dataset[key]);
  };

  function matches(row) {
    for (const [id, key] of Object.entries(filters)) {
      if ($(id) && $(id).value && row.dataset[key] !== $(id).value) return false;
    }
    const status = $("status").value;
    if (status && !row.dataset.statuses.split(" ").includes(status)) return false;
    const text = $("text").value.trim().toLowerCase();
    return !text || row.cells[0].textContent.toLowerCase().includes(text);
  }

  // Mean share of passing programs over the problems shown, as pass@1 is counted; problems without a score are left out.
  function mean(shown, key) {
    const shares = shown.map((row) => Number(row.dataset[key])).filter((share) => share >= 0);
    return shares.length ? (100 * shares.reduce((sum, share) => sum + share, 0) / shares.length).toFixed(1) + " %" : "–";
  }

  function update() {
    const shown = rows.filter((row) => !(row.hidden = !matches(row)));
    const count = `${number(shown.length)} of ${plural(rows.length, "problem")}`;
    $("shown").textContent = `${count}; pass@1 on them: base ${mean(shown, "base")}, SSD ${mean(shown, "ssd")}.`;
  }

  function sort() {
    const sign = order.descending ? -1 : 1;
    rows.sort((one, other) => {
      const [a, b] = [value(one, order.key), value(other, order.key)];
      return (a < b ? -sign : a > b ? sign : 0) || one.dataset.order - other.dataset.order;
    });
    $("rows").append(...rows);
    $("sort").value = order.key;
    $("direction").setAttribute("aria-pressed", order.descending);
    for (const head of document.querySelectorAll("th[data-key]")) {
      if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function prepareList() {
    for (const row of rows) {
      const name = row.querySelector(".name");
      name.replaceChildren(el("a", { href: `#${row.dataset.anchor}` }, ...name.childNodes));
      row.addEventListener("click", (event) => {
        if (!event.target.closest("a") && !String(getSelection())) location.hash = row.dataset.anchor;
      });
    }
    for (const head of document.querySelectorAll("th[data-key]")) {
      const button = el("button", { type: "button" }, ...head.childNodes);
      button.addEventListener("click", () => {
        const key = head.dataset.key;
        const first = key !== "name" && key !== "difficulty"; // scores and dates: highest first
        order.descending = order.key === key ? !order.descending : first;
        order.key = key;
        sort();
      });
      head.append(button);
    }
    for (const control of $("filters").querySelectorAll("input, select:not(#sort)")) {
      control.addEventListener("input", update);
    }
    $("sort").addEventListener("input", () => { order.key = $("sort").value; sort(); });
    $("direction").addEventListener("click", () => { order.descending = !order.descending; sort(); });
    $("reset").addEventListener("click", () => {
      for (const control of $("filters").querySelectorAll("input, select")) control.value = "";
      Object.assign(order, { key: "order", descending: false });
      sort();
      update();
    });
    $("filters").hidden = false;
    sort();
    update();
  }

  // ---- one problem

  async function unpack(index) {
    const bytes = Uint8Array.from(atob($(`block-${index}`).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // A text as a list of nodes, with a note where it was cut.
  function nodes(text) {
    if (typeof text === "string") return [text];
    const [head, leftOut, tail] = text;
    return [head, el("span", { class: "cut" }, `\n… ${plural(leftOut, "character")} left out …\n`), tail];
  }
  const isEmpty = (text) => text === "";
  const lines = (text) => (typeof text === "string" ? text.trimEnd().split("\n").length : Infinity);

  function fold(summary, texts, label, open) {
    const details = el("details", {}, el("summary", {}, summary),
      el("pre", { tabindex: "0", "aria-label": label }, ...texts.flatMap(nodes)));
    details.open = open;
    return details;
  }

  const status = (name) => el("b", { class: `status s-${name}` }, words.statuses[name]);

  // One square per test, in order; tests that were not run are empty.
  function cells(attempt) {
    const ran = [...attempt.cells].map((letter) => words.letters[letter]);
    const notRun = Math.max(attempt.total - ran.length, 0);
    const shown = [...ran, ...Array(notRun).fill("")].slice(0, MOST_CELLS);
    const counts = new Map();
    for (const name of ran) counts.set(name, (counts.get(name) || 0) + 1);
    const said = [...counts].map(([name, count]) => `${count} ${words.statuses[name]}`);
    if (notRun) said.push(`${notRun} not run`);
    const box = el("div", { class: "cells", role: "img", "aria-label": `tests: ${said.join(", ")}` });
    shown.forEach((name, index) => {
      const title = `test ${index + 1}: ${words.statuses[name] || "not run"}`;
      box.append(el("i", { class: name ? `s-${name}` : "not-run", title }, name ? mark(name) : ""));
    });
    if (attempt.total > MOST_CELLS) box.append(el("small", {}, ` and ${number(attempt.total - MOST_CELLS)} more`));
    return box;
  }

  function failure(block, attempt) {
    const detail = block.texts[attempt.detail];
    const list = el("dl", { class: "failure" });
    const add = (term, text) => list.append(el("dt", {}, term), el("dd", {}, el("pre", { tabindex: "0", "aria-label": term }, ...nodes(text))));
    const test = attempt.failed === null ? undefined : block.tests[attempt.failed];
    if (attempt.failed !== null) list.append(el("dt", {}, "first failing test"), el("dd", {}, `${number(attempt.failed + 1)} of ${number(attempt.total)}`));
    if (test) {
      const [input, output] = test.map((index) => block.texts[index]);
      add(block.checks ? "check" : "input", isEmpty(input) ? "(nothing)" : input);
      if (!block.checks) add("expected", isEmpty(output) ? "(nothing)" : output);
    }
    if (!isEmpty(detail)) add("grading", detail);
    return list.childElementCount ? list : null;
  }

  function attemptView(block, attempt, column, seen) {
    const name = `${words.models[column]} ${attempt.index}`;
    const article = el("article", { class: `program ${column ? "ssd" : "base"}`, id: `${column ? "ssd" : "base"}-${attempt.index}` });
    const run = attempt.total ? `${number(attempt.passed)} of ${plural(attempt.total, "test")}` : "";
    article.append(
      el("header", {}, el("strong", {}, name), el("span", {}, status(attempt.status), run ? ` ${run}` : "")),
      el("p", { class: "note" }, `${words.finish[attempt.finish] || attempt.finish}, ${plural(attempt.tokens, "token")}`),
    );
    if (attempt.total && attempt.cells) article.append(cells(attempt));
    const failed = failure(block, attempt);
    if (failed) article.append(failed);
    const response = [block.texts[attempt.before], block.texts[attempt.after]];
    if (attempt.program !== null) {
      const program = block.texts[attempt.program];
      response.splice(1, 0, program);
      const first = seen.get(attempt.program);
      if (!first) seen.set(attempt.program, name);
      const size = typeof program === "string" ? plural(lines(program), "line") : "cut";
      const note = first ? `Program, the same as ${first}` : `Program, ${size}`;
      article.append(fold(note, [program], `program of ${name}`, !first && lines(program) <= SHORT_LINES));
    }
    if (response.some((text) => !isEmpty(text))) {
      article.append(fold("Whole response", response, `response of ${name}`, false));
    }
    return article;
  }

  // The letter in a square; a passed test has a color and no letter.
  const letters = Object.fromEntries(Object.entries(words.letters).map(([letter, name]) => [name, letter]));
  const mark = (name) => (name === "passed" ? "" : letters[name]);

  // Explains the squares that this problem has.
  function legend(attempts) {
    const used = new Set(attempts.flatMap((attempt) => [attempt.status, ...[...attempt.cells].map((letter) => words.letters[letter])]));
    const items = Object.entries(words.statuses).filter(([name]) => used.has(name));
    return el("ul", { class: "legend cells" },
      ...items.map(([name, text]) => el("li", {}, el("i", { class: `s-${name}` }, mark(name)), text)),
      el("li", {}, el("i", { class: "not-run" }), "test not run"));
  }

  // One square per program, each a link to it.
  function strip(row, attempts, column) {
    const box = el("span", { class: "cells" });
    for (const attempt of attempts) {
      const said = `${attempt.index}: ${words.statuses[attempt.status]}`;
      const link = el("a", { class: `s-${attempt.status}`, href: `#${row.dataset.anchor}`, title: said }, mark(attempt.status));
      link.setAttribute("aria-label", `${words.models[column]} ${attempt.index}: ${words.statuses[attempt.status]}`);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const target = $(`${column ? "ssd" : "base"}-${attempt.index}`);
        target.scrollIntoView({ block: "start" });
        target.querySelector("summary, pre")?.focus({ preventScroll: true });
      });
      box.append(link);
    }
    return box;
  }

  const neighbour = (row, step) => {
    const shown = rows.filter((other) => !other.hidden || other === row);
    return shown[shown.indexOf(row) + step];
  };

  function problemView(row, block) {
    const fields = [row.dataset.level, row.dataset.date, row.dataset.half && `${row.dataset.half} half`].filter(Boolean);
    const step = (text, other) => (other ? el("a", { href: `#${other.dataset.anchor}` }, text) : el("span", { class: "muted" }, text));
    const nav = el("nav", { "aria-label": "Problems" }, el("ul", {}, el("li", {}, el("a", { href: "#" }, "All problems")),
      el("li", {}, step("Previous", neighbour(row, -1))), el("li", {}, step("Next", neighbour(row, 1))),
      el("li", { class: "muted keys" }, "keys: ← → and Esc")));
    const heading = el("h1", { tabindex: "-1" }, row.querySelector(".name").textContent);
    const id = row.querySelector("th small");
    const scores = el("div", { class: "columns scores" }, ...block.columns.map((attempts, column) =>
      el("div", { class: `program ${column ? "ssd" : "base"}` },
        el("header", {}, el("strong", {}, words.models[column]), el("span", {}, `${row.querySelectorAll("td.number")[column].textContent} passed`)),
        strip(row, attempts, column))));
    const view = [nav, heading, el("p", { class: "note" }, [id && id.textContent, ...fields].filter(Boolean).join(", ")),
      el("pre", { class: "statement", tabindex: "0", "aria-label": "statement" }, ...nodes(block.texts[block.statement]))];
    if (!isEmpty(block.texts[block.starter])) view.push(fold("Starter code", [block.texts[block.starter]], "starter code", false));
    view.push(scores, legend(block.columns.flat()), toggles());
    const seen = new Map();
    const pairs = Math.max(...block.columns.map((attempts) => attempts.length));
    for (let index = 0; index < pairs; index += 1) {
      view.push(el("div", { class: "columns pair" }, ...block.columns.map((attempts, column) =>
        (attempts[index] ? attemptView(block, attempts[index], column, seen) : el("div", {})))));
    }
    return view;
  }

  function toggles() {
    const button = (text, open) => {
      const made = el("button", { type: "button" }, text);
      made.addEventListener("click", () => {
        for (const details of $("problem").querySelectorAll(".pair details")) details.open = open;
      });
      return made;
    };
    return el("p", { class: "toggles" }, button("open all", true), button("close all", false));
  }

  let opened = null; // the row whose problem is shown

  function anchorNow() {
    const anchor = location.hash.slice(1);
    return byAnchor.has(anchor) ? anchor : null;
  }

  async function show() {
    const anchor = anchorNow();
    const row = anchor === null ? null : byAnchor.get(anchor);
    const before = opened;
    opened = row;
    $("list").hidden = $("about").hidden = row !== null;
    $("problem").hidden = row === null;
    if (row === null) {
      document.title = title;
      $("problem").replaceChildren();
      if (before) {
        before.querySelector("a").focus({ preventScroll: true });
        before.scrollIntoView({ block: "center" });
      }
      return;
    }
    document.title = `${row.querySelector(".name").textContent} – ${title}`;
    let view;
    try {
      view = problemView(row, await unpack(row.dataset.order));
    } catch (error) {
      view = [el("p", { class: "notice" }, typeof DecompressionStream === "undefined"
        ? "This browser cannot unpack the programs: it has no DecompressionStream. Use a browser of 2023 or later."
        : `This problem cannot be unpacked: ${error.message}. The file is damaged; make the report again.`)];
    }
    if (opened !== row) return; // another problem was opened in the meantime
    $("problem").replaceChildren(...view);
    scrollTo(0, 0);
    $("problem").querySelector("h1")?.focus({ preventScroll: true });
  }

  addEventListener("hashchange", show);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    const step = event.target.closest("pre") ? 0 : { ArrowLeft: -1, ArrowRight: 1 }[event.key]; // these keys scroll a pre
    if (opened && event.key === "Escape") location.hash = "";
    else if (opened && step && neighbour(opened, step)) location.hash = neighbour(opened, step).dataset.anchor;
    else if (!opened && event.key === "/") { event.preventDefault(); $("text").focus(); }
  });
  prepareList();
  show();
})();
