/* What is asked: who, with which history and features, by which rules. */

const EXCLUDE = "exclude";
const FILTER = "filter_";
const BY_ID = "recommend_user";
const ID_INPUT = "user_id";
const EXPLAIN = "explain";
// Each takes what the one after it takes, and more.
const RECOMMEND = ["recommend_filtered", "recommend_excluding", "serving_default"];
const LARGEST_FLOAT = 3.4028234663852886e38;
const LATEST = 253402300799; // the end of the year 9999

const USER = new Map(DATA.users.id.map((id, place) => [id, place]));
const USER_COLUMN = DATA.user;
const TIME = DATA.time;

const state = {
  user: "",
  /** Item ids, oldest first. */
  history: [],
  /** Whether a person changed it; else it is the one that the model knows of the user. */
  isOwnHistory: false,
  /** Feature → the text that a person typed; an empty one says nothing. */
  typed: {},
  filters: Object.fromEntries(Object.keys(DATA.filters).map((column) => [column, []])),
  exclude: [],
  /** "" is the newest. */
  version: "",
  /** A second one to compare with, or null. */
  beside: null,
  shown: 10,
};

/** What a person typed cannot be sent: column → why. */
class Mistakes extends Error {
  constructor(found) {
    super([...found.values()].join("; "));
    this.found = found;
  }
}

/** What the page knows of the user: "nobody", "shown", "unknown" to the model, or "hidden", as only the model may know. */
function standing() {
  if (!state.user) return "nobody";
  if (USER.has(state.user)) return "shown";
  return DATA.users.id.length === DATA.known_users ? "unknown" : "hidden";
}

/** What is known of a feature of the user, or null. */
function knownOf(column) {
  return standing() === "shown" ? (DATA.users.features[column]?.[USER.get(state.user)] ?? null) : null;
}

/** When the newest interaction of the user was, or null. */
function newestOf() {
  return standing() === "shown" ? DATA.users.newest[USER.get(state.user)] : null;
}

function pickUser(id) {
  state.user = id;
  const place = USER.get(id);
  state.history = place === undefined ? [] : DATA.users.history[place].map((number) => DATA.items.id[number]);
  state.isOwnHistory = false;
  for (const column of Object.keys(state.typed)) if (column !== TIME) delete state.typed[column];
}

function changeHistory(items) {
  state.history = items;
  // Of a user whom only the model knows an empty list says nothing.
  state.isOwnHistory = standing() !== "hidden" || items.length > 0;
}

/** Inputs that have a field of their own in the form: {column: {dtype, isList}}. */
function featuresOf(metadata) {
  const inputs = { ...metadata.signatures[BY_ID], ...metadata.signatures.serving_default };
  const elsewhere = [DATA.history, EXCLUDE, ...(DATA.known_users ? [ID_INPUT, USER_COLUMN] : [])];
  const place = (name) => (DATA.features.includes(name) ? DATA.features.indexOf(name) : DATA.features.length);
  return Object.fromEntries(Object.entries(inputs)
    .filter(([name]) => !elsewhere.includes(name) && !name.startsWith(FILTER))
    .sort(([one], [other]) => place(one) - place(other)));
}

/** Seconds since 1970 of a text that is such a number or a date (UTC unless it says else); null for neither. */
function secondsOf(text) {
  if (/^\d+$/.test(text)) return Number(text) <= LATEST ? Number(text) : null;
  const match = /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?))?(Z|[+-]\d\d:\d\d)?$/.exec(text);
  const parsed = match ? Date.parse(`${match[1]}T${match[2] ?? "00:00"}${match[3] ?? "Z"}`) : NaN;
  return Number.isNaN(parsed) || parsed < 0 ? null : Math.floor(parsed / 1000);
}

function valueOf(column, spec) {
  const text = (state.typed[column] ?? "").trim();
  if (!text) return null;
  if (spec.isList) return text.split(",").map((part) => part.trim()).filter(Boolean);
  if (spec.dtype === "DT_STRING") return text;
  if (spec.dtype === "DT_INT64") {
    const seconds = secondsOf(text);
    if (seconds === null) throw new Error(`${column}: “${text}” is no time; write 2026-11-30 18:00, or seconds since 1970`);
    return seconds;
  }
  const number = Number(text);
  if (Number.isNaN(number)) throw new Error(`${column}: “${text}” is not a number`);
  if (Math.abs(number) > LARGEST_FLOAT) throw new Error(`${column}: ${text} is larger than the model can read`);
  return number;
}

/** What a person typed, by column; throws Mistakes. */
function typedValues(metadata) {
  const values = {};
  const mistakes = new Map();
  for (const [column, spec] of Object.entries(featuresOf(metadata))) {
    try {
      values[column] = valueOf(column, spec);
    } catch (error) {
      mistakes.set(column, error.message);
    }
  }
  if (mistakes.size) throw new Mistakes(mistakes);
  return values;
}

/** Everything that the page knows of who asks, as `serving_default` and `explain` take it. */
function everything(values) {
  const inputs = { ...values };
  for (const column of Object.keys(DATA.users.features)) inputs[column] ??= knownOf(column);
  if (DATA.history) inputs[DATA.history] = state.history;
  if (DATA.age && DATA.age in inputs) inputs[DATA.age] ??= ageOf(values[TIME] ?? null);
  if (USER_COLUMN && DATA.known_users) inputs[USER_COLUMN] = standing() === "unknown" ? "" : state.user;
  return inputs;
}

/** Seconds from the newest interaction of the user to a time; null where one of them is not known. */
function ageOf(time) {
  const newest = newestOf();
  return newest === null || time === null || !state.history.length ? null : Math.max(time - newest, 0);
}

/** The signature and the inputs for recommendations of a version. */
function recommendation(metadata) {
  const values = typedValues(metadata);
  const rules = { [EXCLUDE]: state.exclude };
  for (const [column, wanted] of Object.entries(state.filters)) rules[FILTER + column] = wanted;
  // What another version knows of a user is not what this page shows.
  const isAsShown = standing() === "shown" && !state.isOwnHistory && metadata.version === DATA.version;
  if (BY_ID in metadata.signatures && (isAsShown || standing() === "hidden")) {
    const own = DATA.history && state.isOwnHistory ? { [DATA.history]: state.history } : {};
    return { signature: BY_ID, inputs: { ...values, ...own, ...rules, [ID_INPUT]: state.user } };
  }
  const signature = RECOMMEND.find((name) => name in metadata.signatures);
  return { signature, inputs: { ...everything(values), ...rules } };
}

/** Whether a version can say why it recommends what it does, to this page. */
function canExplain(metadata) {
  return EXPLAIN in metadata.signatures && standing() !== "hidden";
}
