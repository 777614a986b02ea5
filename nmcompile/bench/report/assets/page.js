
(() => {
  // Sections with a picker show one figure at a time.
  const pick = (section) => {
    const select = section.querySelector(".picker select");
    if (!select) return;
    const options = [...select.options];
    if (options[select.selectedIndex]?.hidden !== false) {
      select.selectedIndex = options.findIndex((option) => !option.hidden);
    }
    all("figure", section).forEach((figure, index) => {
      figure.hidden = index !== select.selectedIndex;
    });
  };
  const picked = all("section.picked");
  for (const section of picked) {
    section.querySelector(".picker select")?.addEventListener("change", () => pick(section));
  }

  // Filters narrow rows, figures and choices alike; what lacks a tag is about all of its values.
  const filters = all(".filters select");
  const narrow = () => {
    const wanted = filters.filter((select) => select.value);
    for (const item of all("tbody tr, figure, .picker option")) {
      item.hidden = wanted.some(({ dataset, value: chosen }) => {
        const own = item.dataset[dataset.tag];
        return own !== undefined && own !== chosen;
      });
    }
    picked.forEach(pick);
  };
  filters.forEach((select) => select.addEventListener("change", narrow));
  narrow();

  // Plots: the nearest value under the pointer, and one after the other by arrow keys.
  const tip = document.getElementById("tip");
  let near = null;
  const centre = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2, box];
  };
  const show = (mark) => {
    if (near !== mark) near?.classList.remove("near");
    near = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("near");
    tip.textContent = mark.getAttribute("aria-label");
    const [x, , box] = centre(mark);
    const { width, height } = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth - width - 8;
    tip.style.left = `${Math.max(8, Math.min(x - width / 2, room))}px`;
    const above = box.top - height - 8;
    tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
  };
  // A value reached by keys stays shown: bringing its plot into view scrolls, and moves the page under
  // a pointer that rests; both events are late.
  const kept = () => (near === document.activeElement ? near : null);
  for (const plot of all(".plot")) {
    const marks = () =>
      all('.mark-symbol [role="graphics-symbol"]', plot).filter((mark) => mark.getClientRects().length);
    plot.addEventListener("pointermove", (event) => {
      let best = null;
      let least = 32 ** 2;
      for (const mark of marks()) {
        const [x, y] = centre(mark);
        const distance = (x - event.clientX) ** 2 + (y - event.clientY) ** 2;
        if (distance < least) [best, least] = [mark, distance];
      }
      show(best ?? kept());
    });
    plot.addEventListener("pointerleave", () => show(kept()));
    plot.addEventListener("focusout", () => show(null));
    plot.addEventListener("keydown", (event) => {
      const list = marks();
      const at = list.indexOf(document.activeElement);
      const next = {
        ArrowRight: at + 1,
        ArrowDown: at + 1,
        ArrowLeft: at < 0 ? list.length - 1 : at - 1,
        ArrowUp: at < 0 ? list.length - 1 : at - 1,
        Home: 0,
        End: list.length - 1,
      }[event.key];
      if (event.key === "Escape") plot.focus();
      if (next === undefined || !list.length) return;
      event.preventDefault();
      const mark = list[(next + list.length) % list.length];
      mark.setAttribute("tabindex", "-1");
      mark.focus({ preventScroll: true });
      show(mark);
    });
  }
  addEventListener("scroll", () => show(kept()), { passive: true });
})();
