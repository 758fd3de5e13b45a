/* Elements: texts become text and never markup, and a control that is drawn again keeps the focus. */

const $ = (id) => document.getElementById(id);

/** An element with attributes and children; functions are listeners, texts are text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function button(text, label, key, act, kind = "small") {
  return element("button", { type: "button", class: kind, "aria-label": label, title: label, "data-key": key, click: act }, text);
}

/** Replaces what is in `root`. Who was on a button in it is on the same one, or where `otherwise` says. */
function fill(root, children, otherwise = root) {
  const within = root.contains(document.activeElement) && document.activeElement !== root;
  const key = document.activeElement?.dataset?.key;
  const top = root.scrollTop;
  root.replaceChildren(...children);
  root.scrollTop = top;
  if (within) (root.querySelector(`[data-key="${CSS.escape(key ?? "")}"]`) ?? otherwise).focus({ preventScroll: true });
}

function show(node, isShown) {
  node.hidden = !isShown;
}

/** One line in an element, which is hidden without one. */
function say(node, text) {
  node.textContent = text;
  show(node, text !== "");
}

/**
 * A text input with a list of what fits (the ARIA pattern "combobox").
 *   optionsFor(text) → [{id, label, detail}]; picked(id, option) is called with the one that is chosen.
 *   `keeps`: the text stays, and what is typed counts as well.
 */
function combobox(input, optionsFor, picked, keeps = false) {
  const list = element("ul", { role: "listbox", id: `${input.id}-options`, class: "options", hidden: true });
  list.setAttribute("aria-label", input.labels?.[0]?.textContent ?? "");
  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", list.id);
  const holder = element("div", { class: "combobox" });
  input.replaceWith(holder);
  holder.append(input, list);
  let options = [];
  let active = -1;

  function close() {
    show(list, false);
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  }
  function open() {
    options = optionsFor(input.value.trim());
    list.replaceChildren(...options.map((option, place) => element("li",
      // Not click: the input would lose the focus, and with it this list.
      { role: "option", id: `${list.id}-${place}`, "aria-selected": "false", mousedown: (event) => { event.preventDefault(); pick(place); } },
      element("span", {}, option.label), option.detail ? element("span", { class: "detail" }, option.detail) : null)));
    show(list, options.length > 0);
    input.setAttribute("aria-expanded", String(options.length > 0));
    mark(-1);
  }
  function mark(place) {
    active = place;
    [...list.children].forEach((node, number) => node.setAttribute("aria-selected", String(number === place)));
    if (place < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", list.children[place].id);
    list.children[place].scrollIntoView({ block: "nearest" });
  }
  function pick(place) {
    const option = options[place];
    input.value = keeps ? option.id : "";
    close();
    picked(option.id, option);
  }
  input.addEventListener("input", open);
  input.addEventListener("click", () => list.hidden && open());
  input.addEventListener("blur", () => {
    close();
    if (keeps) picked(input.value.trim());
  });
  input.addEventListener("keydown", (event) => {
    const isOpen = !list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) open();
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (options.length) mark(active < 0 && step < 0 ? options.length - 1 : (active + step + options.length) % options.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (active >= 0) pick(active);
      else if (keeps) { close(); picked(input.value.trim()); }
      else if (isOpen && input.value.trim()) pick(0);
    } else if (event.key === "Escape" && isOpen) {
      event.preventDefault();
      close();
    }
  });
  input.setAttribute("aria-expanded", "false");
}

/* Words for what is searched: without accents, in small letters. */
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

const ITEMS = DATA.items.id.map((id, place) => ({ id, title: DATA.items.title[place] ?? "", place }));
const ITEM = new Map(ITEMS.map((item) => [item.id, item]));
const MOST_OPTIONS = 8;
let searched = null;

/** Items whose title has every word of a text, or whose id it is; the most popular first. */
function itemsLike(text) {
  searched ??= ITEMS.map((item) => plain(item.title));
  const words = plain(text).split(/\s+/).filter(Boolean);
  const found = ITEM.has(text) ? [ITEM.get(text)] : [];
  for (let place = 0; place < ITEMS.length && found.length < MOST_OPTIONS; place++) {
    if (ITEMS[place].id !== text && words.every((word) => searched[place].includes(word))) found.push(ITEMS[place]);
  }
  const options = found.map((item) => ({ id: item.id, label: item.title || item.id, detail: attributesOf(item.id) }));
  // An id that this page has no title of may be in the catalogue all the same.
  if (text && !ITEM.has(text) && DATA.items.id.length < DATA.catalogue_size) {
    options.push({ id: text, label: `item id ${text}`, detail: "no title in this page" });
  }
  return options;
}

/** The values of an item's filter columns, in words. */
function attributesOf(id) {
  const item = ITEM.get(id);
  if (item?.place === undefined) return "";
  return Object.entries(DATA.filters)
    .map(([column, values]) => DATA.items[column][item.place].map((number) => values[number]).join(", "))
    .filter(Boolean)
    .join(" · ");
}

const titleOf = (id) => ITEM.get(id)?.title || id;

/** Takes over titles that an answer brings of items that the page lacks. */
function learn(items) {
  for (const item of items) if (!ITEM.has(item.id)) ITEM.set(item.id, { id: item.id, title: item.title });
}
