// Keeps a page up to date: every part marked `data-live` is replaced by its newer self, without a reload.
// The pages work without this file; they only stand still.
"use strict";

(() => {
  const EVERY_MS = 10_000; // a change that no event told of shows after this time at the latest
  const LEAST_MS = 1_000; // and changes that come in a burst at most this often
  const SHARE = 5; // a page that takes long to make is asked for more rarely: once in this many times its time

  const indicator = document.getElementById("live");
  const received = new Map();
  let stream = null;
  let timer = 0;
  let asking = false;
  let again = false;
  let earliest = 0;

  const parts = () => document.querySelectorAll("[data-live]");

  function say(text, state) {
    if (indicator.textContent === text) return;
    indicator.hidden = false;
    indicator.textContent = text;
    indicator.dataset.state = state;
  }

  function selecting(part) {
    const selection = document.getSelection();
    return !selection.isCollapsed && selection.containsNode(part, true);
  }

  function selectorOf(element) {
    if (element.id) return `#${CSS.escape(element.id)}`;
    return element.hasAttribute("href") ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : null;
  }

  function replace(old, fresh) {
    const focused = old.contains(document.activeElement) ? selectorOf(document.activeElement) : null;
    const open = [...old.querySelectorAll("details[open]")].map((details) => details.id);
    const log = old.querySelector(".log");
    const atEnd = log && log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    const top = log?.scrollTop;
    const part = document.adoptNode(fresh);
    old.replaceWith(part);
    for (const id of open) part.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    const shown = part.querySelector(".log");
    if (shown) shown.scrollTop = log && !atEnd ? top : shown.scrollHeight;
    if (focused) part.querySelector(focused)?.focus({ preventScroll: true });
  }

  function take(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const old of parts()) {
      const fresh = page.getElementById(old.id);
      if (!fresh || received.get(old.id) === fresh.outerHTML || selecting(old)) continue;
      received.set(old.id, fresh.outerHTML);
      replace(old, fresh);
    }
    document.title = page.title;
  }

  async function refresh() {
    if (asking || document.hidden) {
      again = true;
      return;
    }
    asking = true;
    again = false;
    const begun = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected) {
        location.reload(); // signed out meanwhile: the reload leads to the form, and back here
        return;
      }
      if (answer.ok) take(await answer.text());
      say(answer.ok ? "live" : "not up to date", answer.ok ? "on" : "off");
    } catch {
      say("no connection", "off");
    } finally {
      asking = false;
      earliest = performance.now() + Math.max(LEAST_MS, SHARE * (performance.now() - begun));
      plan(again ? 0 : EVERY_MS);
    }
  }

  function plan(delay) {
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(delay, earliest - performance.now()));
  }

  function changed() {
    if (asking) again = true;
    else plan(0);
  }

  // A browser opens six connections to one address. Tabs that nobody looks at give theirs back.
  function follow() {
    stream?.close();
    stream = null;
    if (document.hidden) return;
    stream = new EventSource("/web/events");
    stream.addEventListener("open", changed);
    stream.addEventListener("message", changed);
  }

  if (indicator && parts().length) {
    for (const part of parts()) received.set(part.id, part.outerHTML);
    document.addEventListener("visibilitychange", () => {
      follow();
      if (!document.hidden) changed();
    });
    follow();
    plan(EVERY_MS);
  }
  const log = document.querySelector(".log");
  if (log) log.scrollTop = log.scrollHeight;

  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });
})();
