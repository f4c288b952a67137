"use strict";
(() => {
  const list = document.querySelector(".pairs");
  const cards = [...list.children];
  const filters = [...document.querySelectorAll(".filters button")];
  const storageKey = "monai-memorization gallery " + list.dataset.content;
  const keys = { c: "confirmed", r: "rejected", u: "unsure" };
  let shown = "all";
  let current = null;

  const decisionOf = (card) => card.dataset.decision || "undecided";
  const visible = () => cards.filter((card) => !card.hidden);

  function load() {
    try {
      return JSON.parse(localStorage.getItem(storageKey)) || {};
    } catch {
      return {};
    }
  }

  function save() {
    const decisions = {};
    cards.forEach((card, i) => { if (card.dataset.decision) decisions[i] = card.dataset.decision; });
    try {
      localStorage.setItem(storageKey, JSON.stringify(decisions));
    } catch {
      document.getElementById("kept").hidden = false;
    }
  }

  function mark(card, decision) {
    if (decision) card.dataset.decision = decision;
    else delete card.dataset.decision;
    for (const button of card.querySelectorAll(".decision button")) {
      button.setAttribute("aria-pressed", String(button.value === decision));
    }
  }

  function count() {
    for (const button of filters) {
      const n = button.value === "all" ? cards.length : cards.filter((card) => decisionOf(card) === button.value).length;
      button.querySelector(".n").textContent = n.toLocaleString("en");
    }
    const decided = cards.filter((card) => card.dataset.decision).length;
    document.getElementById("progress").textContent = `${decided} of ${cards.length} pairs decided`;
  }

  function filter() {
    for (const button of filters) button.setAttribute("aria-pressed", String(button.value === shown));
    for (const card of cards) card.hidden = shown !== "all" && decisionOf(card) !== shown;
    document.getElementById("none").hidden = visible().length > 0;
  }

  function go(card) {
    if (!card) return;
    if (current) current.classList.remove("current");
    current = card;
    card.classList.add("current");
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function step(by) {
    const cards = visible();
    const i = cards.indexOf(current);
    go(i < 0 ? cards[0] : cards[Math.min(Math.max(i + by, 0), cards.length - 1)]);
  }

  function decide(card, decision, advance) {
    const before = visible();
    const next = before[before.indexOf(card) + 1];
    mark(card, decision === card.dataset.decision ? null : decision);
    save();
    count();
    filter();
    if (advance) go(next || (card.hidden ? visible().at(-1) : card));
  }

  // pictures hold their slices one under the other: show those at a share of the way through the volume
  function walk(card, share) {
    for (const image of card.querySelectorAll("img")) {
      const n = Number(image.dataset.slices);
      image.style.transform = `translateY(${-100 * Math.min(Math.floor(share * n), n - 1) / n}%)`;
    }
  }

  function walkBy(card, by) {
    const slider = card && !card.hidden && card.querySelector(".walk input");
    if (!slider) return false;
    const n = Math.max(...[...card.querySelectorAll("img")].map((image) => Number(image.dataset.slices)));
    const slice = Math.min(Math.max(Math.floor(Number(slider.value) * n) + by, 0), n - 1);
    slider.value = String((slice + 0.5) / n);
    walk(card, Number(slider.value));
    return true;
  }

  function quoted(text) {
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }

  function csv() {
    const rows = cards.map((card) => {
      const { syntheticId, trainingId, score, pValue } = card.dataset;
      return [syntheticId, trainingId, score, pValue, decisionOf(card)].map(quoted).join(",");
    });
    return ["synthetic_id,training_id,score,p_value,decision", ...rows].join("\n") + "\n";
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  list.addEventListener("click", (event) => {
    const card = event.target.closest(".pairs > li");
    const button = event.target.closest(".decision button");
    if (button) decide(card, button.value, false);
  });
  list.addEventListener("input", (event) => {
    if (event.target.matches(".walk input")) walk(event.target.closest(".pairs > li"), Number(event.target.value));
  });
  for (const button of filters) {
    button.addEventListener("click", () => { shown = button.value; filter(); });
  }
  document.getElementById("export").addEventListener("click", download);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.target.matches("input") && key.startsWith("Arrow")) return;
    if (key === "j" || key === "ArrowRight") step(1);
    else if (key === "k" || key === "ArrowLeft") step(-1);
    else if (keys[key] && current && !current.hidden) decide(current, keys[key], true);
    else if (!((key === "ArrowUp" && walkBy(current, 1)) || (key === "ArrowDown" && walkBy(current, -1)))) return;
    event.preventDefault();
  });

  const decisions = load();
  cards.forEach((card, i) => { if (Object.values(keys).includes(decisions[i])) mark(card, decisions[i]); });
  for (const card of cards) walk(card, 0.5);
  count();
  filter();
})();
