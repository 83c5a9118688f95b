// Takes what has changed from the stream of events into the page; without it the page is whole, and stays as it was.
"use strict";

const SILENT_MS = 15000; // news come every two seconds
const AGAIN_MS = 30000;
const live = document.getElementById("live");
const time = document.getElementById("time");
let heard = Date.now();

function open(root) {
  return [...root.querySelectorAll("details[open]")].map((each) => each.id);
}

// What somebody has opened stays open, and where somebody is with the keyboard they stay.
function replace(name, html) {
  const slot = document.getElementById(`slot-${name}`);
  if (!slot) return;
  const opened = open(slot);
  const focused = slot.contains(document.activeElement) ? document.activeElement.id : "";
  const scrolled = [...slot.querySelectorAll(".scroll")].map((each) => [each.id, each.scrollLeft]);
  slot.innerHTML = html;
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  for (const [id, left] of scrolled) if (left) document.getElementById(id)?.scrollTo(left, 0);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function say(word, old) {
  if (live.textContent !== word) live.textContent = word;
  document.body.classList.toggle("old", old);
}

function take(event) {
  const said = JSON.parse(event.data);
  for (const [name, html] of Object.entries(said.sections)) replace(name, html);
  if (document.title !== said.title) {
    document.title = said.title;
    document.getElementById("news").textContent = said.title; // a screen reader says it
  }
  time.textContent = `${said.time.slice(11, 19)} UTC`;
  heard = Date.now();
  say("Live, ", false);
}

function listen() {
  const events = new EventSource("events");
  events.onmessage = take;
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  };
}

setInterval(() => {
  if (Date.now() - heard > SILENT_MS) say("No news, the numbers are old: as of ", true);
}, 1000);
listen();
