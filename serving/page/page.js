/* What a person sees, and what happens on a click. */

const DEBOUNCE_MS = 150;
let versions = [];
let timer = 0;
let latest = 0;
let underWay = null;
/** The answers that are shown, one for each version: {version, items, reasons}. */
let answers = [];
/** What the version says of itself that the form is made for. */
let form = null;

/* ---- The request ---- */

function drawUser() {
  const hints = {
    nobody: `${DATA.known_users.toLocaleString("en")} known users${DATA.users.id.length < DATA.known_users ? `, ${DATA.users.id.length.toLocaleString("en")} of them with their histories in this page` : ""}.`,
    shown: "Known to the model.",
    unknown: `No user ${state.user} is known: the answer is the one for nobody.`,
    hidden: `The history of ${state.user} is not in this page. The model answers by what it knows; without an entry, as for nobody.`,
  };
  const children = [hints[standing()]];
  const newest = newestOf();
  if (newest !== null) {
    children.push(" Last interaction ", element("span", { class: "whole" }, `${inWords(newest)}.`));
    if (TIME) children.push(" ", button("Ask as of then", `Ask as of ${inWords(newest)}`, "as-of", () => { state.typed[TIME] = String(newest); drawFeatures(); changed(); }));
  }
  fill($("user-hint"), children, $("user"));
  $("user").value = state.user;
}

function picked(items, key, remove, extra = () => []) {
  return items.map((id, place) => element("li", {},
    element("button", { type: "button", class: "title", "data-key": `${key}-similar-${place}`, click: () => openSimilar(id) }, titleOf(id)),
    extra(id, place),
    button("×", `Remove ${titleOf(id)}`, `${key}-remove-${place}`, () => remove(place))));
}

function drawHistory() {
  const items = state.history;
  const move = (from, to) => {
    const moved = [...items];
    moved.splice(to, 0, ...moved.splice(from, 1));
    changeHistory(moved);
    drawHistory();
    // The focus goes with the item.
    const ways = to > from ? ["up", "down"] : ["down", "up"];
    const arrows = ways.map((way) => $("history").querySelector(`[data-key="history-${way}-${to}"]`));
    arrows.find((arrow) => !arrow.disabled)?.focus();
    changed();
  };
  const remove = (place) => { changeHistory(items.filter((_, other) => other !== place)); drawHistory(); changed(); };
  const arrowsOf = (id, place) => {
    const newer = button("↑", `Move ${titleOf(id)} to newer`, `history-up-${place}`, () => move(place, place + 1));
    const older = button("↓", `Move ${titleOf(id)} to older`, `history-down-${place}`, () => move(place, place - 1));
    newer.disabled = place === items.length - 1;
    older.disabled = place === 0;
    return [newer, older];
  };
  fill($("history"), picked(items, "history", remove, arrowsOf).reverse(), $("history-add"));
  $("history-count").textContent = items.length ? `(${items.length})` : "";
  $("history-clear").disabled = !items.length;
  show($("history"), items.length > 0);
  const isModels = standing() === "hidden" && !state.isOwnHistory;
  say($("history-hint"), items.length ? "The newest first." : isModels
    ? "The one that the model knows. Adding an item puts a list of your own in its place."
    : "Empty. Add an item here, or with + beside a recommendation.");
}

function drawExclusions() {
  const remove = (place) => { state.exclude.splice(place, 1); drawExclusions(); changed(); };
  fill($("exclude"), picked(state.exclude, "exclude", remove), $("exclude-add"));
  show($("exclude"), state.exclude.length > 0);
  $("exclude-count").textContent = state.exclude.length ? `(${state.exclude.length})` : "";
}

function drawFilters() {
  for (const column of Object.keys(DATA.filters)) {
    const remove = (place) => { state.filters[column].splice(place, 1); drawFilters(); changed(); };
    fill($(`filter-${column}-picked`), state.filters[column].map((value, place) => element("li", {},
      element("span", { class: "title" }, value), button("×", `Remove ${value}`, `filter-${column}-${place}`, () => remove(place)))), $(`filter-${column}`));
    show($(`filter-${column}-picked`), state.filters[column].length > 0);
  }
  const count = Object.values(state.filters).flat().length;
  $("filters-count").textContent = count ? `(${count})` : "";
}

