"use strict";
/* The server's REST interface: what this page knows before it asks, and how it asks. */

const DATA = JSON.parse(document.getElementById("data").textContent);

/** What a person reads when the server refuses or is not there: one line. */
class ServerError extends Error {}

/** Sends one request. A body that is text goes out as text/plain, for which a browser asks no leave of another origin. */
async function send(path, body, signal) {
  const url = `${DATA.server}/v1/models/${encodeURIComponent(DATA.model)}${path}`;
  let response, text;
  try {
    response = await fetch(url, { method: body ? "POST" : "GET", body, signal, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const elsewhere = new URL(url, location).origin === location.origin ? ""
      : ", and may it be asked by other origins (--rest_api_enable_cors_support)";
    throw new ServerError(`No answer from ${new URL(url, location).host || "the server"}: is it running${elsewhere}?`);
  }
  let answer;
  try {
    answer = withoutInfinity(text);
  } catch {
    throw new ServerError(`The server answered ${response.status} and no JSON: ${text.slice(0, 100)}`);
  }
  if (!response.ok) throw new ServerError(`The server refuses: ${answer.error ?? response.status}`);
  return answer;
}

/** JSON as TF Serving writes it, with NaN and Infinity, which become null. */
function withoutInfinity(text) {
  return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g, (part) => (part[0] === '"' ? part : "null")));
}

/** Numbers of the versions that answer, the newest first. */
async function availableVersions() {
  const answer = await send("");
  const numbers = answer.model_version_status
    .filter((status) => status.state === "AVAILABLE")
    .map((status) => String(status.version))
    .sort((one, other) => Number(BigInt(other) - BigInt(one)));
  if (!numbers.length) throw new ServerError(`No version of ${DATA.model} answers at the moment.`);
  return numbers;
}

const described = new Map();

/** {version, signatures: {name: {input: {dtype, isList}}}} of a version. */
async function metadataOf(version) {
  if (!described.has(version)) {
    const answer = await send(`/versions/${version}/metadata`);
    const signatures = {};
    for (const [name, definition] of Object.entries(answer.metadata.signature_def.signature_def)) {
      if (!definition.method_name) continue;
      signatures[name] = {};
      for (const [input, info] of Object.entries(definition.inputs ?? {})) {
        signatures[name][input] = { dtype: info.dtype, isList: (info.tensor_shape?.dim ?? []).length === 2 };
      }
    }
    described.set(version, { version, signatures });
  }
  return described.get(version);
}

/** The outputs of a signature for a request of one row. */
async function predict(metadata, signature, inputs, signal) {
  const body = bodyOf(signature, metadata.signatures[signature], inputs);
  return (await send(`/versions/${metadata.version}:predict`, body, signal)).outputs;
}

/** The body of a request of one row; what `inputs` lacks is missing. */
function bodyOf(signature, specs, inputs) {
  const fields = Object.entries(specs).map(([name, spec]) => `${JSON.stringify(name)}: [${encoded(spec, inputs[name])}]`);
  return `{"signature_name": ${JSON.stringify(signature)}, "inputs": {${fields.join(", ")}}}`;
}

function encoded(spec, value) {
  if (spec.isList) return JSON.stringify(value ?? []);
  if (spec.dtype === "DT_STRING") return JSON.stringify(value ?? "");
  if (spec.dtype === "DT_INT64") return String(value ?? -1);
  if (value === null || value === undefined) return "NaN";
  // TF Serving had releases that refuse large whole numbers for a float.
  return Number.isInteger(value) && Math.abs(value) < 1e21 ? `${value}.0` : String(value);
}

/** Items of one row of an answer: id, score and the columns that come back; padding is left out. */
function itemsOf(outputs, prefix = "", row = (column) => column[0]) {
  const ids = row(outputs[`${prefix}item_id`]);
  const titles = DATA.title === null ? null : row(outputs[prefix + DATA.title] ?? [[]]);
  const scores = row(outputs[`${prefix}score`]);
  return ids.map((id, place) => ({ id, title: titles?.[place] ?? "", score: scores[place] })).filter((item) => item.id !== "");
}
