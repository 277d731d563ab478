// What moves on the page: the player, the list of commands that seeks in it, the search, the filters, the look.
// Everything that came from the tape is in the page as text already; nothing here makes markup of a string.
(() => {
  "use strict";
  const root = document.documentElement;
  const byId = (name) => document.getElementById(name);
  const cast = byId("cast").textContent.trim();
  const stage = byId("player");
  const items = [...document.querySelectorAll("#commands li")];
  const buttons = items.map((item) => item.firstElementChild);
  const times = items.map((item) => Number(item.dataset.at));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 860px)");
  const poster = lastScreen();
  let player;
  let current = -1;

  function look() {
    return root.dataset.chosen || (dark.matches ? "dark" : "light");
  }

  // What stands behind the play button: the end of what was shown. As text, for after a poster that is a time the
  // player (3.17) shows nothing when it seeks behind the last event. The bytes of a terminal's session make no such text.
  function lastScreen() {
    if (!stage.dataset.rows) return undefined;
    const shown = cast.split("\n").slice(1).slice(-200).map((line) => JSON.parse(line));
    const text = shown.filter((event) => event[1] === "o").map((event) => event[2]).join("");
    return `data:text/plain,${text.split("\r\n").slice(-Number(stage.dataset.rows)).join("\r\n")}`;
  }

  function mount() {
    const at = player ? player.getCurrentTime() : undefined;
    if (player) player.dispose();
    root.dataset.look = look();
    player = AsciinemaPlayer.create({ data: cast }, stage, {
      fit: narrow.matches ? "width" : "both", // where the page scrolls, the player is as high as it has to be
      preload: true,
      theme: `gatecast-${look()}`,
      poster,
      controls: true,
      startAt: at,
    });
    if (at) player.seek(at);
  }

  async function go(index) {
    stage.classList.add("begun");
    // A little later than the command's own time, so that it is on the screen.
    await player.seek(times[index] + 0.0002);
    mark();
  }

  // Marks the command that is on the screen; the list is sorted by time.
  function mark() {
    const now = player.getCurrentTime() + 0.0005;
    let low = 0;
    let high = times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] <= now) low = middle + 1;
      else high = middle;
    }
    if (low - 1 === current) return;
    if (current >= 0) buttons[current].removeAttribute("aria-current");
    current = low - 1;
    if (current >= 0) {
      buttons[current].setAttribute("aria-current", "true");
      if (!byId("list").contains(document.activeElement)) buttons[current].scrollIntoView({ block: "nearest" });
    }
  }

  function filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = document.querySelector(".chips [aria-pressed=true]").dataset.outcome;
    let shown = 0;
    items.forEach((item) => {
      const text = item.textContent.toLowerCase();
      const fits = (!wanted || item.dataset.outcome === wanted) && words.every((word) => text.includes(word));
      item.hidden = !fits;
      shown += fits;
    });
    byId("nothing").hidden = shown > 0;
  }

  function step(from, by) {
    for (let i = from + by; i >= 0 && i < items.length; i += by) {
      if (!items[i].hidden) return buttons[i].focus();
    }
  }

  byId("commands").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) go(buttons.indexOf(button));
  });
  byId("list").addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    if (at < 0 || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    step(at, event.key === "ArrowDown" ? 1 : -1);
  });
  byId("search").addEventListener("input", filter);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") step(-1, 1);
  });
  document.querySelector(".chips").addEventListener("click", (event) => {
    const chip = event.target.closest("button");
    if (!chip) return;
    document.querySelectorAll(".chips button").forEach((other) => other.setAttribute("aria-pressed", other === chip));
    filter();
  });
  byId("look").addEventListener("click", () => {
    root.dataset.chosen = look() === "dark" ? "light" : "dark";
    mount();
  });
  dark.addEventListener("change", () => root.dataset.chosen || mount());
  narrow.addEventListener("change", mount);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.tagName === "INPUT") return;
    event.preventDefault();
    byId("search").focus();
  });
  mount();
  setInterval(mark, 200);
})();
