"use strict";
// Text from outside only ever becomes text nodes: nothing here parses HTML.
const PAGE = 50;
const at = (id) => document.getElementById(id);
const read = (id) => JSON.parse(at(id).textContent);
const items = read("items"), strips = read("strips"), tagNames = read("tag-names");
let found = items, page = 0, waiting = 0;

const make = (name, className, ...children) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
};

const answerText = (answer) => (answer === null ? "no answer" : answer);

const roundRow = (round) => {
  const span = round.span_s ? ` (${round.span_s[0]} to ${round.span_s[1]} s)` : "";
  const damaged = round.damaged ? `, ${round.damaged} damaged` : "";
  const votes = round.votes.map(([answer, count]) => `${answerText(answer)} × ${count}`);
  const numCancelled = round.completions.filter((c) => c.cancelled).length;
  if (numCancelled) votes.push(`cancelled × ${numCancelled}`);
  const right = round.right === null ? "not known" : round.right ? "right" : "wrong";
  return make("tr", "", make("td", "", round.frames + span + damaged), make("td", "text", votes.join(", ")),
    make("td", "", `${Math.round(100 * round.agreement)} %`), make("td", right, right));
};

const roundsTable = (rounds) => {
  const head = make("tr", "", ...["Frames", "Votes", "Agreement", "Majority"].map((name) => make("th", "", name)));
  return make("table", "", make("thead", "", head), make("tbody", "", ...rounds.map(roundRow)));
};

const reasoning = (rounds) => {
  const count = rounds.reduce((sum, round) => sum + round.completions.length, 0);
  const box = make("details", "", make("summary", "", `Reasoning: ${count} completions`));
  box.addEventListener("toggle", () => {
    for (const round of rounds) {
      box.append(make("h4", "", `${round.frames} frames`));
      for (const c of round.completions) {
        const note = c.cancelled ? "cancelled" : `read as: ${answerText(c.answer)}`;
        box.append(make("p", "quiet", note), make("pre", "", c.text));
      }
    }
  }, { once: true });
  return count ? box : "";
};

const option = (item, [letter, text]) => {
  const marks = [item.gold === letter && "right", item.answer === letter && "chosen"].filter(Boolean);
  const color = marks[0] === "right" ? "right" : marks.length && item.gold !== null ? "wrong" : "";
  const note = marks.length ? make("strong", "", ` (${marks.join(", ")})`) : "";
  return make("li", color, `${letter}. ${text}`, note);
};

const strip = (item) => Object.assign(make("img", ""),
  { src: strips[item.id], alt: "Frames of the last round, at most 8 of them, in order" });

const card = (item) => {
  const badges = item.tags.map((tag) => make("span", `badge ${tag}`, tagNames[tag]));
  const groups = Object.entries(item.groups).map(([name, value]) => `${name}: ${value}`);
  const node = make("article", "", make("div", "", ...badges), make("h3", "", item.question || item.id),
    make("p", "quiet", [`id ${item.id}`, item.video, ...groups].filter(Boolean).join(" · ")));
  if (item.error) node.append(make("p", "failed", item.error));
  if (Object.hasOwn(strips, item.id)) node.append(strip(item));
  if (item.options.length) node.append(make("ul", "options", ...item.options.map((o) => option(item, o))));
  else node.append(make("p", "", `Answer: ${answerText(item.answer)}; right: ${item.gold === null ? "not known" : item.gold}`));
  if (item.rounds.length) node.append(roundsTable(item.rounds), reasoning(item.rounds));
  return node;
};

const words = (item) => item.words ??= [item.id, item.question, item.video, item.answer, item.error,
  ...item.options.flat(), ...item.rounds.flatMap((r) => r.completions.map((c) => c.text))].join("\n").toLowerCase();

const show = (number) => {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(Math.max(number, 0), pages - 1);
  at("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
  at("count").textContent = `${found.length} of ${items.length} questions`;
  at("page").textContent = `page ${page + 1} of ${pages}`;
  at("previous").disabled = page === 0;
  at("next").disabled = page === pages - 1;
};

const filter = () => {
  const tag = at("tag").value, group = at("group")?.value, text = at("search").value.trim().toLowerCase();
  const [name, value] = group ? JSON.parse(group) : [];
  found = items.filter((item) => (!tag || item.tags.includes(tag))
    && (!group || item.groups[name] === value) && (!text || words(item).includes(text)));
  show(0);
};

const turn = (step) => { show(page + step); at("questions").scrollIntoView(); };
at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
// not of the form: the search's own change comes with a click elsewhere, which would then be lost
for (const select of document.querySelectorAll("select")) select.addEventListener("change", filter);
at("filters").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
at("previous").addEventListener("click", () => turn(-1));
at("next").addEventListener("click", () => turn(1));
filter();
