// Keeps a page of cartd up to date: numbers from the events of the cart, everything else by loading the page
// again. The pages are complete without it. Words sizes and durations as cartd/page/units.py does.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// Not relative to an address with a name and a token in it, which fetch rejects.
const own = (path) => new URL(path, location.origin).href;

const SIZES = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"];
export function size(number) {
  let unit = 0;
  for (; number >= 999.5 && unit < SIZES.length - 1; unit++) number /= 1000;
  if (!unit) return number === 1 ? "1 byte" : `${Math.round(number)} bytes`;
  return `${number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0)} ${SIZES[unit]}`;
}
const number = (value) => value.toLocaleString("en-US");
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

const STEPS = [["second", 1, 90], ["minute", 60, 5400], ["hour", 3600, 129600], ["day", 86400, Infinity]];
function inUnits(seconds) {
  const [name, length] = STEPS.find((step) => seconds < step[2]);
  if (length === 1) return [Math.max(10, 10 * Math.ceil(Math.round(seconds) / 10)), name];
  return [Math.max(1, Math.round(seconds / length)), name];
}
export function span(low, high) {
  const first = inUnits(low), last = inUnits(high);
  if (first[1] !== last[1]) return `about ${count(...first)} to ${count(...last)}`;
  return first[0] === last[0] ? `about ${count(...last)}` : `about ${number(first[0])} to ${count(...last)}`;
}
export function done(doc) { // of the files, if some are missing in a ready cart
  const known = doc.progress ?? (doc.outcome === "complete" ? 100 : undefined);
  if (known !== undefined && doc.outcome !== "partial") return known;
  return (100 * doc.files.staged) / Math.max(1, doc.files.total);
}

// The staged part is by bytes and the others are by files: what is not done yet is scaled to fit.
export function segments(doc) {
  const share = (name) => (100 * (doc.files[name] ?? 0)) / Math.max(1, doc.files.total);
  const failed = doc.files.failed ? Math.max(2, Math.min(share("failed"), 100 - done(doc))) : 0;
  const staged = Math.min(done(doc), 100 - failed), left = 100 - staged - failed;
  const scale = Math.min(1, left / Math.max(left, share("fetching") + share("recalling"), 1e-9));
  const widths = { staged, fetching: share("fetching") * scale, recalling: share("recalling") * scale, failed };
  let at = 0;
  return Object.entries(widths).map(([name, width]) => {
    at += width;
    return [name, Math.round(100 * (at - width)) / 100, Math.round(100 * width) / 100];
  });
}

function showTimes(root) {
  const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of $$("time", root)) {
    if (!time.dataset.age) time.textContent = local.format(new Date(time.dateTime));
  }
}

function addCopyButtons(root) {
  for (const command of $$(".command", root)) {
    const text = $("code", command), button = document.createElement("button");
    // The address as this browser has it: a proxy may have changed the one that the service sees.
    const base = $("main").dataset.base;
    if (base && base !== location.origin) text.textContent = text.textContent.replaceAll(base, location.origin);
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch { // not over plain HTTP: select it instead
        getSelection().selectAllChildren(text);
      }
    });
    command.append(button);
  }
}

// --- one cart ---

function setText(field, text) {
  const element = $(`[data-field=${field}]`);
  if (!element) return;
  if (element.textContent !== text) element.textContent = text;
  if (element.localName === "dd") element.parentElement.hidden = !text;
}

let announced = 0;
function announce(text) { // for screen readers, at most every ten seconds
  if (Date.now() - announced < 10000) return;
  announced = Date.now();
  $("main [role=status]").textContent = text;
}

export function show(doc) {
  const part = done(doc), whole = `${Math.floor(part + 1e-9)} %`, files = doc.files;
  const eta = doc.eta ? span(doc.eta.low, doc.eta.high) : "";
  const state = $(".state").textContent;
  document.title = document.title.replace(/^\d+ %/, whole);
  setText("percent", whole);
  setText("message", doc.message);
  setText("files", `${number(files.staged)} of ${number(files.total)}`);
  setText("bytes", size(doc.bytes.staged) + (doc.bytes.total === undefined ? "" : ` of ${size(doc.bytes.total)}`));
  setText("rate", doc.rate ? `${size(doc.rate.recent)}/s` : "");
  setText("eta", eta);
  setText("queue", doc.queue ? `${count(doc.queue.carts_ahead, "cart")} before yours` : "");
  for (const item of $$("[data-count]")) {
    const value = files[item.dataset.count] ?? 0;
    $("b", item).textContent = number(value);
    item.hidden = !value;
  }
  const bar = $(".bar");
  for (const [name, start, width] of segments(doc)) {
    const rect = $(`rect.${name}`, bar);
    rect.setAttribute("x", `${start}%`);
    rect.setAttribute("width", `${width}%`);
  }
  bar.setAttribute("aria-valuenow", Math.floor(part));
  bar.setAttribute("aria-valuetext", `${whole}, ${state}`);
  announce([whole, doc.message, eta].filter(Boolean).join(", "));
}

// If it changes, more than numbers change on the page; cartd/page/cart.py has the same.
const shape = (doc) => [doc.status, doc.phase, doc.outcome, doc.waiting?.for, doc.files.failed].join();

async function reload() {
  const main = $("main");
  const answer = await fetch(own(main.dataset.page), { headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const focused = main.contains(document.activeElement) ? document.activeElement.className : "";
  main.replaceChildren(...page.querySelector("main").childNodes);
  document.title = page.title;
  if (focused) $(`main .${CSS.escape(focused)}`)?.focus();
  enhance(main);
}

function follow(main) {
  const events = new EventSource(own(main.dataset.events));
  let last = main.dataset.shape, timer = 0;
  function receive(doc) {
    if (shape(doc) === last) show(doc);
    else reload().catch(() => show(doc));
    last = shape(doc);
  }
  async function poll() { // where events cannot be had, as when there are too many streams
    try {
      const answer = await fetch(own(main.dataset.page), { headers: { Accept: "application/json", Prefer: "wait=20" } });
      const doc = await answer.json();
      if (answer.ok) receive(doc);
      if (doc.outcome || answer.status === 404) return reload();
    } catch { /* the next attempt may succeed */ }
    timer = setTimeout(poll, 2000);
  }
  events.addEventListener("status", (event) => receive(JSON.parse(event.data)));
  events.addEventListener("end", () => { events.close(); reload(); });
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED && !timer) poll();
  });
}

// --- every page ---

function enhance(root) {
  showTimes(root);
  addCopyButtons(root);
}

const main = $("main");
if (main) {
  enhance(main);
  if (main.dataset.events) follow(main);
  if (main.dataset.every) {
    setInterval(() => { // a list: not while somebody uses it
      if (!document.hidden && !main.contains(document.activeElement) && !$("details[open]", main)) reload().catch(() => {});
    }, main.dataset.every * 1000);
  }
}