function makeFilters() {
  for (const [column, values] of Object.entries(DATA.filters)) {
    const input = element("input", { id: `filter-${column}`, spellcheck: "false", placeholder: "any" });
    $("filters").append(element("div", { class: "field" },
      element("label", { for: input.id }, `${column}, one of`), input,
      element("ul", { id: `filter-${column}-picked`, class: "picked chips", "aria-label": `${column}: values that are asked for` })));
    const like = (text) => values.filter((value) => plain(value).includes(plain(text)) && !state.filters[column].includes(value)).slice(0, 50);
    combobox(input, (text) => like(text).map((value) => ({ id: value, label: value })), (value) => {
      state.filters[column].push(value);
      drawFilters();
      changed();
    });
  }
}

/** Makes a field for each feature of the version that is asked, unless there are these fields already. */
function makeFeatures(metadata) {
  const features = featuresOf(metadata);
  const isMade = form !== null && JSON.stringify(features) === JSON.stringify(featuresOf(form));
  form = metadata;
  if (isMade) return;
  $("features").replaceChildren(...Object.entries(features).map(([column, spec]) => {
    const input = element("input", { id: `feature-${column}`, "data-column": column, spellcheck: "false", "aria-describedby": `hint-${column}` });
    input.inputMode = spec.dtype === "DT_FLOAT" && !spec.isList ? "decimal" : "text";
    input.addEventListener("input", () => { state.typed[column] = input.value; drawFeatures(); changed(); });
    const field = element("div", { class: "field" }, element("label", { for: input.id }, column), input);
    const values = DATA.users.suggestions[column] ?? [];
    if (values.length && !spec.isList) {
      combobox(input, (text) => values.filter((value) => plain(value).includes(plain(text)) && value !== text).map((value) => ({ id: value, label: value })), (value) => {
        if (value === (state.typed[column] ?? "")) return;
        state.typed[column] = value;
        drawFeatures();
        changed();
      }, true);
    }
    field.append(element("p", { class: "hint", id: `hint-${column}` }));
    return field;
  }));
  show($("features-section"), Object.keys(features).length > 0);
}

function hintOf(column, spec) {
  const typed = (state.typed[column] ?? "").trim();
  if (spec.dtype === "DT_INT64") {
    const seconds = secondsOf(typed);
    return typed ? (seconds === null ? "" : inWords(seconds)) : "No time. Write a date, or seconds since 1970.";
  }
  if (column === DATA.age) {
    const age = ageOf(secondsOf((state.typed[TIME] ?? "").trim()));
    return !typed && age !== null ? `Known: ${age} s since the last interaction, ${Math.floor(age / 86400).toLocaleString("en")} days.` : "Seconds since the last interaction; empty or 0 is in-session.";
  }
  const known = knownOf(column);
  if (known !== null) return typed ? `In place of ${[known].flat().join(", ")}.` : `Known: ${[known].flat().join(", ")}.`;
  return typed ? "" : spec.isList ? "Missing. Write values with commas between them." : "Missing.";
}

function drawFeatures() {
  if (!form) return;
  let mistakes = new Map();
  try {
    typedValues(form);
  } catch (error) {
    mistakes = error.found;
    $("features-section").open = true;
  }
  for (const [column, spec] of Object.entries(featuresOf(form))) {
    const input = $(`feature-${column}`);
    if (input.value !== (state.typed[column] ?? "")) input.value = state.typed[column] ?? "";
    input.setAttribute("aria-invalid", String(mistakes.has(column)));
    $(`hint-${column}`).textContent = mistakes.get(column) ?? hintOf(column, spec);
    $(`hint-${column}`).classList.toggle("wrong", mistakes.has(column));
  }
}

const inWords = (seconds) => new Date(1000 * seconds).toISOString().replace("T", " ").slice(0, 16) + " UTC";

/* ---- The answers ---- */

