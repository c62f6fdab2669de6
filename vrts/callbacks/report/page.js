"use strict";
// Text from outside only ever becomes text nodes: nothing here parses HTML.
const PAGE = 50;
const at = (id) => document.getElementById(id);
const read = (id) => JSON.parse(at(id).textContent);
const entries = read("entries"), thumbnails = read("thumbnails"), tagNames = read("tag-names");
let found = entries, page = 0, waiting = 0;

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

const option = (entry, [letter, text]) => {
  const marks = [entry.gold === letter && "right", entry.answer === letter && "chosen"].filter(Boolean);
  const color = marks[0] === "right" ? "right" : marks.length && entry.gold !== null ? "wrong" : "";
  const note = marks.length ? make("strong", "", ` (${marks.join(", ")})`) : "";
  return make("li", color, `${letter}. ${text}`, note);
};

const frames = (entry) => Object.assign(make("img", ""),
  { src: thumbnails[entry.id], alt: "Frames of the last round, at most 8 of them, in order" });

const card = (entry) => {
  const badges = entry.tags.map((tag) => make("span", `badge ${tag}`, tagNames[tag]));
  const groups = Object.entries(entry.groups).map(([name, value]) => `${name}: ${value}`);
  const node = make("article", "", make("div", "", ...badges), make("h3", "", entry.question || entry.id),
    make("p", "quiet", [`id ${entry.id}`, entry.video, ...groups].filter(Boolean).join(" · ")));
  if (entry.error) node.append(make("p", "failed", entry.error));
  if (Object.hasOwn(thumbnails, entry.id)) node.append(frames(entry));
  if (entry.options.length) node.append(make("ul", "options", ...entry.options.map((o) => option(entry, o))));
  else node.append(make("p", "", `Answer: ${answerText(entry.answer)}; right: ${entry.gold === null ? "not known" : entry.gold}`));
  if (entry.rounds.length) node.append(roundsTable(entry.rounds), reasoning(entry.rounds));
  return node;
};

const words = (entry) => entry.words ??= [entry.id, entry.question, entry.video, entry.answer, entry.error,
  ...entry.options.flat(), ...entry.rounds.flatMap((r) => r.completions.map((c) => c.text))].join("\n").toLowerCase();

const show = (number) => {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(Math.max(number, 0), pages - 1);
  at("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
  at("count").textContent = `${found.length} of ${entries.length} questions`;
  at("page").textContent = `page ${page + 1} of ${pages}`;
  at("previous").disabled = page === 0;
  at("next").disabled = page === pages - 1;
};

const filter = () => {
  const tag = at("tag").value, group = at("group")?.value, text = at("search").value.trim().toLowerCase();
  const [name, value] = group ? JSON.parse(group) : [];
  found = entries.filter((entry) => (!tag || entry.tags.includes(tag))
    && (!group || entry.groups[name] === value) && (!text || words(entry).includes(text)));
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
