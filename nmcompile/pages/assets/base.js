"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

(() => {
  // Tables: a click, Enter or Space on a head sorts; again turns the order.
  const value = (row, index) => row.cells[index].dataset.key;
  for (const table of all("table")) {
    const heads = all("thead th", table);
    heads.forEach((head, index) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const numbers = head.classList.contains("num");
        const sorted = head.getAttribute("aria-sort");
        const order = sorted === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => {
          const [left, right] = [value(a, index), value(b, index)];
          if (left === undefined || right === undefined) {
            return (left === undefined) - (right === undefined);
          }
          const compared = numbers ? left - right : left.localeCompare(right, "en", { numeric: true });
          return order === "ascending" ? compared : -compared;
        });
        body.append(...rows);
      });
    });
  }

  // Theme: the system's, or one that is kept where the browser lets a file keep anything.
  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const dress = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try {
      localStorage.setItem("nmc-theme", theme);
    } catch {
      // Nothing is kept: the system's theme comes back with the next visit.
    }
  };
  try {
    const kept = localStorage.getItem("nmc-theme");
    if (themes.includes(kept)) dress(kept);
  } catch {
    // As above.
  }
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    dress(themes[(themes.indexOf(now) + 1) % themes.length]);
  });
})();