function drawNotes() {
  const notes = [];
  if (DATA.items.id.length < DATA.catalogue_size) {
    notes.push(`This page has the titles of ${DATA.items.id.length.toLocaleString("en")} of ${DATA.catalogue_size.toLocaleString("en")} items, the most popular ones; others are added by their id.`);
  }
  if (versions.length && !versions.includes(DATA.version)) {
    notes.push(`This page was made for version ${DATA.version}, which does not answer any more: titles and histories may be older than the model. Load or write the page again.`);
  }
  $("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  show($("notes"), notes.length > 0);
}

function drawVersions() {
  const newest = versions[0] ? `newest (${versions[0]})` : "newest";
  const numbers = versions.map((number) => [number, number]);
  const options = (pairs, chosen) => pairs.map(([value, text]) => element("option", { value, selected: value === chosen }, text));
  // One that was chosen and is gone stays in the list: its error says so.
  const kept = state.version && !versions.includes(state.version) ? [[state.version, `${state.version} (gone)`]] : [];
  $("version").replaceChildren(...options([["", newest], ...numbers, ...kept], state.version));
  const keptBeside = state.beside && !versions.includes(state.beside) ? [[state.beside, `${state.beside} (gone)`]] : [];
  $("beside").replaceChildren(...options([["none", "nothing"], ...numbers, ...keptBeside], state.beside ?? "none"));
  for (const field of document.querySelectorAll(".of-versions")) show(field, versions.length > 1 || kept.length > 0 || state.beside !== null);
}

function drawAnswers() {
  const drawn = answers.map((answer, column) => {
    const others = answers.length > 1 ? answers[1 - column].items : null;
    const items = state.shown ? answer.items.slice(0, state.shown) : answer.items;
    const heading = element("h2", { tabindex: "-1" }, answers.length > 1 ? `Version ${answer.version}` : "Recommendations",
      element("span", { class: "count" }, ` (${items.length} of ${answer.items.length})`));
    const empty = "No item is left: all are filtered out, excluded, or in the history.";
    return element("section", {}, heading, items.length
      ? element("ol", { class: "items" }, items.map((item, place) => drawItem(item, place, answer, others, column)))
      : element("p", { class: "empty" }, empty));
  });
  fill($("lists"), drawn, $("answers"));
  $("lists").classList.toggle("two", answers.length > 1);
  $("lists").classList.remove("stale");
}

function drawItem(item, place, answer, others, column) {
  const reasons = $("reasons").checked ? answer.reasons?.get(item.id) : null;
  return element("li", {},
    element("div", { class: "item" },
      element("span", { class: "rank" }, String(place + 1)),
      element("div", { class: "what" },
        element("button", { type: "button", class: "title", "data-key": `${column}-similar-${item.id}`, click: () => openSimilar(item.id), "aria-description": "Similar items" }, item.title || item.id),
        element("span", { class: "detail" }, [item.id, attributesOf(item.id)].filter(Boolean).join(" · ")),
        others ? drawMove(item, place, others) : null),
      element("span", { class: "score" }, decimals(item.score)),
      itemButtons(item, `${column}-`)),
    reasons ? drawReasons(reasons) : null);
}

/** Where an item stands in the other version's answer. */
function drawMove(item, place, others) {
  const there = others.findIndex((other) => other.id === item.id);
  if (there === place) return null;
  const text = there < 0 ? "only here" : `${there > place ? "▲" : "▼"} ${there + 1} there`;
  return element("span", { class: there < 0 ? "move new" : "move" }, text);
}

function itemButtons(item, prefix, after = () => {}) {
  const buttons = [];
  if (DATA.history) {
    buttons.push(button("+", `Add ${item.title || item.id} to the history`, `${prefix}add-${item.id}`, () => { addToHistory(item.id); after(); }));
  }
  buttons.push(button("−", `Leave out ${item.title || item.id}`, `${prefix}exclude-${item.id}`, () => { exclude(item.id); after(); }));
  return element("span", { class: "buttons" }, buttons);
}

function drawReasons({ parts, because, isExact }) {
  const signed = (score) => `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;
  const line = (words, pairs) => element("p", {}, element("span", { class: "lead" }, words),
    // Spaces between them, where a line may break.
    pairs.flatMap(([name, score]) => [" ", element("span", {}, `${name}\u00a0`, element("b", {}, score))]));
  const exact = parts.filter((part) => part.isExact);
  const others = parts.filter((part) => !part.isExact);
  // What adds nothing that can be seen is left out.
  const pairsOf = (list, sign) => list.filter((each) => Math.abs(each.score) >= 0.005).map((each) => [each.name, signed(sign * each.score)]);
  return element("div", { class: "reasons" },
    exact.length ? line("score =", pairsOf(exact, 1)) : null,
    others.length ? line("without", pairsOf(others, -1)) : null,
    because.length ? line(isExact ? "because of" : "without", pairsOf(because, isExact ? 1 : -1)) : null);
}

const decimals = (number) => (number === null ? "" : number.toFixed(3).replace("-", "−"));

/** What `explain` says: item id → its parts and the items of the history that speak for it. */
function reasonsOf(outputs) {
  const [ids, parts, areExact] = [outputs.item_id[0], outputs.part[0], outputs.part_exact[0]];
  return new Map(ids.map((id, place) => [id, {
    parts: parts.map((name, number) => ({ name, score: outputs.part_score[0][place][number], isExact: areExact[number] }))
      .filter((part) => part.score)
      .sort((one, other) => Math.abs(other.score) - Math.abs(one.score)),
    because: itemsOf(outputs, "reason_", (column) => column[0][place] ?? [])
      .filter((reason) => reason.score > 0)
      .map((reason) => ({ name: reason.title || titleOf(reason.id), score: reason.score })),
    isExact: outputs.reason_exact[0],
  }]));
}

function fail(error) {
  $("lists").classList.add("stale");
  $("error").firstElementChild.textContent = error.message;
  // What a person has to mend is asked again when it is mended.
  show($("error").querySelector("button"), !(error instanceof Mistakes));
  show($("error"), true);
  $("status").textContent = answers.length ? "what is below is an earlier answer" : "no answer";
}

/* ---- Asking ---- */

function changed() {
  clearTimeout(timer);
  timer = setTimeout(refresh, DEBOUNCE_MS);
}

/** The versions that are asked: the chosen or newest one, and the one beside it. */
async function askedVersions() {
  // Each time, so that an answer is never of another version than it says.
  const now = await availableVersions();
  if (now.join() !== versions.join()) {
    versions = now;
    drawVersions();
    drawNotes();
  }
  return Promise.all([state.version || versions[0], ...(state.beside === null ? [] : [state.beside])].map(metadataOf));
}

/** Asks for what the request says now. Only the latest of these may show what it got. */
async function refresh() {
  const number = ++latest;
  underWay?.abort();
  underWay = new AbortController();
  const { signal } = underWay;
  const isLatest = () => number === latest;
  try {
    const metadata = await askedVersions();
    if (!isLatest()) return;
    makeFeatures(metadata[0]);
    drawFeatures();
    const asked = metadata.map(recommendation);
    drawCommand(metadata[0], asked[0]);
    const started = performance.now();
    const outputs = await Promise.all(asked.map(({ signature, inputs }, place) => predict(metadata[place], signature, inputs, signal)));
    const took = performance.now() - started;
    if (!isLatest()) return;
    const found = outputs.map((output, place) => ({ version: metadata[place].version, items: itemsOf(output), reasons: null }));
    found.forEach(({ items }) => learn(items));
    const isExplained = metadata.some(canExplain);
    show($("reasons-field"), isExplained);
    if (isExplained && $("reasons").checked) {
      const reasons = await Promise.all(metadata.map((each, place) => explain(each, found[place].items, signal)));
      if (!isLatest()) return;
      found.forEach((answer, place) => { answer.reasons = reasons[place]; });
    }
    answers = found;
    drawAnswers();
    show($("error"), false);
    $("status").textContent = `${asked[0].signature}, version ${answers.map(({ version }) => version).join(" and ")}, ${took.toFixed(0)} ms`;
  } catch (error) {
    if (!isLatest() || error.name === "AbortError") return;
    // Versions come and go: what is known of them is asked again.
    if (error instanceof ServerError) described.clear();
    fail(error instanceof ServerError || error instanceof Mistakes ? error : new Error(`This page has a mistake: ${error.message}`));
  }
}

async function explain(metadata, items, signal) {
  const asked = (state.shown ? items.slice(0, state.shown) : items).map((item) => item.id);
  if (!canExplain(metadata) || !asked.length) return null;
  const inputs = { ...everything(typedValues(metadata)), [EXPLAIN]: asked };
  return reasonsOf(await predict(metadata, EXPLAIN, inputs, signal));
}

function drawCommand(metadata, { signature, inputs }) {
  const url = new URL(`${DATA.server}/v1/models/${encodeURIComponent(DATA.model)}/versions/${metadata.version}:predict`, location.href);
  const body = bodyOf(signature, metadata.signatures[signature], inputs).replaceAll("'", "'\\''");
  $("curl").textContent = `curl -d '${body}' \\\n  ${url}`;
}

function addToHistory(id) {
  changeHistory([...state.history, id]);
  drawHistory();
  drawFeatures();
  changed();
}

function exclude(id) {
  if (!state.exclude.includes(id)) state.exclude.push(id);
  drawExclusions();
  changed();
}

/* ---- Similar items ---- */

let latestSimilar = 0;

async function openSimilar(id) {
  const number = ++latestSimilar;
  const dialog = $("similar");
  $("similar-title").textContent = `Similar to ${titleOf(id)}`;
  if (!dialog.open) dialog.showModal();
  $("similar-title").focus();
  try {
    const [metadata] = await askedVersions();
    const items = itemsOf(await predict(metadata, "similar_items", { item_id: id }));
    if (number !== latestSimilar) return;
    learn(items);
    say($("similar-error"), items.length ? "" : `The model has no item ${id}.`);
    $("similar-list").replaceChildren(...items.slice(0, 20).map((item, place) => element("li", {}, element("div", { class: "item" },
      element("span", { class: "rank" }, String(place + 1)),
      element("div", { class: "what" },
        element("button", { type: "button", class: "title", click: () => openSimilar(item.id) }, item.title || item.id),
        element("span", { class: "detail" }, [item.id, attributesOf(item.id)].filter(Boolean).join(" · "))),
      element("span", { class: "score" }, decimals(item.score)),
      itemButtons(item, "similar-", () => dialog.close())))));
  } catch (error) {
    if (number !== latestSimilar) return;
    $("similar-list").replaceChildren();
    say($("similar-error"), error.message);
  }
}

/* ---- The start ---- */

function start() {
  document.title = `${DATA.model} · twotower`;
  $("model").textContent = DATA.model;
  show($("models-field"), DATA.models.length > 1);
  $("models").replaceChildren(...DATA.models.map((name) => element("option", { selected: name === DATA.model }, name)));
  $("models").addEventListener("change", () => { location.search = `?model=${encodeURIComponent($("models").value)}`; });

  const setUser = (id) => {
    if (id === state.user) return;
    pickUser(id);
    drawUser();
    drawHistory();
    drawFeatures();
    changed();
  };
  const usersLike = (text) => DATA.users.id.filter((id) => id.startsWith(text) && id !== text).slice(0, MOST_OPTIONS);
  combobox($("user"), (text) => usersLike(text).map((id) => ({ id, label: id, detail: `${DATA.users.history[USER.get(id)].length} items` })), setUser, true);
  $("nobody").addEventListener("click", () => {
    pickUser("");
    drawUser();
    drawHistory();
    drawFeatures();
    changed();
  });
  show($("who"), DATA.known_users > 0);

  combobox($("history-add"), itemsLike, addToHistory);
  $("history-clear").addEventListener("click", () => { changeHistory([]); drawHistory(); drawFeatures(); changed(); $("history-add").focus(); });
  show($("history-section"), DATA.history !== null);
  combobox($("exclude-add"), itemsLike, exclude);
  makeFilters();
  show($("filters-section"), Object.keys(DATA.filters).length > 0);

  $("shown").addEventListener("change", () => { state.shown = Number($("shown").value); changed(); });
  $("reasons").addEventListener("change", changed);
  $("version").addEventListener("change", () => { state.version = $("version").value; changed(); });
  $("beside").addEventListener("change", () => { state.beside = $("beside").value === "none" ? null : $("beside").value; changed(); });
  $("error").querySelector("button").addEventListener("click", refresh);
  $("request").addEventListener("submit", (event) => event.preventDefault());
  $("similar-close").addEventListener("click", () => $("similar").close());
  $("similar").addEventListener("click", (event) => { if (event.target === $("similar")) $("similar").close(); });

  // On a phone the answers are below the request: what is not needed at once is folded.
  if (matchMedia("(max-width: 60rem)").matches) for (const folded of document.querySelectorAll(".folds")) folded.open = false;
  if (TIME) state.typed[TIME] = String(Math.floor(Date.now() / 1000));
  drawUser();
  drawHistory();
  drawExclusions();
  drawFilters();
  refresh();
}

start();
